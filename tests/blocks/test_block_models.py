"""The papers' whole nets, rebuilt from our units in a few lines each: they have the references' parameters.

Totals: mmpretrain (RIFormer), timm 1.0.31 (RepViT, with its two classifiers; EfficientViT), zhangzjn/EMO. 1000 classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from block_cases import shaken
from torch import nn

from nas.blocks.common import ConvNorm, LayerScale, SqueezeExcite, fuse_children
from nas.blocks.efficientvit import EfficientViT, EfficientViTConv, EfficientViTDown, EfficientViTStem
from nas.blocks.irmb import IRMBUnit, LayerNorm2d
from nas.blocks.repvit import RepViT, RepViTDown, RepViTStem
from nas.blocks.riformer import RIFormer


def riformer(widths: Sequence[int], depths: Sequence[int]) -> nn.Sequential:
    entries = [nn.Conv2d(3, widths[0], 7, 4, 2)]
    entries += [nn.Conv2d(c1, c2, 3, 2, 1) for c1, c2 in pairwise(widths)]
    stages = [nn.Sequential(entry, RIFormer(c, c, depth)) for entry, c, depth in zip(entries, widths, depths, strict=True)]
    return nn.Sequential(*stages, nn.GroupNorm(1, widths[-1]))


def repvit(widths: Sequence[int], depths: Sequence[int]) -> nn.Sequential:
    stages = [nn.Sequential(RepViT(widths[0], widths[0], depths[0]))]
    for (c1, c2), depth in zip(pairwise(widths), depths[1:], strict=True):
        stages.append(nn.Sequential(RepViTDown(c1, c2), RepViT(c2, c2, depth)))
    return nn.Sequential(RepViTStem(3, widths[0]), *stages)


def efficientvit(widths: Sequence[int], depths: Sequence[int]) -> nn.Sequential:
    stages: list[nn.Module] = [EfficientViTStem(3, widths[0], depths[0])]
    for stage in (1, 2):
        stages.append(EfficientViTConv(widths[stage - 1], widths[stage], depths[stage]))
    for stage in (3, 4):
        c1, c2 = widths[stage - 1], widths[stage]
        stages.append(nn.Sequential(EfficientViTDown(c1, c2), EfficientViT(c2, c2, depths[stage])))
    return nn.Sequential(*stages)


def emo(widths: Sequence[int], depths: Sequence[int], ratios: Sequence[float], head_dims: Sequence[int]) -> nn.Sequential:
    patches = ConvNorm(3, 24, 3, stride=2)
    patches.filter = nn.Conv2d(3, 24, 3, 2, 1)  # this one has a bias
    local = nn.Sequential(ConvNorm(24, 24, 3, groups=24, act=nn.SiLU()), SqueezeExcite(24, 24, nn.SiLU()))
    stages: list[nn.Module] = [nn.Sequential(patches, local, nn.Conv2d(24, 24, 1, bias=False))]
    c1 = 24
    for stage, (c2, depth, ratio, head_dim) in enumerate(zip(widths, depths, ratios, head_dims, strict=True)):
        late = stage > 1
        how = {"kernel": 5, "norm": "ln2d", "act": nn.GELU, "qkv_bias": True} if late else {"kernel": 3, "qkv_bias": True}
        units = [IRMBUnit(c1, c2, stride=2, ratio=2 * ratio, attention=False, **how)]
        units += [IRMBUnit(c2, c2, ratio=ratio, attention=late, heads=c2 // head_dim, **how) for _ in range(depth - 1)]
        stages.append(nn.Sequential(*units))
        c1 = c2
    return nn.Sequential(*stages, LayerNorm2d(c1))


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def count_fused(model: nn.Sequential) -> int:
    """Parameters of the inference form, after a check that it is one, of a net whose channels fit."""
    torch.manual_seed(0)
    shaken(model).double()
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = model(x)
        fuse_children(model)
        assert (model(x) - expected).norm() < 1e-9 * expected.norm()
    assert expected.shape[2:] == (2, 2)
    return count(model)


def test_riformer_s12() -> None:
    model = riformer((64, 128, 320, 512), (2, 2, 6, 2))
    head = 512 * 1000 + 1000
    scales = sum(count(module) for module in model.modules() if isinstance(module, LayerScale))
    assert count(model) == 11_408_832
    assert count(model) + head == 11_921_832
    # the paper's inference form keeps the layer scales, which ours folds too
    assert count_fused(model) + scales + head == 11_915_176


REPVIT = {
    "M0.9": ((48, 96, 192, 384), (2, 2, 14, 2), (11_160, 22_048, 135_480, 2_458_896, 2_090_208), 5_489_328, 5_067_056),
    "M1.0": ((56, 112, 224, 448), (2, 2, 14, 2), None, 7_302_796, 6_810_312),
    "M1.1": ((64, 128, 256, 512), (2, 2, 12, 2), (19_488, 37_584, 237_984, 3_775_360, 3_704_448), 8_802_912, 8_244_312),
    "M1.5": ((64, 128, 256, 512), (4, 4, 24, 4), None, 14_644_432, 14_049_992),
    "M2.3": ((80, 160, 320, 640), (6, 6, 34, 2), None, 23_688_792, 22_926_792),
}


@pytest.mark.parametrize("name", REPVIT)
def test_repvit(name: str) -> None:
    widths, depths, stages, train, fused = REPVIT[name]
    model = repvit(widths, depths)
    assert stages is None or tuple(count(stage) for stage in model) == stages
    classifier = 1000 * widths[-1] + 1000
    assert count(model) + 2 * (2 * widths[-1] + classifier) == train  # two, each after a batch norm
    assert count_fused(model) + classifier == fused


EFFICIENTVIT = {
    "B0": ((8, 16, 32, 64, 128), (1, 2, 2, 2, 2), (400, 4_128, 13_888, 142_208, 521_984), (1024, 1280), 3_410_008, 3_407_328),
    "B1": (
        (16, 32, 64, 128, 256),
        (1, 2, 3, 3, 4),
        (928, 13_888, 86_528, 756_864, 3_785_728),
        (1536, 1600),
        9_102_024,
        9_095_320,
    ),
}


@pytest.mark.parametrize("name", EFFICIENTVIT)
def test_efficientvit(name: str) -> None:
    widths, depths, stages, (wide, hidden), train, fused = EFFICIENTVIT[name]
    model = efficientvit(widths, depths)
    assert tuple(count(stage) for stage in model) == stages
    # 1x1 convolution with a batch norm, linear layer with a layer norm, linear layer
    classifier = widths[-1] * wide + 2 * wide + wide * hidden + 2 * hidden + hidden * 1000 + 1000
    assert count(model) + classifier == train
    assert count_fused(model) + classifier - wide == fused


EMO = {
    "1M": (
        ((32, 48, 80, 168), (2, 2, 8, 3), (2.0, 2.5, 3.0, 3.5), (16, 16, 20, 21)),
        (2_760, 11_504, 27_840, 452_704, 697_024),
        1_361_168,
        1_356_952,
    ),
    "2M": (
        ((32, 48, 120, 200), (3, 3, 9, 3), (2.0, 2.5, 3.0, 3.5), (16, 16, 20, 20)),
        (2_760, 16_432, 40_896, 1_062_624, 1_053_360),
        2_377_472,
        2_371_368,
    ),
    "5M": (
        ((48, 72, 160, 288), (3, 3, 9, 3), (2.0, 3.0, 4.0, 4.0), (24, 24, 32, 32)),
        (2_760, 29_040, 105_792, 2_346_384, 2_335_296),
        5_108_848,
        5_098_488,
    ),
}


@pytest.mark.parametrize("name", EMO)
def test_emo(name: str) -> None:
    design, stages, train, fused = EMO[name]
    model = emo(*design)
    assert tuple(count(stage) for stage in model)[:-1] == stages
    classifier = design[0][-1] * 1000 + 1000
    assert count(model) + classifier == train
    assert count_fused(model) + classifier == fused
