"""RepViT (Wang et al., "RepViT: Revisiting Mobile CNN From ViT Perspective", CVPR 2024)."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.blocks.common import BlockBase, ConvNorm, SqueezeExcite, affine_of, fuse_children, scale_output, settle, widened


class RepViT(BlockBase):
    """A stage of RepViT units: (N, c1, H, W) -> (N, c2, H, W).

    Args:
        ratio: expansion of the channel mixer.
        kernel: kernel of the depthwise token mixer.
        se: squeeze-and-excitation in every other unit, from the first on.
    """

    def __init__(
        self,
        c1: int,
        c2: int,
        depth: int = 1,
        *,
        heads: int | None = None,
        ratio: float = 2.0,
        kernel: int = 3,
        se: bool = True,
    ) -> None:
        settle("repvit", c1, c2, depth, heads, ratio=ratio, kernel=kernel, se=se)
        super().__init__(c1, c2, depth, lambda index: RepViTUnit(c2, ratio, kernel, se and index % 2 == 0))


class RepViTUnit(nn.Module):
    """x = SE(RepDW(x)), then x + MLP(x): (N, C, H, W) -> (N, C, H, W). The first has its identity inside its sum."""

    def __init__(self, channels: int, ratio: float = 2.0, kernel: int = 3, se: bool = True) -> None:
        super().__init__()
        hidden = widened(channels, ratio)
        squeezed = max(8, int(channels / 4 + 4) // 8 * 8)
        self.mixer: nn.Module = RepDW(channels, kernel)
        self.gate = SqueezeExcite(channels, squeezed, nn.ReLU()) if se else nn.Identity()
        narrow = ConvNorm(hidden, channels)
        if isinstance(narrow.norm, nn.BatchNorm2d):
            nn.init.zeros_(narrow.norm.weight)  # the residual branch starts at zero
        self.mlp = nn.Sequential(ConvNorm(channels, hidden, act=nn.GELU()), narrow)

    def forward(self, x: Tensor) -> Tensor:
        x = self.gate(self.mixer(x))
        y: Tensor = x + self.mlp(x)
        return y

    def fuse(self) -> Self:
        if isinstance(self.mixer, RepDW):
            self.mixer = self.mixer.merged()
        fuse_children(self)
        return self


class RepDW(nn.Module):
    """BN(BN(depthwise k x k) + depthwise 1 x 1 + x): (N, C, H, W) -> (N, C, H, W). Merges into one convolution."""

    def __init__(self, channels: int, kernel: int = 3) -> None:
        super().__init__()
        self.wide = ConvNorm(channels, channels, kernel, groups=channels)
        self.point = nn.Conv2d(channels, channels, 1, groups=channels)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.wide(x) + self.point(x) + x)
        return y

    @torch.no_grad()
    def merged(self) -> nn.Conv2d:
        """The one depthwise convolution that equals the sum of branches and its norm."""
        conv = self.wide.fuse().filter
        margin = conv.kernel_size[0] // 2
        conv.weight += F.pad(self.point.weight + 1, [margin] * 4)  # the identity is a 1 x 1 kernel of one
        if self.point.bias is not None:
            scale_output(conv, torch.ones_like(self.point.bias), self.point.bias)
        scale_output(conv, *affine_of(self.norm))
        return conv
