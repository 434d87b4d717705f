"""Parameter counts: those of the papers' reference code (golden.json) and the closed forms behind them.

golden.json: one row per reference block of stride 1. `train` is the count of the reference; `fused`, where given, that
of the inference form which folds the same things as ours.
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
from nas.blocks.efficientvit import EfficientViTUnit
from nas.blocks.irmb import IRMBUnit
from nas.blocks.mobile_mqa import MobileMQAUnit
from nas.blocks.repvit import RepViTUnit
from nas.blocks.riformer import RIFormerUnit

GOLDEN = json.loads(Path(__file__).with_name("golden.json").read_text())


def count(unit: nn.Module) -> int:
    return sum(p.numel() for p in unit.parameters())


def fused(unit: nn.Module) -> nn.Module:
    """The unit, fused as its stage does it."""
    fuse_children(nn.Sequential(unit))
    return unit


@pytest.mark.parametrize("row", GOLDEN, ids=[f"{row['reference']}-{i}" for i, row in enumerate(GOLDEN)])
def test_golden(row):
    module, _, name = row["unit"].partition(":")
    options = {k: getattr(nn, v) if k == "act" else v for k, v in row["options"].items()}
    unit = getattr(import_module(f"nas.blocks.{module}"), name)(**options).eval()
    assert count(unit) == row["train"]
    channels = options["channels"]
    with torch.no_grad():
        assert unit(torch.zeros(1, channels, *row["hw"])).shape == (1, channels, *row["hw"])
    if row["fused"] is not None:
        assert count(fused(unit)) == row["fused"]


eights = st.integers(1, 12).map(lambda k: 8 * k)
ratios = st.sampled_from([0.5, 1.0, 1.5, 2.0, 2.5, 4.0])
odds = st.sampled_from([3, 5, 7])
few = settings(max_examples=20, deadline=None, derandomize=True)


@few
@given(c=eights, r=ratios)
def test_riformer(c, r):
    h = int(r * c)
    unit = RIFormerUnit(c, r)
    assert count(unit) == 2 * h * c + h + 9 * c
    assert count(fused(unit)) == 2 * h * c + h + 5 * c


@few
@given(c=eights, r=ratios, heads=st.integers(1, 4), s=st.lists(odds, min_size=1, max_size=2))
def test_efficientvit(c, r, heads, s):
    d, m, n = c // heads, int(r * c), len(s)
    t = heads * d
    unit = EfficientViTUnit(c, heads, d, r, s)
    before = count(unit)
    attention = 3 * c * t + sum(3 * t * k * k + 3 * t * d for k in s) + (1 + n) * t * c + 2 * c
    assert before == attention + c * m + m + 9 * m + m + m * c + 2 * c
    assert count(fused(unit)) == before - 2 * c


@few
@given(c=eights, r=ratios, k=odds, se=st.booleans())
def test_repvit(c, r, k, se):
    h, rd = int(r * c), max(8, int((c / 4 + 4) / 8) * 8)
    gate = (2 * c * rd + rd + c) * se
    unit = RepViTUnit(c, r, k, se)
    assert count(unit) == (6 + k * k) * c + 2 * c * h + 2 * h + 2 * c + gate
    assert count(fused(unit)) == (1 + k * k) * c + 2 * c * h + h + c + gate


@few
@given(c=eights, r=ratios, k=odds, bias=st.booleans(), attention=st.booleans(), pre=st.booleans())
def test_irmb(c, r, k, bias, attention, pre):
    m = int(r * c)
    unit = IRMBUnit(c, ratio=r, kernel=k, qkv_bias=bias, attention=attention, attn_pre=pre)
    before = count(unit)
    mixing = (2 * c * c + 2 * c * bias) * attention
    assert before == 2 * c + mixing + c * m + m * bias + k * k * m + 2 * m + m * c
    assert count(fused(unit)) == before - m


@few
@given(c=eights, heads=st.integers(1, 8), d=eights, s=st.sampled_from([1, 2, 4]))
def test_mobile_mqa(c, heads, d, s):
    unit = MobileMQAUnit(c, heads, d, s)
    plain = 2 * c * heads * d + 2 * c * d
    assert count(unit) == plain + 3 * c + (22 * c if s > 1 else 0)
    assert count(fused(unit)) == plain + (22 * c if s > 1 else (heads + 2) * d)
