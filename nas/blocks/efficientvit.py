"""EfficientViT (Cai et al., "EfficientViT: Multi-Scale Linear Attention for High-Resolution Dense Prediction", ICCV
2023). Not to be confused with the EfficientViT of Liu et al. (CVPR 2023).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function

from nas.blocks.common import BlockBase, Chain, ConvNorm, Residual, only_once, settle, widened


class EfficientViT(BlockBase):
    """A stage of EfficientViT units: (N, c1, H, W) -> (N, c2, H, W).

    Args:
        heads: attention heads, each of c2 // heads channels (by default, the most that have at least 16 each).
        ratio: expansion of the MBConv.
        kernel: kernel of the second attention scale; the first sees single pixels.
    """

    def __init__(
        self, c1: int, c2: int, depth: int = 1, *, heads: int | None = None, ratio: float = 4.0, kernel: int = 5
    ) -> None:
        count = settle("EfficientViT", c1, c2, depth, heads, ratio=ratio, kernel=kernel)
        if count > c2:
            raise ValueError(f"EfficientViT: {count} heads need at least as many channels, not {c2}")
        super().__init__(c1, c2, depth, lambda _: EfficientViTUnit(c2, count, c2 // count, ratio, (kernel,)))


class EfficientViTUnit(nn.Module):
    """x + LiteMLA(x), then x + MBConv(x): (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, channels: int, heads: int, head_dim: int = 16, ratio: float = 4.0, scales: Sequence[int] = (5,)) -> None:
        super().__init__()
        self.context = LiteMLA(channels, heads, head_dim, scales)
        self.local = MBConv(channels, channels, ratio)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.context(x)
        y: Tensor = x + self.local(x)
        return y


class LiteMLA(nn.Module):
    """Multi-scale ReLU linear attention: (N, C, H, W) -> (N, C, H, W), its cost linear in H * W.

    Args:
        scales: odd kernels; each adds a copy of all heads that attends over queries, keys and values blurred by it.
    """

    # Keeps 0 / 0 away from pixels whose query is all zero: the smallest normal number of float16.
    eps = 2.0**-14

    def __init__(self, channels: int, heads: int, head_dim: int = 16, scales: Sequence[int] = (5,)) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.groups = heads * (1 + len(scales))
        width = 3 * heads * head_dim
        self.qkv = nn.Conv2d(channels, width, 1, bias=False)
        self.blurs = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width, bias=False),
                nn.Conv2d(width, width, 1, groups=3 * heads, bias=False),
            )
            for kernel in scales
        )
        self.project = ConvNorm(self.groups * head_dim, channels)

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        qkv: Tensor = self.qkv(x)
        scales = torch.cat([qkv, *(blur(qkv) for blur in self.blurs)], 1)
        y = self._attend(scales.reshape(n, self.groups, 3 * self.head_dim, h * w)).to(scales.dtype)
        out: Tensor = self.project(y.reshape(n, self.groups * self.head_dim, h, w))
        return out

    def _attend(self, qkv: Tensor) -> Tensor:
        """Queries, keys and values (N, groups, 3 * head_dim, pixels) -> outputs (N, groups, head_dim, pixels)."""
        # Sums over all pixels, and a quotient: no place for half precision.
        with torch.autocast(qkv.device.type, enabled=False):
            q, k, v = qkv.to(torch.promote_types(qkv.dtype, torch.float32)).chunk(3, 2)
            return linear_attention(q.relu(), k.relu(), v, self.eps)


def linear_attention(q: Tensor, k: Tensor, v: Tensor, eps: float) -> Tensor:
    """Means of the values, each weighed by the product of a query and a key: all (N, groups, head_dim, pixels).

    Open to `torch.overrides` as torch's own attention is, for those who look at what a model does.
    """
    if has_torch_function((q, k, v)):
        return handle_torch_function(linear_attention, (q, k, v), q, k, v, eps)
    # Runtimes may choose float16 themselves. The quotient forgets the scale of k and of v with its ones: a mean instead
    # of a sum over the pixels does not overflow on large maps, and divided between the two, neither becomes subnormal.
    root: float = q.shape[-1] ** 0.5
    v = F.pad(v, (0, 0, 0, 1), value=1.0) / root
    y = (v @ (k / root).transpose(-1, -2)) @ q
    return y[:, :, :-1] / (y[:, :, -1:] + eps)


class MBConv(nn.Sequential):
    """Inverted residual branch: (N, c1, H, W) -> (N, c2, H / stride, W / stride).

    Args:
        norms: a norm after every convolution. Without them only the last one has a norm and the others have biases: what
            stands beside the attention.
    """

    def __init__(self, c1: int, c2: int, ratio: float = 4.0, *, stride: int = 1, norms: bool = False) -> None:
        hidden = widened(c1, ratio)
        if norms:
            super().__init__(
                ConvNorm(c1, hidden, act=nn.Hardswish()),
                ConvNorm(hidden, hidden, 3, stride=stride, groups=hidden, act=nn.Hardswish()),
                ConvNorm(hidden, c2),
            )
        else:
            super().__init__(
                nn.Conv2d(c1, hidden, 1),
                nn.Hardswish(),
                nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden),
                nn.Hardswish(),
                ConvNorm(hidden, c2),
            )


class EfficientViTStem(Chain):
    """How EfficientViT's nets begin, a 3x3 convolution of stride 2 and `depth` depthwise separable ones with residuals:
    (N, c1, H, W) -> (N, c2, H / 2, W / 2).
    """

    def __init__(self, c1: int, c2: int, depth: int = 1, *, heads: int | None = None) -> None:
        settle("EfficientViTStem", c1, c2, depth, heads)
        super().__init__(
            ConvNorm(c1, c2, 3, stride=2, act=nn.Hardswish()),
            *(
                Residual(nn.Sequential(ConvNorm(c2, c2, 3, groups=c2, act=nn.Hardswish()), ConvNorm(c2, c2)))
                for _ in range(depth)
            ),
        )


class EfficientViTConv(Chain):
    """A stage without attention, `depth` MBConvs of which all but the first have a residual:
    (N, c1, H, W) -> (N, c2, H / 2, W / 2).

    Args:
        ratio: expansion of the MBConvs.
    """

    def __init__(self, c1: int, c2: int, depth: int = 1, *, heads: int | None = None, ratio: float = 4.0) -> None:
        settle("EfficientViTConv", c1, c2, depth, heads, ratio=ratio)
        super().__init__(
            MBConv(c1, c2, ratio, stride=2, norms=True),
            *(Residual(MBConv(c2, c2, ratio, norms=True)) for _ in range(depth - 1)),
        )


class EfficientViTDown(Chain):
    """The MBConv before a stage with attention: (N, c1, H, W) -> (N, c2, H / 2, W / 2).

    Args:
        depth: 1.
        ratio: expansion of the MBConv.
    """

    def __init__(self, c1: int, c2: int, depth: int = 1, *, heads: int | None = None, ratio: float = 4.0) -> None:
        settle("EfficientViTDown", c1, c2, depth, heads, ratio=ratio)
        only_once("EfficientViTDown", depth)
        super().__init__(MBConv(c1, c2, ratio, stride=2))
