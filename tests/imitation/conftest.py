"""A small teacher, trained for a moment on the images of `tests/training/conftest.py`'s kind: its numbers do not matter."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nas.imitation.norms import settle_norms
from nas.imitation.teacher import teacher_of
from nas.space.architecture import Architecture, model_yaml
from nas.space.skeleton import read_skeleton
from nas.yolo.build import build
from nas.yolo.decode import Images

torch.set_num_threads(1)
NAMES = ("one", "two", "three")


def draw(count: int, imgsz: int, seed: int, *, polygons: bool = False) -> Images:
    """Images with one bright rectangle each."""
    random = np.random.default_rng(seed)
    pixels = random.integers(60, 120, (count, 3, imgsz, imgsz), dtype=np.uint8)
    labels, outlines = [], []
    for image in pixels:
        kind, (w, h) = int(random.integers(3)), random.integers(imgsz // 4, imgsz // 2, 2)
        x, y = random.integers(imgsz - w), random.integers(imgsz - h)
        image[kind, y : y + h, x : x + w] = 240
        labels.append(np.array([[kind, (x + w / 2) / imgsz, (y + h / 2) / imgsz, w / imgsz, h / imgsz]], np.float32))
        outlines.append([np.array([(x, y), (x + w, y), (x + w, y + h), (x, y + h)], np.float32)])
    return Images(pixels, labels, polygons=outlines if polygons else None)


def lively(model: Any, seed: int = 0) -> Any:
    """Norms whose scales and shifts are none of one and zero, as after a training."""
    random = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.copy_(torch.rand(module.weight.shape, generator=random) + 0.5)
            module.bias.data.copy_(torch.rand(module.bias.shape, generator=random) - 0.5)
    return model


def trained(name: str, seed: int = 0) -> tuple[Mapping[str, Any], Any]:
    """A skeleton's YAML for three classes, and a teacher of it that has never seen an image."""
    skeleton = read_skeleton(name)
    yaml = model_yaml(skeleton, Architecture(skeleton.name), 3)
    torch.manual_seed(seed)
    model = lively(build(yaml))
    settle_norms(model, [torch.from_numpy(draw(8, 64, 9).pixels).float() / 255])
    return yaml, teacher_of(model)


@pytest.fixture
def images() -> Callable[..., Images]:
    return draw


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "library"
