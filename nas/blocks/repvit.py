"""RepViT (Wang et al., "RepViT: Revisiting Mobile CNN From ViT Perspective", CVPR 2024)."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.blocks.common import (
    BlockBase,
    Chain,
    ConvNorm,
    Residual,
    SqueezeExcite,
    affine_of,
    fuse_children,
    only_once,
    scale_output,
    settle,
    widened,
)


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
        settle("RepViT", c1, c2, depth, heads, ratio=ratio, kernel=kernel, se=se)
        super().__init__(c1, c2, depth, lambda index: RepViTUnit(c2, ratio, kernel, se and index % 2 == 0))


class RepViTUnit(nn.Module):
    """x = SE(RepDW(x)), then x + MLP(x): (N, C, H, W) -> (N, C, H, W). The first has its identity inside its sum."""

    def __init__(self, channels: int, ratio: float = 2.0, kernel: int = 3, se: bool = True) -> None:
        super().__init__()
        squeezed = max(8, int(channels / 4 + 4) // 8 * 8)
        self.mixer: nn.Module = RepDW(channels, kernel)
        self.gate = SqueezeExcite(channels, squeezed, nn.ReLU()) if se else nn.Identity()
        self.mlp = ChannelMixer(channels, ratio)

    def forward(self, x: Tensor) -> Tensor:
        x = self.gate(self.mixer(x))
        y: Tensor = x + self.mlp(x)
        return y

    def fuse(self) -> Self:
        if isinstance(self.mixer, RepDW):
            self.mixer = self.mixer.merged()
        fuse_children(self)
        return self


class ChannelMixer(nn.Sequential):
    """1x1 convolutions to `ratio` times the channels and back. It starts at zero, as the branch of a residual."""

    def __init__(self, channels: int, ratio: float) -> None:
        hidden = widened(channels, ratio)
        narrow = ConvNorm(hidden, channels)
        super().__init__(ConvNorm(channels, hidden, act=nn.GELU()), narrow)
        if isinstance(narrow.norm, nn.BatchNorm2d):
            nn.init.zeros_(narrow.norm.weight)


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


class RepViTStem(Chain):
    """How RepViT's nets begin, two 3x3 convolutions of stride 2: (N, c1, H, W) -> (N, c2, H / 4, W / 4).

    Args:
        depth: 1.
    """

    def __init__(self, c1: int, c2: int, depth: int = 1, *, heads: int | None = None) -> None:
        settle("RepViTStem", c1, c2, depth, heads)
        only_once("RepViTStem", depth)
        hidden = widened(c2, 0.5)
        super().__init__(ConvNorm(c1, hidden, 3, stride=2, act=nn.GELU()), ConvNorm(hidden, c2, 3, stride=2))


class RepViTDown(Chain):
    """What stands between two stages of RepViT's nets, a unit and a unit of stride 2:
    (N, c1, H, W) -> (N, c2, H / 2, W / 2).

    Args:
        depth: 1.
        ratio: expansion of both channel mixers.
        kernel: kernel of both depthwise convolutions.
    """

    def __init__(
        self, c1: int, c2: int, depth: int = 1, *, heads: int | None = None, ratio: float = 2.0, kernel: int = 3
    ) -> None:
        settle("RepViTDown", c1, c2, depth, heads, ratio=ratio, kernel=kernel)
        only_once("RepViTDown", depth)
        super().__init__(RepViTUnit(c1, ratio, kernel, se=False), RepViTDownUnit(c1, c2, ratio, kernel))


class RepViTDownUnit(nn.Sequential):
    """x = Point(DW(x)) with a depthwise convolution of stride 2, then x + MLP(x): (N, c1, H, W) -> (N, c2, H / 2, W / 2)."""

    def __init__(self, c1: int, c2: int, ratio: float = 2.0, kernel: int = 3) -> None:
        super().__init__(ConvNorm(c1, c1, kernel, stride=2, groups=c1), ConvNorm(c1, c2), Residual(ChannelMixer(c2, ratio)))
