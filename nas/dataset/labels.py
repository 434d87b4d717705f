"""Label files as Ultralytics writes and reads them: where they lie, what their rows mean, which it would refuse."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from nas.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

IMAGE_SUFFIXES = frozenset(
    ".avif .bmp .dng .heic .heif .jp2 .jpeg .jpg .mpo .png .tif .tiff .webp".split()  # Ultralytics' list
)

Row = tuple[float, float, float, float, float]
"""Class, centre x, centre y, width, height; all but the class as shares of the image's width or height."""
Polygon = tuple[float, ...]
"""x1, y1, x2, y2, x3, y3, …, as shares of the image's width and height."""

_TOLERANCE = 0.01  # Ultralytics takes this much beyond the image


def label_path(image: Path) -> Path:
    """The label file of an image: the last folder `images` of its path replaced by `labels`, the suffix by `.txt`."""
    before, found, after = str(image).rpartition(f"{os.sep}images{os.sep}")
    return Path(f"{before}{os.sep}labels{os.sep}{after}" if found else image).with_suffix(".txt")


class NoPolygonError(InputError):
    """A label file holds boxes where a segmentation model needs polygons."""


def read_labels(image: Path, nc: int) -> NDArray[np.float32]:
    """The labelled boxes of an image.

    Args:
        image: the image, not the label file; `label_path` says where that is looked for.
        nc: the number of classes of the dataset.

    Returns:
        (n, 5) float32: class, centre x, centre y, width, height, as shares of the image (Ultralytics tolerates 1% beyond
        it, and so does this). Polygons become their boxes, repeated boxes one. No file, or an empty one, is n = 0.

    Raises:
        InputError: a row that Ultralytics would refuse; names the file and the line.
    """
    import numpy as np  # noqa: PLC0415  descriptions are read and checked without it

    return np.array(list(_read(image, nc, polygons=False)), dtype=np.float32).reshape(-1, 5)


def read_polygons(image: Path, nc: int) -> list[NDArray[np.float32]]:
    """The labelled polygons of an image: (points, 2) x, y as shares of it, in the order of the rows of `read_labels`.

    Raises:
        InputError: as `read_labels`; NoPolygonError for a file of boxes.
    """
    import numpy as np  # noqa: PLC0415

    return [np.array(points, dtype=np.float32).reshape(-1, 2) for points in _read(image, nc, polygons=True).values()]


def _read(image: Path, nc: int, *, polygons: bool) -> dict[Row, Polygon]:
    path = label_path(image)
    try:
        return parse_labels(path.read_bytes(), nc, path, polygons=polygons)
    except FileNotFoundError:
        return {}


def parse_labels(content: bytes, nc: int, path: Path, *, polygons: bool = False) -> dict[Row, Polygon]:
    """The rows of a label file: boxes, each with its polygon where the file holds polygons (`class x1 y1 x2 y2 x3 y3 ...`).

    Args:
        content: what the file holds.
        nc: the number of classes of the dataset.
        path: the file, for messages.
        polygons: whether polygons are needed.

    Raises:
        InputError: a row that Ultralytics would refuse; names the file and the line.
        NoPolygonError: a box where polygons are needed.
    """
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not text", "write one 'class x y width height' row a line") from error
    rows: dict[Row, Polygon] = {}
    columns = 0
    for number, line in enumerate(lines, start=1):
        if not (words := line.split()):
            continue
        try:
            values = tuple(map(float, words))
        except ValueError:
            word = next(word for word in words if not _is_number(word))
            raise InputError(f"{path}:{number}: '{word[:40]}' is not a number", _ROW_HINT) from None
        if len(values) != 5 and (len(values) < 7 or len(values) % 2 == 0):
            raise InputError(f"{path}:{number}: {len(values)} numbers", _ROW_HINT)
        if columns and (columns == 5) != (len(values) == 5):
            raise InputError(
                f"{path}:{number}: boxes and polygons in one file", "write all rows of a file as boxes, or all as polygons"
            )
        columns = len(values)
        row = values if len(values) == 5 else _enclosing(values)
        _check(row, nc, f"{path}:{number}")
        if polygons and len(values) == 5:
            raise NoPolygonError(
                f"{path}:{number}: a box, where segmentation needs a polygon",
                "write 'class x1 y1 x2 y2 x3 y3 …' rows, or search with a detection skeleton such as yolo11n.yaml",
            )
        rows.setdefault(row, values[1:] if len(values) > 5 else ())  # of equal boxes Ultralytics keeps the first
    return rows


_ROW_HINT = "a row is 'class x y width height', or a class and three or more polygon points 'x y'"


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _enclosing(polygon: tuple[float, ...]) -> Row:
    """The box around `class x1 y1 x2 y2 ...`."""
    left, right = min(polygon[1::2]), max(polygon[1::2])
    top, bottom = min(polygon[2::2]), max(polygon[2::2])
    return polygon[0], (left + right) / 2, (top + bottom) / 2, right - left, bottom - top


def _check(row: Row, nc: int, where: str) -> None:
    label, x, y, width, height = row
    if not label.is_integer():  # nan and inf are none either
        raise InputError(f"{where}: class {label:g} is not a whole number", _ROW_HINT)
    if not 0 <= label < nc:
        raise InputError(
            f"{where}: class {label:.0f}, but the dataset names {nc} ({'only 0' if nc == 1 else f'0 to {nc - 1}'})",
            "correct the label, or add the class to 'names'",
        )
    low, high = -_TOLERANCE, 1 + _TOLERANCE
    if not (low <= x <= high and low <= y <= high and 0 <= width <= high and 0 <= height <= high):
        raise InputError(
            f"{where}: box {x:g} {y:g} {width:g} {height:g} is not inside the image",
            "write coordinates as shares of the image's width and height, from 0 to 1 (not pixels)",
        )
