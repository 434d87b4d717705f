"""Parameter counts: those of the papers' reference code (golden.json) and the closed forms behind them.

golden.json: one row per block, or part of one, of a reference. `train` and `fused` are the reference's counts.
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nas.blocks.common import fuse_children
from nas.blocks.efficientvit import EfficientViT, EfficientViTConv, EfficientViTDown, EfficientViTStem, EfficientViTUnit
from nas.blocks.irmb import IRMB, IRMBUnit
from nas.blocks.mobile_mqa import MobileMQA
from nas.blocks.repvit import RepViT, RepViTDown, RepViTStem
from nas.blocks.riformer import RIFormer
from nas.yolo.mqa_elan import MQAELAN

GOLDEN = json.loads(Path(__file__).with_name("golden.json").read_text())


def count(unit: nn.Module) -> int:
    return sum(p.numel() for p in unit.parameters())


def fused(unit: nn.Module) -> nn.Module:
    """The unit, fused as its stage does it."""
    fuse_children(nn.Sequential(unit))
    return unit


def folded_beyond(reference: str, options: dict) -> int:
    """Parameters that our inference form folds away and the reference's leaves (less the biases that this adds)."""
    c = options.get("channels", 0)
    biases = (options.get("heads", 0) + 2) * options.get("key_dim", 0)
    if reference == "RIFormerBlock(mmpretrain)":
        return 2 * c  # both layer scales
    queries = 2 * c if options.get("q_stride", 1) > 1 else 0  # the norm of the queries
    if reference == "MultiQueryAttention2d(timm)":
        return queries - (options["heads"] * options["key_dim"] if queries else 0)
    if reference == "MobileAttention(timm)":
        norm = 2 * c - biases if options.get("kv_stride", 1) == 1 else 0
        return c + norm + queries  # the layer scale and the two norms
    return 0


@pytest.mark.parametrize("row", GOLDEN, ids=[f"{row['reference']}-{i}" for i, row in enumerate(GOLDEN)])
def test_golden(row):
    module, _, name = row["unit"].partition(":")
    options = {k: getattr(nn, v) if k == "act" else v for k, v in row["options"].items()}
    unit = getattr(import_module(f"nas.blocks.{module}"), name)(**options).eval()
    assert count(unit) == row["train"]
    with torch.no_grad():
        assert list(unit(torch.zeros(1, *row["input"])).shape[1:]) == row["output"]
    assert count(fused(unit)) == row["fused"] - folded_beyond(row["reference"], options)


@pytest.mark.parametrize(
    ("c1", "c2", "ratio", "params"), [(128, 256, 0.5, 249_472), (256, 512, 0.5, 773_376), (512, 512, 1.0, 2_119_168)]
)
def test_mqa_elan_has_the_parameters_of_the_recipe(c1, c2, ratio, params):
    assert count(MQAELAN(c1, c2, 1, ratio=ratio)) == params


eights = st.integers(1, 12).map(lambda k: 8 * k)
ratios = st.sampled_from([0.5, 1.0, 1.5, 2.0, 2.5, 4.0])
odds = st.sampled_from([3, 5, 7])
depths = st.integers(1, 4)
few = settings(max_examples=20, deadline=None, derandomize=True)


def assert_counts(block: nn.Module, c1: int, c2: int, train: int, inference: int) -> None:
    """Counts of a stage: those given and, where the channels change, a 1x1 convolution with its norm."""
    assert count(block) == train + (c1 * c2 + 2 * c2) * (c1 != c2)
    assert count(block.fuse()) == inference + (c1 * c2 + c2) * (c1 != c2)


@few
@given(c1=eights, c=eights, n=depths, r=ratios)
def test_riformer(c1, c, n, r):
    h = int(r * c)
    assert_counts(RIFormer(c1, c, n, ratio=r), c1, c, n * (2 * h * c + h + 9 * c), n * (2 * h * c + h + 5 * c))


@few
@given(c1=eights, c=eights, n=depths, r=ratios, heads=st.integers(1, 8), k=odds)
def test_efficientvit(c1, c, n, r, heads, k):
    d, m = c // heads, int(r * c)
    t = heads * d
    attention = 3 * c * t + 3 * t * k * k + 3 * t * d + 2 * t * c + 2 * c
    local = c * m + m + 9 * m + m + m * c + 2 * c
    block = EfficientViT(c1, c, n, heads=heads, ratio=r, kernel=k)
    assert_counts(block, c1, c, n * (attention + local), n * (attention + local - 2 * c))


@few
@given(c=eights, r=ratios, heads=st.integers(1, 4), scales=st.lists(odds, min_size=1, max_size=3))
def test_efficientvit_of_several_scales(c, r, heads, scales):
    d, m = c // heads, int(r * c)
    t = heads * d
    attention = 3 * c * t + sum(3 * t * k * k + 3 * t * d for k in scales) + (1 + len(scales)) * t * c + 2 * c
    assert count(EfficientViTUnit(c, heads, d, r, scales)) == attention + c * m + m + 9 * m + m + m * c + 2 * c


@few
@given(c1=eights, c=eights, n=depths, r=ratios, k=odds, se=st.booleans())
def test_repvit(c1, c, n, r, k, se):
    h, rd = int(r * c), max(8, int((c / 4 + 4) / 8) * 8)
    gates = (2 * c * rd + rd + c) * se * ((n + 1) // 2)  # in every other unit, from the first on
    train = n * ((6 + k * k) * c + 2 * c * h + 2 * h + 2 * c) + gates
    inference = n * ((1 + k * k) * c + 2 * c * h + h + c) + gates
    assert_counts(RepViT(c1, c, n, ratio=r, kernel=k, se=se), c1, c, train, inference)


@few
@given(c1=eights, c=eights, n=depths, r=ratios, k=odds, heads=st.sampled_from([1, 2, 4, 8]), se=st.booleans())
def test_irmb(c1, c, n, r, k, heads, se):
    m = int(r * c)
    gate = (2 * m * round(m / 4) + round(m / 4) + m) * se
    unit = 2 * c + 2 * c * c + c * m + k * k * m + 2 * m + m * c + gate
    block = IRMB(c1, c, n, heads=heads, ratio=r, kernel=k, se=se)
    assert_counts(block, c1, c, n * unit, n * (unit - m))


@few
@given(
    c1=eights, c2=eights, s=st.sampled_from([1, 2]), r=ratios, bias=st.booleans(), attention=st.booleans(), pre=st.booleans()
)
def test_irmb_of_other_forms(c1, c2, s, r, bias, attention, pre):
    m = int(r * c1)
    unit = IRMBUnit(c1, c2, stride=s, ratio=r, qkv_bias=bias, attention=attention, attn_pre=pre)
    before = count(unit)
    mixing = (2 * c1 * c1 + 2 * c1 * bias) * attention
    assert before == 2 * c1 + mixing + c1 * m + m * bias + 9 * m + 2 * m + m * c2
    assert count(fused(unit)) == before - m


@few
@given(
    c1=eights, c=eights, n=depths, heads=st.integers(1, 8), d=eights, kv=st.sampled_from([1, 2, 4]), q=st.sampled_from([1, 2])
)
def test_mobile_mqa(c1, c, n, heads, d, kv, q):
    plain = 2 * c * heads * d + 2 * c * d
    train = plain + 3 * c + (kv > 1) * 22 * c + (q > 1) * 2 * c
    # The first norm stays before strided keys and values (2 c); every other one becomes a bias behind it.
    inference = plain + (20 * c + 2 * c + (q > 1) * heads * d if kv > 1 else (heads + 2) * d)
    assert_counts(MobileMQA(c1, c, n, heads=heads, key_dim=d, kv_stride=kv, q_stride=q), c1, c, n * train, n * inference)


@few
@given(c1=eights, c=eights, n=depths, r=st.sampled_from([0.5, 1.0, 1.5, 2.0]), heads=st.integers(1, 8), d=eights)
def test_mqa_elan(c1, c, n, r, heads, d):
    c3 = int(r * c)
    c4 = c3 // 2
    m = c4 // 2

    def conv(i: int, o: int, k: int, norm: int) -> int:
        return i * o * k * k + norm * o

    for norm in (2, 1):  # a batch norm, a bias
        bottleneck = conv(m, m, 3, norm) + (conv(m, m, 1, norm) if norm == 2 else 0) + conv(m, m, 3, norm)
        csp = 2 * conv(c4, m, 1, norm) + conv(2 * m, c4, 1, norm) + n * bottleneck
        attention = 2 * c4 * heads * d + 2 * c4 * d
        expected = conv(c1, c3, 1, norm) + 2 * (csp + attention) + conv(c3 + 2 * c4, c, 1, norm)
        block = MQAELAN(c1, c, n, heads=heads, ratio=r, key_dim=d)
        assert count(block if norm == 2 else block.fuse()) == expected


@few
@given(c1=eights, c2=eights, n=depths, r=ratios, k=odds)
def test_rows_of_whole_backbones(c1, c2, n, r, k):
    h, m1, m2 = c2 // 2, int(r * c1), int(r * c2)
    before = (6 + k * k) * c1 + 2 * c1 * m1 + 2 * m1 + 2 * c1
    down = (k * k + 2) * c1 + c1 * c2 + 2 * c2 + 2 * c2 * m2 + 2 * m2 + 2 * c2
    first = c1 * m1 + 9 * m1 + m1 * c2 + 4 * m1 + 2 * c2
    more = (n - 1) * (2 * c2 * m2 + 9 * m2 + 4 * m2 + 2 * c2)
    norms = n * c2 + 2 * (m1 + (n - 1) * m2)  # each leaves a bias of half its parameters
    expected = {
        RepViTStem(c1, c2): (9 * c1 * h + 2 * h + 9 * h * c2 + 2 * c2, h + c2),
        RepViTDown(c1, c2, ratio=r, kernel=k): (before + down, 5 * c1 + m1 + c1 + c1 + c2 + m2 + c2),
        EfficientViTStem(c1, c2, n): (9 * c1 * c2 + 2 * c2 + n * (9 * c2 + c2 * c2 + 4 * c2), c2 + 2 * n * c2),
        EfficientViTConv(c1, c2, n, ratio=r): (first + more, norms),
        EfficientViTDown(c1, c2, ratio=r): (c1 * m1 + m1 + 9 * m1 + m1 + m1 * c2 + 2 * c2, c2),
    }
    for block, (train, folded) in expected.items():
        assert count(block) == train
        assert count(block.fuse()) == train - folded
