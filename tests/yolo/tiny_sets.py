"""Datasets of a few bright rectangles for every task of Ultralytics, in its own formats."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import yaml

SIDE = 96
COUNT = 8


def _scene(index: int) -> tuple[np.ndarray, int, tuple[int, int, int, int]]:
    """An image with one rectangle, its class (by its colour), its corners x0, y0, x1, y1."""
    rng = np.random.default_rng(index)
    image = rng.integers(0, 60, (SIDE, SIDE, 3), dtype=np.uint8)
    x0, y0 = rng.integers(4, 30, 2)
    x1, y1 = rng.integers(50, 90, 2)
    label = index % 2
    image[y0:y1, x0:x1] = (60, 60, 230) if label else (230, 60, 60)
    return image, label, (int(x0), int(y0), int(x1), int(y1))


def _line(task: str, label: int, x0: float, y0: float, x1: float, y1: float) -> str:
    corners = [x0, y0, x1, y0, x1, y1, x0, y1]
    centre = [(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0]
    values = {
        "detect": centre,
        "segment": corners,
        "obb": corners,
        "pose": [*centre, x0, y0, 2, x1, y1, 2],
    }[task]
    return " ".join([str(label), *(f"{value:.5f}" for value in values)])


def tiny_set(folder: Path, task: str) -> Path:
    """Write the set; returns what Ultralytics' `data` takes: the YAML, or the folder for classification."""
    for split in ("train", "val"):
        for index in range(COUNT):
            image, label, box = _scene(index)
            if task == "classify":
                place = folder / split / ("blue", "red")[label]
                place.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(place / f"{index}.png"), image)
                continue
            for part in ("images", "labels", "masks"):
                (folder / part / split).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / "images" / split / f"{index}.png"), image)
            if task == "semantic":
                mask = np.zeros((SIDE, SIDE), np.uint8)
                mask[box[1] : box[3], box[0] : box[2]] = label + 1
                cv2.imwrite(str(folder / "masks" / split / f"{index}.png"), mask)
            else:
                line = _line(task, label, *(value / SIDE for value in box))
                (folder / "labels" / split / f"{index}.txt").write_text(line + "\n", encoding="utf-8")
    if task == "classify":
        return folder
    names = ["ground", "blue", "red"] if task == "semantic" else ["blue", "red"]
    data = {"path": str(folder), "train": "images/train", "val": "images/val", "names": dict(enumerate(names))}
    data |= {"masks_dir": "masks"} if task == "semantic" else {}
    data |= {"kpt_shape": [2, 3], "flip_idx": [0, 1]} if task == "pose" else {}
    (folder / "data.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")
    return folder / "data.yaml"
