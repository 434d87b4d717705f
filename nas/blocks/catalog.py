"""What every block is called, which knobs it has and which channel counts suit it. No torch: the search space,
the command line and the reports read this; the torch classes live in one file per paper beside it.

A block's class is called as `Block(c1, c2, depth, *, heads=None, **knobs)` and maps (N, c1, H, W) to (N, c2, H, W).
Rows of a larger stride (stems and entries of whole backbones) are called alike and stand in fixed model YAMLs only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

KnobValue = bool | int | float


@dataclass(frozen=True)
class Knob:
    """One number of a block that a search space may vary.

    `kind` is the Python type of its values, `low` and `high` bound the legal ones, `odd` asks for odd integers.
    """

    default: KnobValue
    doc: str
    kind: type[bool] | type[int] | type[float] = int
    low: float = 1
    high: float = math.inf
    odd: bool = False

    def fault(self, value: object) -> str | None:
        """Why `value` is not legal for this knob, in words; None if it is."""
        if self.kind is bool:
            return None if isinstance(value, bool) else "must be true or false"
        if isinstance(value, bool) or not isinstance(value, int | float):
            return "must be a number"
        if self.kind is int and not isinstance(value, int):
            return "must be a whole number"
        if not self.low <= value <= self.high:
            return f"must be from {self.low:g} to {self.high:g}"
        if self.odd and int(value) % 2 == 0:
            return "must be odd"
        return None


@dataclass(frozen=True)
class BlockSpec:
    """A block as the rest of `nas` knows it.

    `name` is the word in search spaces, `row` the module name in a model YAML, `source` is "module:class" of the torch
    class. `default_heads(channels)` gives the head count where the space names none; None marks a block without heads.
    `heads_divide` says that channels are rounded to a multiple of the head count. `stride` is that of the output to the
    input: only a block of stride 1 can stand in a slot. `scores(pixels, heads, knobs)` is the number of attention weights
    that one image has at once on a map of so many pixels; None marks a block without softmax attention. `digest` is the
    SHA-256 of the file that a user's block stands in; ours have none.
    """

    name: str
    row: str
    source: str
    paper: str
    default_heads: Callable[[int], int] | None = None
    heads_divide: bool = False
    knobs: Mapping[str, Knob] = field(default_factory=dict)
    stride: int = 1
    scores: Callable[[int, int, Mapping[str, KnobValue]], int] | None = None
    digest: str = ""

    @property
    def has_heads(self) -> bool:
        return self.default_heads is not None

    def load(self) -> type[nn.Module]:
        """The torch class. Imports torch."""
        module, _, attribute = self.source.partition(":")
        loaded: type[nn.Module] = getattr(import_module(module), attribute)
        return loaded


def _largest_divisor(channels: int, at_most: int) -> int:
    return next(h for h in range(max(at_most, 1), 0, -1) if channels % h == 0)


_LAYER_SCALE = Knob(
    0.1,
    "initial layer scale; the papers' 1e-5 makes the block a no-op in a short proxy training",
    float,
    low=0.0,
    high=10,
)

_MBCONV = Knob(4.0, "expansion of the MBConv", float, low=0.125, high=16)
_EFFICIENTVIT = "EfficientViT: Multi-Scale Linear Attention for High-Resolution Dense Prediction (ICCV 2023)"
_REPVIT = "RepViT: Revisiting Mobile CNN From ViT Perspective (CVPR 2024)"

_SPECS = (
    BlockSpec(
        "riformer",
        "RIFormer",
        "nas.blocks.riformer:RIFormer",
        "RIFormer: Keep Your Vision Backbone Effective But Removing Token Mixer (CVPR 2023)",
        knobs={
            "ratio": Knob(4.0, "hidden width of the MLP over its input", float, low=0.125, high=16),
            "layer_scale": _LAYER_SCALE,
        },
    ),
    BlockSpec(
        "efficientvit",
        "EfficientViT",
        "nas.blocks.efficientvit:EfficientViT",
        _EFFICIENTVIT,
        default_heads=lambda channels: _largest_divisor(channels, channels // 16),
        heads_divide=True,
        knobs={
            "ratio": _MBCONV,
            "kernel": Knob(5, "kernel of the second attention scale", high=31, odd=True),
        },
    ),
    BlockSpec(
        "repvit",
        "RepViT",
        "nas.blocks.repvit:RepViT",
        _REPVIT,
        knobs={
            "ratio": Knob(2.0, "expansion of the channel mixer", float, low=0.125, high=16),
            "kernel": Knob(3, "kernel of the depthwise token mixer", low=3, high=31, odd=True),
            "se": Knob(True, "squeeze-and-excitation in every other block, from the first on", bool),
        },
    ),
    BlockSpec(
        "irmb",
        "iRMB",
        "nas.blocks.irmb:IRMB",
        "EMO: Rethinking Mobile Block for Efficient Attention-based Models (ICCV 2023)",
        default_heads=lambda channels: _largest_divisor(channels, channels // 32),
        heads_divide=True,
        knobs={
            "ratio": Knob(4.0, "expansion of the value projection", float, low=0.125, high=16),
            "kernel": Knob(3, "kernel of the depthwise convolution", high=31, odd=True),
            "window": Knob(7, "side of an attention window; 0 attends over the whole map", low=0, high=64),
            "se": Knob(False, "squeeze-and-excitation (ratio 1/4) on the depthwise convolution", bool),
        },
        scores=lambda pixels, heads, knobs: heads * pixels * (int(knobs["window"]) ** 2 or pixels),
    ),
    BlockSpec(
        "mobile_mqa",
        "MobileMQA",
        "nas.blocks.mobile_mqa:MobileMQA",
        "MobileNetV4: Universal Models for the Mobile Ecosystem (ECCV 2024)",
        default_heads=lambda _: 4,
        knobs={
            "key_dim": Knob(32, "channels of each query, of the one key and of the one value", high=1024),
            "kv_stride": Knob(1, "down-sampling of keys and values", high=16),
            "q_stride": Knob(1, "down-sampling of queries; what they read is interpolated back", high=16),
            "layer_scale": _LAYER_SCALE,
        },
        scores=lambda pixels, heads, knobs: (
            heads * math.ceil(pixels / int(knobs["q_stride"]) ** 2) * math.ceil(pixels / int(knobs["kv_stride"]) ** 2)
        ),
    ),
    BlockSpec(
        "mqa_elan",
        "MQAELAN",
        "nas.yolo.mqa_elan:MQAELAN",
        "the layer of YOLOv9 (ECCV 2024) with multi-query attention (MobileNetV4, ECCV 2024) for two of its convolutions",
        default_heads=lambda _: 8,
        knobs={
            "ratio": Knob(0.5, "inner width over the output channels; rounded to a multiple of 4", float, low=0.125, high=4),
            "key_dim": Knob(48, "channels of each query, of the one key and of the one value", high=1024),
        },
        scores=lambda pixels, heads, _: heads * pixels**2,
    ),
    BlockSpec("repvit_stem", "RepViTStem", "nas.blocks.repvit:RepViTStem", _REPVIT, stride=4),
    BlockSpec(
        "repvit_down",
        "RepViTDown",
        "nas.blocks.repvit:RepViTDown",
        _REPVIT,
        knobs={
            "ratio": Knob(2.0, "expansion of the channel mixers", float, low=0.125, high=16),
            "kernel": Knob(3, "kernel of the depthwise convolutions", low=3, high=31, odd=True),
        },
        stride=2,
    ),
    BlockSpec("efficientvit_stem", "EfficientViTStem", "nas.blocks.efficientvit:EfficientViTStem", _EFFICIENTVIT, stride=2),
    BlockSpec(
        "efficientvit_conv",
        "EfficientViTConv",
        "nas.blocks.efficientvit:EfficientViTConv",
        _EFFICIENTVIT,
        knobs={"ratio": _MBCONV},
        stride=2,
    ),
    BlockSpec(
        "efficientvit_down",
        "EfficientViTDown",
        "nas.blocks.efficientvit:EfficientViTDown",
        _EFFICIENTVIT,
        knobs={"ratio": _MBCONV},
        stride=2,
    ),
)

# `nas.blocks.register` adds a user's blocks to both.
CATALOG: dict[str, BlockSpec] = {spec.name: spec for spec in _SPECS if spec.stride == 1}
ROWS: dict[str, BlockSpec] = {spec.row: spec for spec in _SPECS}
