"""The built-in set: the same in every build, well labelled, safe to build twice at once."""

import hashlib
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from nas.dataset import builtin, scenes
from nas.dataset.builtin import SPLITS, builtin_dataset, cache_root
from nas.dataset.description import Dataset, read_dataset
from nas.dataset.labels import read_labels, read_polygons
from nas.dataset.scenes import CLASSES, SIDE, draw_scene
from nas.errors import InputError


def _digest(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    whole = hashlib.sha256()
    for path in files:
        whole.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return whole.hexdigest()


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    return builtin_dataset(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def dataset(built) -> Dataset:
    return read_dataset(built)


def test_two_processes_at_once_leave_one_set(tmp_path, built):
    code = "import nas.dataset.builtin as b; b.SPLITS = {'train': 50, 'val': 9}; print(b.builtin_dataset())"
    environment = {**os.environ, "NAS_CACHE": str(tmp_path / "käche one"), "PYTHONIOENCODING": "utf-8"}
    run = [sys.executable, "-c", code]
    both = [subprocess.Popen(run, env=environment, stdout=subprocess.PIPE, encoding="utf-8") for _ in range(2)]
    (yaml,) = {Path(process.communicate(timeout=60)[0].strip()) for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert [path.name for path in yaml.parent.parent.iterdir()] == [yaml.parent.name]
    images = sorted((yaml.parent / "images").rglob("*.jpg"))
    assert len(images) == 59
    for image in images:
        assert image.read_bytes() == (built.parent / image.relative_to(yaml.parent)).read_bytes()


def test_the_pixels_are_those_of_this_name():
    # Scores of different drawings must not be compared: whoever changes what is drawn gives `builtin._NAME` a new number.
    drawn = hashlib.sha256()
    for index in range(12):
        image, boxes, _ = draw_scene(np.random.default_rng([builtin._SEED, 0, index]))
        drawn.update(image.tobytes() + "".join(f"{value:.6f} " for row in boxes for value in row).encode())
    assert (builtin._NAME, drawn.hexdigest()[:16]) == ("shapes-v1", "a68754629f5b9d01")


def test_builds_are_equal_to_the_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(builtin, "SPLITS", {"train": 40, "val": 9, "test": 3})
    one, two = (builtin_dataset(tmp_path / name).parent for name in ("one", "two"))
    assert _digest(one) == _digest(two)


def test_a_set_that_another_process_finished_first_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(builtin, "SPLITS", {"train": 2, "val": 1})
    build = builtin._build

    def slower(folder: Path, name: str) -> None:
        monkeypatch.setattr(builtin, "_build", build)
        (builtin_dataset(tmp_path).parent / "kept").touch()
        build(folder, name)

    monkeypatch.setattr(builtin, "_build", slower)
    assert (builtin_dataset(tmp_path).parent / "kept").is_file()


def test_every_class_is_in_every_split_and_none_dominates(dataset):
    assert {split: len(getattr(dataset, split)) for split in SPLITS} == SPLITS
    assert dataset.names == CLASSES
    assert dataset.problems == ()
    for split in SPLITS:
        labels = [read_labels(image, dataset.nc)[:, 0] for image in getattr(dataset, split)]
        counts = Counter(np.concatenate(labels).astype(int).tolist())
        assert set(counts) == set(range(dataset.nc))
        assert max(counts.values()) < 2.5 * min(counts.values())
        assert 1 <= np.mean(list(map(len, labels))) <= 7


def test_boxes_lie_inside_the_image_and_are_of_many_sizes(dataset):
    boxes = np.concatenate([read_labels(image, dataset.nc)[:, 1:] for image in dataset.train])
    low, high = boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2
    assert low.min() > -1e-5
    assert high.max() < 1 + 1e-5
    longer = boxes[:, 2:].max(axis=1)
    assert np.quantile(longer, 0.1) < 0.16
    assert np.quantile(longer, 0.9) > 0.25


def test_boxes_are_tight_around_crosses(dataset):
    """A cross has one plain colour, that of its centre: count where that colour is, around and inside the box."""
    errors = []
    for image in dataset.train:
        pixels = cv2.imread(str(image)).astype(int)
        for label, *box in read_labels(image, dataset.nc).tolist():
            x, y, width, height = (share * SIDE for share in box)
            if not CLASSES[int(label)].startswith("cross") or max(width, height) > 1.2 * min(width, height):
                continue  # partly hidden
            colour = np.median(pixels[round(y) - 2 : round(y) + 3, round(x) - 2 : round(x) + 3], axis=(0, 1))
            like = (np.abs(pixels - colour).sum(axis=2) < 60).astype(np.uint8)
            _, parts = cv2.connectedComponents(cv2.medianBlur(like, 3))
            rows, columns = np.nonzero(parts == parts[round(y), round(x)])
            found = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            errors.append(np.abs(found - [x - width / 2, y - height / 2, x + width / 2, y + height / 2]).max())
    assert len(errors) > 100
    assert np.median(errors) <= 2  # pixels


def test_with_polygons_it_is_the_same_set(built, tmp_path, monkeypatch):
    monkeypatch.setattr(builtin, "SPLITS", {"train": 60, "val": 4})
    yaml = builtin_dataset(tmp_path, polygons=True)
    dataset = read_dataset(yaml, polygons=True)
    assert dataset.names == CLASSES
    off, holes = [], 0
    for image in dataset.train:
        twin = built.parent / image.relative_to(yaml.parent)
        assert image.read_bytes() == twin.read_bytes()
        boxes, polygons = read_labels(twin, dataset.nc), read_polygons(image, dataset.nc)
        assert read_labels(image, dataset.nc)[:, 0].tolist() == boxes[:, 0].tolist()
        for (label, *box), polygon in zip(boxes, polygons, strict=True):
            low, high = polygon.min(0), polygon.max(0)
            off.append(np.abs([*(low + high) / 2, *(high - low)] - np.array(box)) * SIDE)
            holes += CLASSES[int(label)] == "ring"
    assert holes > 10
    assert np.max(off) <= 1.01  # pixels: an outline runs through the middles of an object's outermost pixels


def test_an_outline_drawn_again_is_the_object(monkeypatch):
    seen = []
    monkeypatch.setattr(scenes, "_outline", lambda visible, trace=scenes._outline: seen.append((visible, trace(visible))))
    for index in range(20):
        draw_scene(np.random.default_rng([1, index]))
    shares = []
    for visible, outline in seen:
        drawn = np.zeros((SIDE, SIDE), np.uint8)
        cv2.fillPoly(drawn, [(outline * SIDE).astype(np.int32)], 1)
        shares.append((drawn.astype(bool) & visible).sum() / (drawn.astype(bool) | visible).sum())
    assert len(shares) > 60
    assert np.min(shares) > 0.9
    assert np.median(shares) == 1.0


def test_an_incomplete_set_is_built_again(built, tmp_path, monkeypatch):
    monkeypatch.setattr(builtin, "SPLITS", {"train": 2, "val": 1})
    yaml = builtin_dataset(tmp_path)
    first = _digest(yaml.parent)
    next((yaml.parent / "images").rglob("*.jpg")).unlink()
    assert builtin_dataset(tmp_path) == yaml
    assert _digest(yaml.parent) == first
    assert [path.name for path in yaml.parent.parent.iterdir()] == [yaml.parent.name]


def test_a_cache_that_cannot_be_written_is_explained(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("NAS_CACHE", str(tmp_path / "file"))
    assert cache_root() == tmp_path / "file"
    with pytest.raises(InputError, match=r"cannot write the built-in dataset to .*file") as caught:
        builtin_dataset()
    assert "NAS_CACHE" in str(caught.value.hint)
