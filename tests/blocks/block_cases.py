"""Every row of the catalog, with the knobs that change what it computes: what the suites beside this file run over."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nas.blocks.catalog import ROWS

SPECS = {spec.name: spec for spec in ROWS.values()}
ONCE = {"repvit_stem", "repvit_down", "efficientvit_down"}  # rows that cannot be repeated
CASES = [
    *((name, {}) for name in SPECS),
    ("efficientvit", {"heads": 3, "kernel": 3, "ratio": 1.5}),  # 3 heads do not divide 16 channels
    ("repvit", {"se": False, "kernel": 5, "ratio": 2.5}),
    ("repvit", {"kernel": 7}),
    ("repvit_down", {"kernel": 5, "ratio": 1.5}),
    ("irmb", {"heads": 2, "window": 0, "kernel": 5}),
    ("irmb", {"heads": 4, "window": 3, "se": True}),
    ("mobile_mqa", {"heads": 2, "key_dim": 8, "kv_stride": 2}),
    ("mobile_mqa", {"heads": 2, "key_dim": 8, "q_stride": 2}),
    ("mqa_elan", {"heads": 3, "key_dim": 8, "ratio": 1.0}),
]
SIZES = [(7, 5), (1, 1), (16, 9)]

every_row = pytest.mark.parametrize("name", SPECS)
every_case = pytest.mark.parametrize(
    ("name", "options"), CASES, ids=[f"{name}{i if options else ''}" for i, (name, options) in enumerate(CASES)]
)


@torch.no_grad()
def shaken(module: nn.Module) -> nn.Module:
    """`module` with every vector and statistic moved away from what initialisation makes of it, in eval mode."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.running_mean, std=0.3)
            nn.init.uniform_(part.running_var, 0.25, 1.75)
    for parameter in module.parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return module.eval()


def make(name: str, options: dict, c1: int = 8, c2: int = 16, depth: int = 2, *, fresh: bool = False) -> nn.Module:
    """A seeded block in eval mode, shaken unless it is to be `fresh`; of depth 1 where the row has no other."""
    torch.manual_seed(0)
    block = SPECS[name].load()(c1, c2, 1 if name in ONCE else depth, **options)
    return block.eval() if fresh else shaken(block)


def image(h: int, w: int, n: int = 2, c: int = 8) -> Tensor:
    return torch.randn(n, c, h, w, generator=torch.Generator().manual_seed(h * 100 + w))
