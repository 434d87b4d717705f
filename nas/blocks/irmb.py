"""iRMB, the inverted residual mobile block of EMO (Zhang et al., "Rethinking Mobile Block for Efficient
Attention-based Models", ICCV 2023).
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from nas.blocks.common import BlockBase, ConvNorm, SqueezeExcite, settle, widened

_EPS = 1e-6


class IRMB(BlockBase):
    """A stage of iRMB units with attention, batch norm and SiLU: (N, c1, H, W) -> (N, c2, H, W).

    Args:
        heads: attention heads; must divide c2 (by default, the most that have at least 32 channels each).
        ratio: expansion of the value projection.
        kernel: kernel of the depthwise convolution.
        window: side of an attention window; 0 attends over the whole map.
        se: squeeze-and-excitation (ratio 1/4) on the depthwise convolution.
    """

    def __init__(
        self,
        c1: int,
        c2: int,
        depth: int = 1,
        *,
        heads: int | None = None,
        ratio: float = 4.0,
        kernel: int = 3,
        window: int = 7,
        se: bool = False,
    ) -> None:
        count = settle("iRMB", c1, c2, depth, heads, ratio=ratio, kernel=kernel, window=window, se=se)
        super().__init__(
            c1,
            c2,
            depth,
            lambda _: IRMBUnit(c2, c2, ratio=ratio, heads=count, kernel=kernel, window=window, se_ratio=0.25 if se else 0.0),
        )


class IRMBUnit(nn.Module):
    """x + Project(y + SE(Local(y))) with y = Value(Attention(Norm(x))): (N, c1, H, W) -> (N, c2, H / stride, W / stride).

    A unit that changes channels or size has neither of the two residuals.

    Args:
        stride: that of the depthwise convolution.
        norm: "bn" or "ln2d" (layer norm over the channels of each pixel).
        act: activation of the value projection and the squeeze-and-excitation.
        attention: off, the unit is a plain inverted residual.
        attn_pre: attend over the input and expand the result (EMO's nets), instead of expanding first.
        se_ratio: hidden width of the squeeze-and-excitation over the expanded width; 0 for none.
        mask_padding: leave the padding of the last windows out of the attention, so that a pixel's output does not
            depend on how far the map is from a multiple of the window. False is what EMO's nets do.
    """

    def __init__(
        self,
        c1: int,
        c2: int,
        *,
        stride: int = 1,
        ratio: float = 4.0,
        heads: int = 1,
        kernel: int = 3,
        window: int = 7,
        norm: Literal["bn", "ln2d"] = "bn",
        act: type[nn.Module] = nn.SiLU,
        attention: bool = True,
        attn_pre: bool = True,
        qkv_bias: bool = False,
        se_ratio: float = 0.0,
        mask_padding: bool = True,
    ) -> None:
        super().__init__()
        hidden = widened(c1, ratio)
        self.residual = stride == 1 and c1 == c2
        if attention and c1 % heads:
            raise ValueError(f"iRMB: {heads} heads do not divide {c1} channels")
        if attention and not attn_pre and hidden % heads:
            raise ValueError(f"iRMB: {heads} heads do not divide the {hidden} channels of the values")
        # A batch norm cannot move into the projections: the padding and, with attn_pre, the values come after it.
        self.norm = nn.BatchNorm2d(c1, eps=_EPS) if norm == "bn" else LayerNorm2d(c1, eps=_EPS)
        self.weigh = WindowAttention(c1, heads, window, qkv_bias, mask_padding) if attention else None
        self.value = nn.Sequential(nn.Conv2d(c1, hidden, 1, bias=qkv_bias), act())
        self.attn_pre = attn_pre
        self.local = ConvNorm(hidden, hidden, kernel, stride=stride, groups=hidden, eps=_EPS, act=nn.SiLU())
        squeezed = max(1, round(hidden * se_ratio))
        self.gate = SqueezeExcite(hidden, squeezed, act()) if se_ratio > 0 else nn.Identity()
        self.project = nn.Conv2d(hidden, c2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x)
        if self.weigh is None:
            y = self.value(y)
        elif self.attn_pre:
            y = self.value(self.weigh(y, nn.Identity()))
        else:
            y = self.weigh(y, self.value)
        local = self.gate(self.local(y))
        out: Tensor = x + self.project(y + local) if self.residual else self.project(local)
        return out


class WindowAttention(nn.Module):
    """Softmax attention inside windows of a grid: window (i, j) holds every pixel whose row is i modulo the number of
    windows down, and whose column is j modulo the number across. (N, C, H, W) -> (N, channels of `value`, H, W).

    Every window starts with a pixel of the map, whatever its size, so no softmax is ever fully masked.
    """

    def __init__(self, channels: int, heads: int, window: int, bias: bool, mask_padding: bool) -> None:
        super().__init__()
        self.heads, self.window, self.mask_padding = heads, window, mask_padding
        self.query_key = nn.Conv2d(channels, 2 * channels, 1, bias=bias)

    def forward(self, x: Tensor, value: nn.Module) -> Tensor:
        h, w = x.shape[-2:]
        mask: Tensor | None = None
        if self.window:
            # No branch on whether there is anything to pad: a traced graph must hold for every size.
            grid = (h + self.window - 1) // self.window, (w + self.window - 1) // self.window
            side = self.window, self.window
            margins = (0, grid[1] * self.window - w, 0, grid[0] * self.window - h)
            if self.mask_padding:
                inside = F.pad(x.new_ones(x.shape[0], 1, h, w), margins)
                mask = (_to_windows(inside, 1, side, grid) > 0).transpose(-1, -2)
            x = F.pad(x, margins)
        else:
            grid, side = (1, 1), (h, w)
        q, k = (_to_windows(t, self.heads, side, grid) for t in self.query_key(x).chunk(2, 1))
        y = F.scaled_dot_product_attention(q, k, _to_windows(value(x), self.heads, side, grid), attn_mask=mask)
        return _from_windows(y, x.shape[0], side, grid)[:, :, :h, :w]


def _to_windows(x: Tensor, heads: int, side: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """(N, heads * d, side * grid) map -> (N * windows, heads, pixels of a window, d) tokens.

    Contiguous: for others torch silently takes the attention that writes out a matrix of all pairs of pixels.
    """
    n, c = x.shape[:2]
    x = x.reshape(n, heads, c // heads, side[0], grid[0], side[1], grid[1]).permute(0, 4, 6, 1, 3, 5, 2)
    return x.reshape(n * grid[0] * grid[1], heads, side[0] * side[1], c // heads).contiguous()


def _from_windows(x: Tensor, n: int, side: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """The inverse of `_to_windows`."""
    heads, d = x.shape[1], x.shape[3]
    x = x.reshape(n, *grid, heads, *side, d).permute(0, 3, 6, 4, 1, 5, 2)
    return x.reshape(n, heads * d, side[0] * grid[0], side[1] * grid[1])


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of each pixel of an (N, C, H, W) map."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
