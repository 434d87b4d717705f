"""RIFormer (Wang et al., "RIFormer: Keep Your Vision Backbone Effective But Removing Token Mixer", CVPR 2023)."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from nas.blocks.common import BlockBase, LayerScale, scale_output, settle, widened


class RIFormer(BlockBase):
    """A stage of RIFormer units: (N, c1, H, W) -> (N, c2, H, W).

    It mixes no pixels (only the norm's mean and variance see the whole map), so the receptive field comes from the
    layers around it.

    Args:
        ratio: hidden width of the MLP over its input.
        layer_scale: initial layer scale of both branches.
    """

    def __init__(
        self, c1: int, c2: int, depth: int = 1, *, heads: int | None = None, ratio: float = 4.0, layer_scale: float = 0.1
    ) -> None:
        settle("RIFormer", c1, c2, depth, heads, ratio=ratio, layer_scale=layer_scale)
        super().__init__(c1, c2, depth, lambda _: RIFormerUnit(c2, ratio, layer_scale))


class RIFormerUnit(nn.Module):
    """x + AffineMixer(x), then x + s * MLP(GroupNorm(x)): (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, channels: int, ratio: float = 4.0, layer_scale: float = 1e-5) -> None:
        super().__init__()
        hidden = widened(channels, ratio)
        self.mixer: nn.Module = AffineMixer(channels, layer_scale)
        self.norm = nn.GroupNorm(1, channels)
        self.widen = nn.Conv2d(channels, hidden, 1)
        self.act = nn.GELU()
        self.narrow = nn.Conv2d(hidden, channels, 1)
        self.scale: nn.Module = LayerScale(channels, layer_scale)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(x)
        y: Tensor = x + self.scale(self.narrow(self.act(self.widen(self.norm(x)))))
        return y

    def fuse(self) -> Self:
        if isinstance(self.mixer, AffineMixer):
            self.mixer = self.mixer.merged()
        if isinstance(self.scale, LayerScale):
            scale_output(self.narrow, self.scale.gamma)
            self.scale = nn.Identity()
        return self


class AffineMixer(nn.Module):
    """s * (affine(n) - n) with n = GroupNorm(x): what training keeps of a token mixer. Merges into one GroupNorm.

    The affine starts as the identity, so the branch starts at zero: its scale and shift then get a gradient as large as
    from any other start (that does not depend on their value), without the noise of a random one, which a short
    training would first have to unlearn.
    """

    def __init__(self, channels: int, layer_scale: float) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, channels)
        # Vectors, not a depthwise 1x1 convolution: optimizers that orthogonalise matrices must leave them alone.
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.scale = LayerScale(channels, layer_scale)

    def forward(self, x: Tensor) -> Tensor:
        n: Tensor = self.norm(x)
        y: Tensor = self.scale(n * (self.weight - 1).reshape(-1, 1, 1) + self.bias.reshape(-1, 1, 1))
        return y

    @torch.no_grad()
    def merged(self) -> nn.GroupNorm:
        """The one GroupNorm that equals the branch."""
        scale = self.weight - 1
        shift = self.norm.bias * scale + self.bias
        self.norm.weight = nn.Parameter(self.norm.weight * scale * self.scale.gamma)
        self.norm.bias = nn.Parameter(shift * self.scale.gamma)
        return self.norm
