"""Our units beside timm's, with timm's weights: the same outputs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from block_cases import shaken
from timm.layers import MultiQueryAttention2d
from timm.models import efficientvit_mit as mit
from timm.models import metaformer
from timm.models import repvit as thu
from timm.models._efficientnet_blocks import MobileAttention
from torch import Tensor, nn

from nas.blocks.common import fuse_children
from nas.blocks.efficientvit import (
    EfficientViT,
    EfficientViTConv,
    EfficientViTDown,
    EfficientViTStem,
    EfficientViTUnit,
    LiteMLA,
)
from nas.blocks.mobile_mqa import MobileMQAUnit, MultiQueryAttention
from nas.blocks.repvit import RepViT, RepViTDown, RepViTStem, RepViTUnit
from nas.blocks.riformer import RIFormerUnit

BN, HARDSWISH, GELU = nn.BatchNorm2d, nn.Hardswish, nn.GELU
Pair = tuple[Callable[[], nn.Module], Callable[[], nn.Module]]

# ours, timm's; both of 48 channels in
EXACT: dict[str, Pair] = {
    **{
        f"RepViTBlock-k{kernel}{'-se' * se}": (
            lambda kernel=kernel, se=se: RepViTUnit(48, 2.0, kernel, se),
            lambda kernel=kernel, se=se: thu.RepViTBlock(48, 2, kernel, se, GELU),
        )
        for kernel in (3, 5, 7)
        for se in (False, True)
    },
    "RepVitStem": (lambda: RepViTStem(48, 64), lambda: thu.RepVitStem(48, 64, GELU)),
    "RepVitDownsample": (lambda: RepViTDown(48, 96), lambda: thu.RepVitDownsample(48, 2, 96, 3, GELU)),
    "RepVitDownsample-k5": (lambda: RepViTDown(48, 96, kernel=5), lambda: thu.RepVitDownsample(48, 2, 96, 5, GELU)),
    "RepVitStage": (
        lambda: nn.Sequential(RepViTDown(48, 96), RepViT(96, 96, 3)),
        lambda: thu.RepVitStage(48, 96, 3, 2, GELU),
    ),
    "MobileAttention": (
        lambda: MobileMQAUnit(48, 8, 12),
        lambda: MobileAttention(48, 48, num_heads=8, key_dim=12, value_dim=12, use_multi_query=True),
    ),
    "MobileAttention-keys-strided": (
        lambda: MobileMQAUnit(48, 4, 16, kv_stride=2),
        lambda: MobileAttention(48, 48, num_heads=4, key_dim=16, value_dim=16, use_multi_query=True, kv_stride=2),
    ),
    "MobileAttention-queries-strided": (
        lambda: MobileMQAUnit(48, 4, 16, q_stride=2),
        lambda: MobileAttention(48, 48, num_heads=4, key_dim=16, value_dim=16, use_multi_query=True, query_strides=2),
    ),
    "MultiQueryAttention2d": (
        lambda: MultiQueryAttention(48, 8, 48),
        lambda: MultiQueryAttention2d(48, num_heads=8, key_dim=48, value_dim=48),
    ),
    "MultiQueryAttention2d-all-strided": (
        lambda: MultiQueryAttention(48, 4, 16, kv_stride=2, q_stride=2),
        lambda: MultiQueryAttention2d(48, num_heads=4, key_dim=16, value_dim=16, kv_stride=2, query_strides=2),
    ),
    "EfficientVit-Stem": (lambda: EfficientViTStem(48, 32, 2), lambda: mit.Stem(48, 32, 2, BN, HARDSWISH)),
    "EfficientVitStage": (
        lambda: EfficientViTConv(48, 32, 3),
        lambda: mit.EfficientVitStage(48, 32, 3, BN, HARDSWISH, 4, 16),
    ),
    "EfficientVit-MBConv": (
        lambda: EfficientViTDown(48, 64),
        lambda: mit.EfficientVitStage(48, 64, 0, BN, HARDSWISH, 4, 16, vit_stage=True),
    ),
    # RIFormer's inference form is a MetaFormer without a token mixer
    "MetaFormerBlock": (
        lambda: fused(RIFormerUnit(48)),
        lambda: metaformer.MetaFormerBlock(48, nn.Identity, GELU, mlp_bias=True, norm_layer=metaformer.GroupNorm1),
    ),
}
# timm's LiteMLA computes in float32 whatever it is given
SINGLE: dict[str, Pair] = {
    "LiteMLA": (lambda: LiteMLA(48, 3, 16), lambda: mit.LiteMLA(48, 48, dim=16, norm_layer=(None, BN))),
    "LiteMLA-two-scales": (
        lambda: LiteMLA(48, 3, 16, (3, 5)),
        lambda: mit.LiteMLA(48, 48, dim=16, norm_layer=(None, BN), scales=(3, 5)),
    ),
    "EfficientVitBlock": (lambda: EfficientViTUnit(48, 3, 16), lambda: mit.EfficientVitBlock(48, head_dim=16)),
    "EfficientVitStage-attention": (
        lambda: nn.Sequential(EfficientViTDown(48, 64), EfficientViT(64, 64, 2)),
        lambda: mit.EfficientVitStage(48, 64, 2, BN, HARDSWISH, 4, 16, vit_stage=True),
    ),
}


def fused(unit: nn.Module) -> nn.Module:
    fuse_children(nn.Sequential(unit))
    return unit


def pair(builders: Pair) -> tuple[nn.Module, nn.Module]:
    """Ours with the (shaken) weights and statistics of timm's, which have the same order and shapes."""
    torch.manual_seed(0)
    ours, theirs = builders[0]().eval(), shaken(builders[1]())
    mine, foreign = ours.state_dict(), theirs.state_dict()
    assert [t.shape for t in mine.values()] == [t.shape for t in foreign.values()]
    ours.load_state_dict(dict(zip(mine, foreign.values(), strict=True)))
    return ours, theirs


def image(h: int, w: int) -> Tensor:
    return torch.randn(2, 48, h, w, dtype=torch.float64)


@pytest.mark.parametrize("case", EXACT)
@torch.no_grad()
def test_outputs_are_timms(case: str) -> None:
    ours, theirs = pair(EXACT[case])
    odd = case not in {"MobileAttention-queries-strided", "MultiQueryAttention2d-all-strided"}  # timm needs even maps there
    for size in ((14, 20), (7, 5) if odd else (8, 6)):
        x = image(*size)
        y = theirs.double()(x)
        torch.testing.assert_close(ours.double()(x), y, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(ours.float()(x.float()), theirs.float()(x.float()), rtol=1e-5, atol=1e-5)
        assert y.std() > 0.1


@pytest.mark.parametrize("case", SINGLE)
@torch.no_grad()
def test_outputs_are_timms_with_the_same_eps(case: str) -> None:
    """Ours adds its eps to a mean over the pixels, timm's to their sum; with one eps the functions are the same."""
    ours, theirs = pair(SINGLE[case])
    x = image(14, 20).float()
    tokens = 14 * 20 // (4 if "Stage" in case else 1)
    own = theirs(x)
    for module in theirs.modules():
        if isinstance(module, mit.LiteMLA):
            assert module.eps == 1e-5
            module.eps = LiteMLA.eps * tokens
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    assert (own - ours(x)).norm() < 1e-3 * own.norm()
