import multiprocessing
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from nas.errors import InputError
from nas.yolo import decode as module
from nas.yolo.decode import GREY, Images, decode

NONE = np.zeros((0, 5), np.float32)


def write(path: Path, width: int = 80, height: int = 40, channels: int = 3) -> Path:
    image = np.full((height, width, channels), 200, np.uint8)
    path.write_bytes(cv2.imencode(path.suffix, image)[1].tobytes())
    return path


def folder(tmp_path: Path, count: int) -> list[Path]:
    return [write(tmp_path / f"{i}.png") for i in range(count)]


def test_letterbox_and_labels(tmp_path: Path) -> None:
    box = np.array([[2, 0.5, 0.5, 1.0, 1.0]], np.float32)  # the whole image
    paths = [write(tmp_path / "wide ä.png", 81, 40), write(tmp_path / "grey.png", 30, 50, channels=1)]
    images = decode(paths, [box, box], 64, tmp_path / "cache")
    assert images.pixels.shape == (2, 3, 64, 64) and images.pixels.dtype == np.uint8 and images.imgsz == 64
    for pixels, label in zip(images.pixels, images.labels, strict=True):
        assert label[0, 0] == 2
        cx, cy, w, h = label[0, 1:] * 64
        x1, x2, y1, y2 = (round(float(v)) for v in (cx - w / 2, cx + w / 2, cy - h / 2, cy + h / 2))
        inside = np.zeros((64, 64), bool)
        inside[y1:y2, x1:x2] = True
        assert (pixels[:, inside] == 200).all() and (pixels[:, ~inside] == GREY).all()


def test_colours_are_rgb(tmp_path: Path) -> None:
    image = np.zeros((32, 32, 3), np.uint8)
    image[..., 2] = 255  # red, as OpenCV orders it
    cv2.imwrite(str(tmp_path / "red.png"), image)
    pixels = decode([tmp_path / "red.png"], [NONE], 32, tmp_path / "cache").pixels
    assert pixels[0, :, 5, 5].tolist() == [255, 0, 0]


def test_a_second_call_maps_the_first_ones_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = folder(tmp_path, 3)
    first = decode(paths, [NONE] * 3, 32, tmp_path / "cache")
    assert isinstance(first.pixels, np.memmap) and not first.pixels.flags.writeable
    with monkeypatch.context() as patched:
        patched.setattr(module, "_letterbox", lambda *_: pytest.fail("decoded again"))
        second = decode(paths, [NONE] * 3, 32, tmp_path / "cache")
    np.testing.assert_array_equal(first.pixels, second.pixels)
    write(paths[1], 20, 64)
    os.utime(paths[1], ns=(1, 1))
    assert not np.array_equal(decode(paths, [NONE] * 3, 32, tmp_path / "cache").pixels, first.pixels)  # changed file


def test_two_processes_at_once(tmp_path: Path) -> None:
    paths = folder(tmp_path, 40)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        results: list[Images] = pool.starmap(decode, [(paths, [NONE] * 40, 32, tmp_path / "cache")] * 4)
    assert all(len(images) == 40 and (images.pixels[:, :, 16, 16] == 200).all() for images in results)
    kept = sorted(path.suffix for path in (tmp_path / "cache").iterdir())
    assert kept in ([".lock", ".npy", ".npy"], [".npy", ".npy"])


def test_a_few_corrupt_images_are_skipped(tmp_path: Path) -> None:
    paths = folder(tmp_path, 150)
    paths[7].write_bytes(b"not an image")
    labels = [np.array([[i, 0.5, 0.5, 0.1, 0.1]], np.float32) for i in range(150)]
    for _ in range(2):  # decoded, then from the cache
        images = decode(paths, labels, 32, tmp_path / "cache")
        assert images.skipped == (paths[7],) and len(images) == len(images.pixels) == 149
        assert [int(label[0, 0]) for label in images.labels] == [i for i in range(150) if i != 7]
        assert (images.pixels[:, :, 16, 16] == 200).all()


def test_many_corrupt_images_are_refused(tmp_path: Path) -> None:
    paths = folder(tmp_path, 20)
    paths[3].write_bytes(b"")
    paths[4].unlink()
    with pytest.raises(InputError, match=r"2 of 20 images cannot be read: .*3\.png, .*4\.png"):
        decode(paths, [NONE] * 20, 32, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.part"))


def test_nothing_to_decode(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="0 images"):
        decode([], [], 32, tmp_path)


def test_a_part_shares_the_pixels(tmp_path: Path) -> None:
    images = decode(folder(tmp_path, 6), [NONE] * 6, 32, tmp_path / "cache")
    part = images.take([5, 2]).take([1, 0, 1])
    assert len(part) == 3 and part.pixels is images.pixels
    assert (part.read(slice(None)) == images.pixels[[2, 5, 2]]).all()
