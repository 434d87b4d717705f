"""Rows of whole backbones and MQAELAN in Ultralytics' hands: a model YAML with them builds, trains and fuses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from block_cases import shaken
from torch import nn
from ultralytics.nn import tasks
from ultralytics.utils.torch_utils import intersect_dicts

from nas.blocks.catalog import ROWS
from nas.space.architecture import Architecture, model_yaml
from nas.space.skeleton import read_skeleton
from nas.yolo.build import build, inference_form, parameters
from nas.yolo.stage import Stage

REPVIT = [
    [-1, 1, "RepViTStem", [16]],
    [-1, 2, "RepViT", [16]],
    [-1, 1, "RepViTDown", [24]],
    [-1, 2, "RepViT", [24]],
    [-1, 1, "RepViTDown", [32, {"kernel": 5}]],
    [-1, 3, "RepViT", [32]],
    [-1, 1, "RepViTDown", [48]],
    [-1, 2, "RepViT", [48]],
]
EFFICIENTVIT = [
    [-1, 1, "EfficientViTStem", [8]],
    [-1, 2, "EfficientViTConv", [16]],
    [-1, 2, "EfficientViTConv", [24, {"ratio": 3.0}]],
    [-1, 1, "EfficientViTDown", [32]],
    [-1, 2, "EfficientViT", [32]],
    [-1, 1, "EfficientViTDown", [64]],
    [-1, 2, "EfficientViT", [64]],
]
ELAN = [
    [-1, 1, "Conv", [16, 3, 2]],
    [-1, 1, "Conv", [16, 3, 2]],
    [-1, 1, "Conv", [24, 3, 2]],
    [-1, 1, "MQAELAN", [24, {"heads": 2, "key_dim": 8}]],
    [-1, 1, "ADown", [32]],
    [-1, 2, "MQAELAN", [32, {"ratio": 1.0, "key_dim": 8}]],
    [-1, 1, "ADown", [48]],
    [-1, 1, "MQAELAN", [40]],
]
BACKBONES = {"repvit": (REPVIT, (3, 5, 7)), "efficientvit": (EFFICIENTVIT, (2, 4, 6)), "mqa_elan": (ELAN, (3, 5, 7))}


def detector(rows: list[list[Any]], ends: tuple[int, ...]) -> dict[str, Any]:
    return {"nc": 3, "legacy": False, "backbone": copy.deepcopy(rows), "head": [[list(ends), 1, "Detect", [3]]]}


@pytest.mark.parametrize("name", BACKBONES)
def test_a_detector_on_them_builds_trains_and_fuses(name: str) -> None:
    rows, ends = BACKBONES[name]
    torch.manual_seed(0)
    model = build(detector(rows, ends))
    assert model.stride.tolist() == [8, 16, 32]
    for layer, (module, row) in enumerate(zip(model.model, rows, strict=False)):
        if row[2] in ROWS:
            assert type(module) is Stage
            assert type(module.block) is ROWS[row[2]].load()
            assert (module.i, module.f, module.type, module.np) == (layer, -1, row[2], parameters(module))
    outputs = model.train()(torch.rand(2, 3, 64, 96))
    sum(t.square().mean() for t in outputs.values() if isinstance(t, torch.Tensor)).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []

    shaken(model).double()
    images = torch.rand(1, 3, 96, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = model(images)[0]
        single = inference_form(model)
        fused = model.fuse(verbose=False)
        assert not any(isinstance(module, nn.BatchNorm2d) for model in (fused, single) for module in model.modules())
        assert fused.is_fused()
        assert (fused(images)[0] - expected).abs().max() <= 1e-12 * expected.abs().max()
        assert (single(images.float()) - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_mqa_elan_in_every_backbone_slot_of_yolov9c() -> None:
    skeleton = read_skeleton("yolov9c.yaml")
    data = model_yaml(skeleton, Architecture(skeleton.name), nc=1)
    stock = tasks.DetectionModel(copy.deepcopy(data), verbose=False)
    for layer, ratio in ((2, 0.5), (4, 0.5), (6, 1.0), (8, 1.0)):
        assert data["backbone"][layer][2] == "RepNCSPELAN4"
        data["backbone"][layer][2:] = ["MQAELAN", [data["backbone"][layer][3][0], {"ratio": ratio}]]
    model = build(data)
    assert parameters(stock) == 25_530_003
    assert [model.model[layer].np for layer in (2, 4, 6, 8)] == [249_472, 773_376, 2_119_168, 2_119_168]
    assert parameters(model) == 24_015_763
    # its inner names are those of the stock layer, yet none of that layer's weights is taken for one of them
    taken = intersect_dicts(stock.state_dict(), model.state_dict())
    replaced = tuple(f"model.{layer}." for layer in (2, 4, 6, 8))
    assert set(taken) == {key for key in stock.state_dict() if not key.startswith(replaced)}
