"""What the blocks share: the stage around their units, small layers, and the algebra of fusing."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from nas.blocks.catalog import ROWS, KnobValue


def settle(row: str, c1: int, c2: int, depth: int, heads: int | None, **knobs: KnobValue) -> int:
    """Check a block's arguments against the catalog and return its head count (the default one for None).

    A block without heads gives 0. Raises ValueError for what the catalog does not allow.
    """
    spec = ROWS[row]
    for word, number in {"c1": c1, "c2": c2, "depth": depth, "heads": 1 if heads is None else heads}.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(f"{row}: {word} must be a positive whole number, not {number!r}")
    for word, value in knobs.items():
        fault = spec.knobs[word].fault(value)
        if fault:
            raise ValueError(f"{row}: {word} {fault}, not {value!r}")
    if spec.default_heads is None:
        if heads is not None:
            raise ValueError(f"{row} has no heads, yet heads={heads}")
        return 0
    return spec.default_heads(c2) if heads is None else heads


def only_once(row: str, depth: int) -> None:
    """Raise ValueError for a depth of a row that cannot be repeated."""
    if depth != 1:
        raise ValueError(f"{row}: depth must be 1, not {depth}")


def widened(channels: int, ratio: float) -> int:
    """Hidden width of a layer that expands `channels` by `ratio`."""
    return max(1, int(channels * ratio))


class Chain(nn.Sequential):
    """Layers one after the other, which become their inference form together."""

    def fuse(self) -> Self:
        """Turn the layers, in place, into their inference form: equal outputs in eval mode, fewer operations."""
        fuse_children(self)
        return self


class BlockBase(Chain):
    """A stem where the channels change, then `depth` units: (N, c1, H, W) -> (N, c2, H, W).

    Args:
        unit: makes the unit at an index (0, 1, ...) of the stage.
    """

    def __init__(self, c1: int, c2: int, depth: int, unit: Callable[[int], nn.Module]) -> None:
        stem = ConvNorm(c1, c2, act=nn.SiLU()) if c1 != c2 else nn.Identity()
        super().__init__(OrderedDict(stem=stem, units=nn.Sequential(*(unit(index) for index in range(depth)))))


class Residual(nn.Module):
    """x + branch(x)."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.branch(x)
        return y


class ConvNorm(nn.Module):
    """Convolution ("same" padding, no bias), batch norm, activation (none by default). One convolution once fused."""

    def __init__(
        self,
        c1: int,
        c2: int,
        kernel: int = 1,
        *,
        stride: int = 1,
        groups: int = 1,
        eps: float = 1e-5,
        act: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.filter = nn.Conv2d(c1, c2, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(c2, eps=eps)
        self.act = nn.Identity() if act is None else act

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.norm(self.filter(x)))
        return y

    def fuse(self) -> Self:
        if isinstance(self.norm, nn.BatchNorm2d):
            scale, shift = affine_of(self.norm)
            scale_output(self.filter, scale, shift)
            self.norm = nn.Identity()
        return self


class SqueezeExcite(nn.Module):
    """Multiply each channel by a gate in (0, 1) computed from the mean of all channels (Hu et al., CVPR 2018)."""

    def __init__(self, channels: int, hidden: int, act: nn.Module) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, hidden, 1)
        self.act = act
        self.excite = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate: Tensor = self.excite(self.act(self.squeeze(x.mean((2, 3), keepdim=True))))
        return x * gate.sigmoid()


class LayerScale(nn.Module):
    """Multiply each channel by a learned factor that starts at `init` (Touvron et al., ICCV 2021)."""

    def __init__(self, channels: int, init: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels,), float(init)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma.reshape(-1, 1, 1)


def fuse_children(module: nn.Module) -> None:
    """Call `fuse()` of every descendant that has one; it answers for its own descendants."""
    for child in module.children():
        fuse = getattr(child, "fuse", None)
        if callable(fuse):
            fuse()
        else:
            fuse_children(child)


def affine_of(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Scale and shift per channel that `norm` applies in eval mode."""
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("a batch norm without running statistics cannot be fused")
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return scale, norm.bias - norm.running_mean * scale


@torch.no_grad()
def scale_output(conv: nn.Conv2d, scale: Tensor, shift: Tensor | None = None) -> None:
    """Make `conv` give scale * conv(x) + shift."""
    bias = None if conv.bias is None else conv.bias * scale
    if shift is not None:
        bias = shift if bias is None else bias + shift
    conv.weight = nn.Parameter(conv.weight * scale.reshape(-1, 1, 1, 1))
    conv.bias = None if bias is None else nn.Parameter(bias.detach())


@torch.no_grad()
def scale_input(conv: nn.Conv2d, scale: Tensor, shift: Tensor) -> None:
    """Make `conv`, a 1x1 convolution of one group, give conv(scale * x + shift)."""
    bias = conv.weight.flatten(1) @ shift
    conv.bias = nn.Parameter(bias if conv.bias is None else conv.bias + bias)
    conv.weight = nn.Parameter(conv.weight * scale.reshape(1, -1, 1, 1))
