"""A tiny detection set in memory: rectangles of one colour per class, easy enough to learn in seconds."""

import os
import tempfile
from collections.abc import Callable

os.environ.setdefault("YOLO_OFFLINE", "1")
os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.mkdtemp())

import numpy as np
import pytest
import torch

from nas.yolo.decode import Images

torch.set_num_threads(1)
COLOURS = ((230, 40, 40), (40, 230, 40), (40, 40, 230))


def draw(count: int, imgsz: int, seed: int) -> Images:
    random = np.random.default_rng(seed)
    pixels = random.integers(60, 120, (count, 3, imgsz, imgsz), dtype=np.uint8)
    labels = []
    for image in pixels:
        boxes = []
        for half in (0, imgsz // 2):  # one in the left half and one in the right: they never overlap
            kind = int(random.integers(len(COLOURS)))
            w, h = random.integers(imgsz // 5, imgsz // 2 - 2, 2)
            x, y = half + random.integers(imgsz // 2 - w), random.integers(imgsz - h)
            image[:, y : y + h, x : x + w] = np.array(COLOURS[kind])[:, None, None]
            boxes.append([kind, (x + w / 2) / imgsz, (y + h / 2) / imgsz, w / imgsz, h / imgsz])
        labels.append(np.array(boxes, np.float32))
    return Images(pixels, labels)


@pytest.fixture
def rectangles() -> Callable[[int, int, int], Images]:
    """`rectangles(count, imgsz, seed)`."""
    return draw
