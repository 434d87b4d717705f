"""`Stage`: the thin adapter that lets Ultralytics fuse and pickle our blocks, which themselves know only torch."""

from __future__ import annotations

import torch
from torch import nn
from ultralytics.nn.modules.block import RepVGGDW

from nas.blocks.catalog import ROWS


class Stage(RepVGGDW):  # type: ignore[misc]
    """A block in a YOLO slot: (N, c1, H, W) to (N, c2, H, W).

    Ultralytics' `model.fuse()` calls `fuse()` of every `RepVGGDW` and then uses its `forward_fuse`; nothing else of that
    class is inherited. `is_fused()` asks whether `conv1` is still there.

    Args:
        row: the block's name in a model YAML, a key of `nas.blocks.catalog.ROWS`.
        c1, c2, depth: input channels, output channels, number of blocks.
        options: `heads` and the block's knobs.
    """

    def __init__(self, row: str, c1: int, c2: int, depth: int, **options: object) -> None:
        nn.Module.__init__(self)
        self.block = ROWS[row].load()(c1, c2, depth, **options)
        self.fused = False

    @property
    def conv1(self) -> nn.Module:
        """What Ultralytics looks for to tell whether a fusion is still owed."""
        if self.fused:
            raise AttributeError("conv1")
        return self.block

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(x)  # type: ignore[no-any-return]

    forward_fuse = forward

    @torch.no_grad()
    def fuse(self) -> None:
        """Turn the block into its inference form, once; a user's block without `fuse` has no other form."""
        if not self.fused:
            fuse = getattr(self.block, "fuse", None)
            if callable(fuse):
                fuse()
            self.fused = True
