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
        q_stride: down-sampling of queries; what they read is interpolated back.
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
        q_stride: int = 1,
        layer_scale: float = 0.1,
    ) -> None:
        strides = {"kv_stride": kv_stride, "q_stride": q_stride}
        count = settle("MobileMQA", c1, c2, depth, heads, key_dim=key_dim, layer_scale=layer_scale, **strides)
        super().__init__(c1, c2, depth, lambda _: MobileMQAUnit(c2, count, key_dim, layer_scale=layer_scale, **strides))


class MobileMQAUnit(nn.Module):
    """x + s * MQA(BN(x)): (N, C, H, W) -> (N, C, H, W)."""

    def __init__(
        self,
        channels: int,
        heads: int = 4,
        key_dim: int = 32,
        *,
        kv_stride: int = 1,
        q_stride: int = 1,
        layer_scale: float = 1e-5,
    ) -> None:
        super().__init__()
        self.norm: nn.Module = nn.BatchNorm2d(channels)
        self.mixer = MultiQueryAttention(channels, heads, key_dim, kv_stride=kv_stride, q_stride=q_stride)
        self.scale: nn.Module = LayerScale(channels, layer_scale)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.scale(self.mixer(self.norm(x)))
        return y

    def fuse(self) -> Self:
        self.mixer.fuse()
        # Zero padding of the strided convolutions comes after the norm, so it stays where they are.
        if isinstance(self.norm, nn.BatchNorm2d) and self.mixer.kv_stride == 1:
            for conv in (self.mixer.query, self.mixer.key, self.mixer.value):
                scale_input(conv, *affine_of(self.norm))
            self.norm = nn.Identity()
        if isinstance(self.scale, LayerScale):
            scale_output(self.mixer.output, self.scale.gamma)
            self.scale = nn.Identity()
        return self


class MultiQueryAttention(nn.Module):
    """Softmax attention of many query heads over one key and one value head: (N, C, H, W) -> (N, C, H, W).

    Args:
        kv_stride: stride of the depthwise convolutions before key and value; 1 for none.
        q_stride: side of the squares whose mean, normed, makes one query; what it reads is interpolated back to the
            map's size. 1 for none.
    """

    def __init__(self, channels: int, heads: int, key_dim: int, *, kv_stride: int = 1, q_stride: int = 1) -> None:
        super().__init__()
        self.heads, self.key_dim, self.kv_stride, self.q_stride = heads, key_dim, kv_stride, q_stride
        self.query_norm: nn.Module = nn.Identity() if q_stride == 1 else nn.BatchNorm2d(channels)
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
        size = x.shape[2:]
        asking = x
        if self.q_stride != 1:
            # There is no padding to count; told otherwise, Inductor's gradient of a cut off last square is wrong.
            asking = F.avg_pool2d(x, self.q_stride, ceil_mode=True, count_include_pad=False)
        n, _, h, w = asking.shape
        # One key and one value for all heads: the heads are just more queries, (N, heads * pixels, key_dim). All are
        # contiguous: for others torch silently takes the kernel that writes out a matrix of all pairs of pixels.
        q: Tensor = self.query(self.query_norm(asking)).reshape(n, self.heads, self.key_dim, h * w)
        q = q.transpose(2, 3).reshape(n, 1, self.heads * h * w, self.key_dim).contiguous()
        k, v = _tokens(self.key(self.key_down(x))), _tokens(self.value(self.value_down(x)))
        y = F.scaled_dot_product_attention(q, k, v).reshape(n, self.heads, h * w, self.key_dim)
        y = y.transpose(2, 3).reshape(n, self.heads * self.key_dim, h, w)
        if self.q_stride != 1:
            y = F.interpolate(y, size, mode="bilinear")
        out: Tensor = self.output(y)
        return out

    def fuse(self) -> Self:
        """Fold the norms of queries, keys and values into the convolutions beside them."""
        if isinstance(self.query_norm, nn.BatchNorm2d):
            scale_input(self.query, *affine_of(self.query_norm))
            self.query_norm = nn.Identity()
        fuse_children(self)
        return self


def _tokens(x: Tensor) -> Tensor:
    """(N, d, H, W) -> (N, 1, H * W, d)."""
    return x.flatten(2).transpose(1, 2).unsqueeze(1).contiguous()
