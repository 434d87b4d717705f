"""Mobile multi-query attention (Qin et al., "MobileNetV4: Universal Models for the Mobile Ecosystem", ECCV 2024)."""

from __future__ import annotations

from typing import Self

from torch import Tensor, nn
from torch.nn import functional as F

from nas.blocks.common import BlockBase, ConvNorm, LayerScale, affine_of, fuse_children, scale_input, scale_output, settle


class MobileMQA(BlockBase):
    """A stage of Mobile MQA units: (N, c1, H, W) -> (N, c2, H, W).

    Args:
        heads: query heads (4 by default); they share one key and one value.
        key_dim: channels of each query, of the key and of the value.
        kv_stride: down-sampling of keys and values.
        layer_scale: initial layer scale of the branch.
    """

    def __init__(
        self,
        c1: int,
        c2: int,
        depth: int = 1,
        *,
        heads: int | None = None,
        key_dim: int = 32,
        kv_stride: int = 1,
        layer_scale: float = 0.1,
    ) -> None:
        count = settle("mobile_mqa", c1, c2, depth, heads, key_dim=key_dim, kv_stride=kv_stride, layer_scale=layer_scale)
        super().__init__(c1, c2, depth, lambda _: MobileMQAUnit(c2, count, key_dim, kv_stride, layer_scale))


class MobileMQAUnit(nn.Module):
    """x + s * MQA(BN(x)): (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, channels: int, heads: int = 4, key_dim: int = 32, kv_stride: int = 1, layer_scale: float = 1e-5) -> None:
        super().__init__()
        self.norm: nn.Module = nn.BatchNorm2d(channels)
        self.mixer = MultiQueryAttention(channels, heads, key_dim, kv_stride)
        self.scale: nn.Module = LayerScale(channels, layer_scale)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.scale(self.mixer(self.norm(x)))
        return y

    def fuse(self) -> Self:
        # Zero padding of the strided convolutions comes after the norm, so it stays where they are.
        if isinstance(self.norm, nn.BatchNorm2d) and self.mixer.kv_stride == 1:
            for conv in (self.mixer.query, self.mixer.key, self.mixer.value):
                scale_input(conv, *affine_of(self.norm))
            self.norm = nn.Identity()
        if isinstance(self.scale, LayerScale):
            scale_output(self.mixer.output, self.scale.gamma)
            self.scale = nn.Identity()
        fuse_children(self)
        return self


class MultiQueryAttention(nn.Module):
    """Softmax attention of many query heads over one key and one value head: (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, channels: int, heads: int, key_dim: int, kv_stride: int = 1) -> None:
        super().__init__()
        self.heads, self.key_dim, self.kv_stride = heads, key_dim, kv_stride
        self.query = nn.Conv2d(channels, heads * key_dim, 1, bias=False)
        self.key_down = self._down(channels)
        self.key = nn.Conv2d(channels, key_dim, 1, bias=False)
        self.value_down = self._down(channels)
        self.value = nn.Conv2d(channels, key_dim, 1, bias=False)
        self.output = nn.Conv2d(heads * key_dim, channels, 1, bias=False)
        for conv in (self.query, self.key, self.value, self.output):
            nn.init.xavier_uniform_(conv.weight)

    def _down(self, channels: int) -> nn.Module:
        if self.kv_stride == 1:
            return nn.Identity()
        return ConvNorm(channels, channels, 3, stride=self.kv_stride, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        # One key and one value for all heads: the heads are just more queries, (N, heads * pixels, key_dim).
        q: Tensor = self.query(x).reshape(n, self.heads, self.key_dim, h * w)
        q = q.transpose(2, 3).reshape(n, 1, self.heads * h * w, self.key_dim)
        k, v = _tokens(self.key(self.key_down(x))), _tokens(self.value(self.value_down(x)))
        y = F.scaled_dot_product_attention(q, k, v).reshape(n, self.heads, h * w, self.key_dim)
        out: Tensor = self.output(y.transpose(2, 3).reshape(n, self.heads * self.key_dim, h, w))
        return out


def _tokens(x: Tensor) -> Tensor:
    """(N, d, H, W) -> (N, 1, H * W, d)."""
    return x.flatten(2).transpose(1, 2).unsqueeze(1)
