"""The layer of YOLOv9 with attention inside: RepNCSPELAN4 (Wang et al., "YOLOv9: Learning What You Want to Learn Using
Programmable Gradient Information", ECCV 2024) around the multi-query attention of MobileNetV4.
"""

from __future__ import annotations

from typing import Self

import torch
from ultralytics.nn.modules.block import RepNCSPELAN4
from ultralytics.nn.modules.conv import Conv, RepConv
from ultralytics.utils.torch_utils import fuse_conv_and_bn

from nas.blocks.common import settle
from nas.blocks.mobile_mqa import MultiQueryAttention


class MQAELAN(RepNCSPELAN4):  # type: ignore[misc]
    """RepNCSPELAN4 in which the 3x3 convolution after each RepCSP is multi-query attention, plain: no norm, no residual.
    (N, c1, H, W) -> (N, c2, H, W).

    Args:
        depth: bottlenecks of each RepCSP.
        heads: query heads (8 by default); they share one key and one value.
        ratio: width between the first and the last convolution (YOLOv9's c3) over c2, rounded to a multiple of 4 and at
            least 4; half of it is the width of a RepCSP and its attention (c4).
        key_dim: channels of each query, of the key and of the value.
    """

    def __init__(
        self, c1: int, c2: int, depth: int = 1, *, heads: int | None = None, ratio: float = 0.5, key_dim: int = 48
    ) -> None:
        count = settle("MQAELAN", c1, c2, depth, heads, ratio=ratio, key_dim=key_dim)
        c4 = 2 * max(1, round(c2 * ratio / 4))
        super().__init__(c1, c2, 2 * c4, c4, depth)
        for way in (self.cv2, self.cv3):
            way[1] = MultiQueryAttention(c4, count, key_dim)

    @torch.no_grad()
    def fuse(self) -> Self:
        """Turn the layer, in place, into its inference form, as Ultralytics does it with modules of its own."""
        for module in self.modules():
            if isinstance(module, RepConv):
                with torch.random.fork_rng(devices=[]):  # it draws weights which it then throws away
                    module.fuse_convs()
            elif isinstance(module, Conv) and hasattr(module, "bn"):
                module.conv = fuse_conv_and_bn(module.conv, module.bn)
                del module.bn
            else:
                continue
            module.forward = module.forward_fuse
        return self
