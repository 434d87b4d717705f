"""Images of a dataset, decoded once: one file of letterboxed pixels that every process of a host maps into memory.

A proxy training sees the same few thousand small images in every trial, so reading and resizing them again and again
would cost more than the training itself. The pixels lie in one ``.npy`` file, opened read-only and memory-mapped: all
worker processes share its pages.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from nas.alive import beat, locked
from nas.errors import InputError

VERSION = 1  # part of the cache key: raise it whenever the pixels of the same file would differ
GREY = 114  # the padding that YOLO models are trained with
MAX_CORRUPT = 0.01  # share of unreadable images that is skipped rather than refused

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.float32]
Points = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Images:
    """Letterboxed images and their labels.

    Attributes:
        pixels: uint8 (files, 3, S, S), RGB; usually a read-only memory map that several `Images` share.
        labels: one float32 (n, 5) per image: class, then cx, cy, w, h as shares of the S x S canvas.
        skipped: files that could not be read and are therefore absent from all others.
        polygons: for segmentation, per image the n outlines of its objects, each float32 (points, 2): x, y in pixels of
            the canvas (shares would not bring whole numbers back, and masks are drawn by whole numbers).
        rows: which of `pixels` each image is; None where they are the same.
    """

    pixels: Pixels
    labels: list[Labels]
    skipped: tuple[Path, ...] = ()
    polygons: list[list[Points]] | None = None
    rows: npt.NDArray[np.intp] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: npt.NDArray[np.intp] | slice) -> Pixels:
        """The pixels of some images, copied."""
        rows = np.arange(len(self)) if self.rows is None else self.rows
        return self.pixels[rows[indices]]

    def take(self, indices: Sequence[int]) -> Images:
        """Some of the images, in this order; the pixels stay where they are."""
        rows = np.arange(len(self)) if self.rows is None else self.rows
        polygons = None if self.polygons is None else [self.polygons[i] for i in indices]
        chosen = rows[np.asarray(indices, np.intp)]
        return Images(self.pixels, [self.labels[i] for i in indices], self.skipped, polygons, chosen)

    @property
    def imgsz(self) -> int:
        """Side of the canvas in pixels."""
        return int(self.pixels.shape[-1])


def decode(
    paths: Sequence[Path],
    labels: Sequence[Labels],
    imgsz: int,
    cache: Path,
    polygons: Sequence[Sequence[Points]] | None = None,
) -> Images:
    """Read, letterbox and cache images; a later call, also of another process, maps the cached file.

    Args:
        paths: the image files.
        labels: per image float32 (n, 5): class, cx, cy, w, h as shares of the image itself.
        imgsz: side S of the square canvas in pixels.
        cache: folder for the pixels (N * 3 * S * S bytes per distinct list of files).
        polygons: per image its objects' outlines, x, y as shares of the image itself; None without masks.

    Returns:
        The readable images in the order of `paths`, with their labels moved onto the canvas.

    Raises:
        InputError: no images, 1% or more of them unreadable, or the cache cannot be written.
    """
    if not paths or len(paths) != len(labels):
        raise InputError(f"{len(paths)} images and {len(labels)} label arrays to decode", "give one array per image")
    stem = cache / f"pixels-{imgsz}-{_key(paths, imgsz)}"
    pixels_file, sizes_file = Path(f"{stem}.npy"), Path(f"{stem}.sizes.npy")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with locked(stem):  # the second of two processes waits, then finds the file of the first
            if not (pixels_file.exists() and sizes_file.exists()):
                _write(paths, imgsz, pixels_file, sizes_file)
        pixels = np.load(pixels_file, mmap_mode="r", allow_pickle=False)
        sizes = np.load(sizes_file, allow_pickle=False)
    except OSError as error:
        raise InputError(f"cannot keep decoded images in {cache}: {error}", "free space there or move it") from error
    readable = [i for i, size in enumerate(sizes) if size.all()]
    skipped = tuple(path for path, size in zip(paths, sizes, strict=True) if not size.all())
    placed = {i: _placement(int(sizes[i, 0]), int(sizes[i, 1]), imgsz) for i in readable}
    boxes = [_boxes_onto_canvas(labels[i], placed[i], imgsz) for i in readable]
    if polygons is None:
        return Images(pixels, boxes, skipped)
    outlines = [[_points_onto_canvas(points, placed[i]) for points in polygons[i]] for i in readable]
    return Images(pixels, boxes, skipped, outlines)


def _key(paths: Sequence[Path], imgsz: int) -> str:
    """Changes whenever a file of the list changes."""
    digest = hashlib.sha256(f"{VERSION} {imgsz}\n".encode())
    for path in paths:
        try:
            stat = path.stat()
            digest.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode(errors="surrogateescape"))
        except OSError:  # missing: counted as unreadable later
            digest.update(f"{path}\0missing\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def _write(paths: Sequence[Path], imgsz: int, pixels_file: Path, sizes_file: Path) -> None:
    """Decode into both files; the pixels appear last and under their own name only when they are complete."""
    part = pixels_file.with_suffix(".part")  # under the lock nobody else writes it; a leftover is overwritten
    sizes = np.zeros((len(paths), 2), np.int32)  # (width, height) of the file's image, zeros when unreadable
    try:
        with part.open("wb") as file:
            # plain writes, not a writable memory map: on a full disk a map would kill the process with SIGBUS
            _header(file, len(paths), imgsz)
            for i, decoded in enumerate(_decoded(paths, imgsz)):
                beat()
                if decoded is not None:
                    canvas, sizes[i] = decoded
                    file.write(canvas.tobytes())
            corrupt = np.flatnonzero(~sizes.all(axis=1))
            if len(corrupt) >= max(MAX_CORRUPT * len(paths), 1):
                names = ", ".join(str(paths[i]) for i in corrupt[:3])
                raise InputError(
                    f"{len(corrupt)} of {len(paths)} images cannot be read: {names}{', …' * (len(corrupt) > 3)}",
                    "repair or remove them; below 1% they are skipped",
                )
            _header(file, len(paths) - len(corrupt), imgsz)
            file.flush()
            os.fsync(file.fileno())  # after a power cut the name must not stand for an empty file
        np.save(sizes_file, sizes, allow_pickle=False)
        part.replace(pixels_file)
    finally:
        part.unlink(missing_ok=True)


def _header(file: BinaryIO, count: int, imgsz: int) -> None:
    """Write the .npy header at the start of the file (its length does not depend on the count: numpy leaves room)."""
    file.seek(0)
    shape = (count, 3, imgsz, imgsz)
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def _decoded(paths: Sequence[Path], imgsz: int) -> Iterator[tuple[Pixels, tuple[int, int]] | None]:
    """Canvases in order, decoded by a few threads (OpenCV releases the interpreter lock), a bounded number ahead."""
    workers = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(paths), 8 * workers):
            yield from pool.map(lambda path: _letterbox(path, imgsz), paths[start : start + 8 * workers])


def _letterbox(path: Path, imgsz: int) -> tuple[Pixels, tuple[int, int]] | None:
    """The canvas (3, S, S) in RGB and the (width, height) of the original; None when the file is no image."""
    import cv2  # noqa: PLC0415  only a first call decodes; later ones map the cached file
    from ultralytics.utils.patches import imread  # noqa: PLC0415  the formats and pixels of a full training

    try:
        image = imread(path, cv2.IMREAD_COLOR)
    except (OSError, ValueError, SyntaxError, ImportError, cv2.error):
        return None  # what the decoders behind it raise for broken files and for formats they lack
    if image is None or image.dtype != np.uint8 or image.shape[2] not in {1, 3}:
        return None
    height, width = image.shape[:2]
    w, h, left, top = _placement(width, height, imgsz)
    if (w, h) != (width, height):
        image = cv2.resize(image, (w, h), interpolation=cv2.INTER_LINEAR)
    canvas = np.full((3, imgsz, imgsz), GREY, np.uint8)
    canvas[:, top : top + h, left : left + w] = image[..., ::-1].transpose(2, 0, 1)
    return canvas, (width, height)


def _placement(width: int, height: int, imgsz: int) -> tuple[int, int, int, int]:
    """Size (w, h) and corner (left, top) in canvas pixels: where Ultralytics' validation puts the image."""
    ratio = imgsz / max(width, height)
    w, h = (min(int(np.ceil(side * ratio)), imgsz) for side in (width, height))
    left, top = (round((imgsz - side) / 2 - 0.1) for side in (w, h))  # odd rests go to the right and the bottom
    return w, h, left, top


def _boxes_onto_canvas(labels: Labels, placement: tuple[int, int, int, int], imgsz: int) -> Labels:
    """Boxes as shares of the image -> as shares of the canvas."""
    w, h, left, top = placement
    moved = np.array(labels, np.float32).reshape(-1, 5)
    moved[:, 1:] *= np.array([w, h, w, h], np.float32)
    moved[:, 1:3] += np.array([left, top], np.float32)
    moved[:, 1:] /= imgsz
    return moved


def _points_onto_canvas(points: Points, placement: tuple[int, int, int, int]) -> Points:
    """Points as shares of the image -> in pixels of the canvas."""
    w, h, left, top = placement
    return np.asarray(points, np.float32) * np.array([w, h], np.float32) + np.array([left, top], np.float32)
