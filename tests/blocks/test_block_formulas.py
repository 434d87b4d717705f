"""Each unit against a plain numpy transcription of its paper's equations over the unit's own (shaken) parameters, in float64.

What a unit was built with is given to its formula in words, so that no formula reads it from the unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from block_cases import shaken
from numpy.lib.stride_tricks import sliding_window_view
from torch import nn

from nas.blocks.efficientvit import EfficientViTConv, EfficientViTDown, EfficientViTStem, EfficientViTUnit, MBConv
from nas.blocks.irmb import IRMBUnit
from nas.blocks.mobile_mqa import MobileMQAUnit, MultiQueryAttention
from nas.blocks.repvit import RepViTDown, RepViTStem, RepViTUnit
from nas.blocks.riformer import RIFormerUnit
from nas.yolo.mqa_elan import MQAELAN

Map = np.ndarray  # (N, C, H, W)


def conv(x: Map, layer: nn.Conv2d, stride: int = 1) -> Map:
    """Padded by half the kernel."""
    weight = layer.weight.numpy()
    n, c, k = x.shape[0], weight.shape[1], weight.shape[-1]
    groups = x.shape[1] // c
    views = sliding_window_view(np.pad(x, [(0, 0), (0, 0), (k // 2,) * 2, (k // 2,) * 2]), (k, k), (2, 3))
    views = views[:, :, ::stride, ::stride]
    views = views.reshape(n, groups, c, *views.shape[2:])
    y = np.einsum("ngchwij,gocij->ngohw", views, weight.reshape(groups, -1, c, k, k))
    y = y.reshape(n, -1, *y.shape[3:])
    return y if layer.bias is None else y + channelwise(layer.bias)


def channelwise(vector: torch.Tensor) -> np.ndarray:
    return vector.numpy().reshape(-1, 1, 1)


def affine(x: Map, norm: nn.Module) -> Map:
    return x * channelwise(norm.weight) + channelwise(norm.bias)


def bn(x: Map, norm: nn.BatchNorm2d, eps: float = 1e-5) -> Map:
    return affine((x - channelwise(norm.running_mean)) / np.sqrt(channelwise(norm.running_var) + eps), norm)


def gn(x: Map, norm: nn.GroupNorm) -> Map:
    """Mean and variance of a whole image, channels and pixels."""
    return affine((x - x.mean((1, 2, 3), keepdims=True)) / np.sqrt(x.var((1, 2, 3), keepdims=True) + 1e-5), norm)


def ln(x: Map, norm: nn.LayerNorm, eps: float) -> Map:
    """Mean and variance of the channels of each pixel."""
    return affine((x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + eps), norm)


def conv_bn(x: Map, pair: nn.Module, stride: int = 1, eps: float = 1e-5) -> Map:
    return bn(conv(x, pair.filter, stride), pair.norm, eps)


def sigmoid(x: Map) -> Map:
    return 1 / (1 + np.exp(-x))


def silu(x: Map) -> Map:
    return x * sigmoid(x)


def relu(x: Map) -> Map:
    return np.maximum(x, 0)


def hardswish(x: Map) -> Map:
    return x * np.clip(x + 3, 0, 6) / 6


gelu: Callable[[Map], Map] = np.vectorize(lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def se(x: Map, gate: nn.Module, act: Callable[[Map], Map]) -> Map:
    return x * sigmoid(conv(act(conv(x.mean((2, 3), keepdims=True), gate.squeeze)), gate.excite))


def pixels(x: Map, heads: int) -> np.ndarray:
    """(N, heads * d, H, W) -> (N, heads, H * W, d)."""
    n, c, h, w = x.shape
    return x.reshape(n, heads, c // heads, h * w).transpose(0, 1, 3, 2)


def to_map(tokens: np.ndarray, h: int, w: int) -> Map:
    """The inverse of `pixels`."""
    n, heads, _, d = tokens.shape
    return tokens.transpose(0, 1, 3, 2).reshape(n, heads * d, h, w)


def riformer(u: RIFormerUnit, x: Map) -> Map:
    n = gn(x, u.mixer.norm)
    scaled = channelwise(u.mixer.weight) * n + channelwise(u.mixer.bias)
    x = x + channelwise(u.mixer.scale.gamma) * (scaled - n)
    return x + channelwise(u.scale.gamma) * conv(gelu(conv(gn(x, u.norm), u.widen)), u.narrow)


def efficientvit(u: EfficientViTUnit, x: Map, *, heads: int) -> Map:
    """The quadratic form of the paper's equation 1; the unit computes the linear one."""
    h, w = x.shape[2:]
    qkv = conv(x, u.context.qkv)
    reads = []
    for scale in [qkv, *(conv(conv(qkv, wide), mix) for wide, mix in u.context.blurs)]:
        q, k, v = np.split(pixels(scale, heads), 3, -1)
        similar = relu(q) @ relu(k).swapaxes(-1, -2)
        reads.append(to_map(similar @ v / np.maximum(similar.sum(-1, keepdims=True), 1e-300), h, w))
    x = x + conv_bn(np.concatenate(reads, 1), u.context.project)
    return x + mbconv(u.local, x)


def mbconv(u: MBConv, x: Map, stride: int = 1) -> Map:
    widen, _, local, _, narrow = u
    return conv_bn(hardswish(conv(hardswish(conv(x, widen)), local, stride)), narrow)


def efficientvit_stem(u: EfficientViTStem, x: Map) -> Map:
    first, *rest = u
    x = hardswish(conv_bn(x, first, 2))
    for unit in rest:
        local, mix = unit.branch
        x = x + conv_bn(hardswish(conv_bn(x, local)), mix)
    return x


def efficientvit_conv(u: EfficientViTConv, x: Map) -> Map:
    def branch(unit: MBConv, x: Map, stride: int) -> Map:
        widen, local, narrow = unit
        return conv_bn(hardswish(conv_bn(hardswish(conv_bn(x, widen)), local, stride)), narrow)

    first, *rest = u
    x = branch(first, x, 2)
    for unit in rest:
        x = x + branch(unit.branch, x, 1)
    return x


def channel_mixer(u: nn.Module, x: Map) -> Map:
    widen, narrow = u
    return conv_bn(gelu(conv_bn(x, widen)), narrow)


def repvit(u: RepViTUnit, x: Map, *, gated: bool) -> Map:
    x = bn(conv_bn(x, u.mixer.wide) + conv(x, u.mixer.point) + x, u.mixer.norm)
    x = se(x, u.gate, relu) if gated else x
    return x + channel_mixer(u.mlp, x)


def repvit_stem(u: RepViTStem, x: Map) -> Map:
    return conv_bn(gelu(conv_bn(x, u[0], 2)), u[1], 2)


def repvit_down(u: RepViTDown, x: Map) -> Map:
    before, (local, point, mixer) = u
    x = conv_bn(conv_bn(repvit(before, x, gated=False), local, 2), point)
    return x + channel_mixer(mixer.branch, x)


def windows(h: int, w: int, window: int) -> list[list[tuple[int, int]]]:
    """EMO's windows as lists of pixels, of which some lie in the padding: window (i, j) of a grid of `down` x `across`
    holds every row that is i modulo `down` and every column that is j modulo `across`. 0: one window, no padding.
    """
    if not window:
        return [[(r, c) for r in range(h) for c in range(w)]]
    down, across = -(-h // window), -(-w // window)
    return [
        [(r, c) for r in range(i, down * window, down) for c in range(j, across * window, across)]
        for i in range(down)
        for j in range(across)
    ]


def window_attention(y: Map, v: Callable[[Map], Map], project: nn.Conv2d, heads: int, window: int, masked: bool) -> Map:
    """Softmax attention window by window, pixel by pixel; the padding is zeros before any projection."""
    n, _, h, w = y.shape
    groups = windows(h, w, window)
    rows, columns = (1 + max(p[axis] for group in groups for p in group) for axis in (0, 1))
    y = np.pad(y, [(0, 0), (0, 0), (0, rows - h), (0, columns - w)])
    q, k = (t.reshape(n, heads, -1, rows, columns) for t in np.split(conv(y, project), 2, 1))
    values = v(y).reshape(n, heads, -1, rows, columns)
    out = np.zeros_like(values)
    for group in groups:
        inside = [(r, c) for r, c in group if r < h and c < w]
        seen = tuple(zip(*(inside if masked else group), strict=True))
        for r, c in inside:
            logits = np.einsum("ndx,ndxs->nds", q[..., r, c], k[:, :, :, *seen]) / math.sqrt(q.shape[2])
            out[..., r, c] = np.einsum("nds,ndxs->ndx", softmax(logits), values[:, :, :, *seen])
    return out.reshape(n, -1, rows, columns)[:, :, :h, :w]


def irmb(
    u: IRMBUnit,
    x: Map,
    *,
    heads: int = 0,
    window: int = 7,
    act: Callable[[Map], Map] = silu,
    normed: Callable[..., Map] = bn,
    pre: bool = True,
    masked: bool = True,
    gated: bool = False,
    stride: int = 1,
    residual: bool = True,
) -> Map:
    def value(t: Map) -> Map:
        return act(conv(t, u.value[0]))

    y = normed(x, u.norm, eps=1e-6)
    if not heads:
        y = value(y)
    elif pre:
        y = value(window_attention(y, lambda t: t, u.weigh.query_key, heads, window, masked))
    else:
        y = window_attention(y, value, u.weigh.query_key, heads, window, masked)
    local = silu(conv_bn(y, u.local, stride, eps=1e-6))
    local = se(local, u.gate, act) if gated else local
    return x + conv(y + local, u.project) if residual else conv(local, u.project)


def interpolation(low: int, high: int) -> np.ndarray:
    """Weights (high, low) of linear interpolation between the centres of `low` cells, constant beyond the outer ones."""
    at = np.clip((np.arange(high) + 0.5) * low / high - 0.5, 0, low - 1)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(low)))


def attention(u: MultiQueryAttention, x: Map, *, heads: int, kv_stride: int = 1, q_stride: int = 1) -> Map:
    asking, below = x, [x, x]
    if q_stride > 1:
        edges = [range(0, size, q_stride) for size in x.shape[2:]]
        means = [x[:, :, r : r + q_stride, c : c + q_stride].mean((2, 3)) for r in edges[0] for c in edges[1]]
        asking = bn(np.stack(means, 2).reshape(*x.shape[:2], *map(len, edges)), u.query_norm)
    if kv_stride > 1:
        below = [conv_bn(x, down, kv_stride) for down in (u.key_down, u.value_down)]
    q = pixels(conv(asking, u.query), heads)
    k, v = pixels(conv(below[0], u.key), 1), pixels(conv(below[1], u.value), 1)
    y = to_map(softmax(q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])) @ v, *asking.shape[2:])
    if q_stride > 1:
        down, across = (interpolation(y.shape[axis], x.shape[axis]) for axis in (2, 3))
        y = np.einsum("ir,ncrs,js->ncij", down, y, across)
    return conv(y, u.output)


def mobile_mqa(u: MobileMQAUnit, x: Map, **options: int) -> Map:
    return x + channelwise(u.scale.gamma) * attention(u.mixer, bn(x, u.norm), **options)


def mqa_elan(u: MQAELAN, x: Map, *, heads: int) -> Map:
    def stock(t: Map, layer: nn.Module) -> Map:
        return silu(bn(conv(t, layer.conv), layer.bn))

    def csp(t: Map, layer: nn.Module) -> Map:
        y = stock(t, layer.cv1)
        for part in layer.m:
            branches = (part.cv1.conv1, part.cv1.conv2)
            y = y + stock(silu(sum(bn(conv(y, branch.conv), branch.bn) for branch in branches)), part.cv2)
        return stock(np.concatenate([y, stock(t, layer.cv2)], 1), layer.cv3)

    halves = np.split(stock(x, u.cv1), 2, 1)
    for way in (u.cv2, u.cv3):
        halves.append(attention(way[1], csp(halves[-1], way[0]), heads=heads))
    return stock(np.concatenate(halves, 1), u.cv4)


def irmb_unit(**options: Any) -> Callable[[], nn.Module]:
    return lambda: IRMBUnit(12, 12, **options)


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[..., Map], dict[str, Any]]] = {
    "riformer": (lambda: RIFormerUnit(12, 2.5), riformer, {}),
    "efficientvit": (lambda: EfficientViTUnit(12, 2, 6, 2.5, (5,)), efficientvit, {"heads": 2}),
    "efficientvit-two-scales": (lambda: EfficientViTUnit(12, 3, 3, 4.0, (3, 5)), efficientvit, {"heads": 3}),
    "efficientvit-stem": (lambda: EfficientViTStem(12, 8, 2), efficientvit_stem, {}),
    "efficientvit-conv": (lambda: EfficientViTConv(12, 8, 3, ratio=2.5), efficientvit_conv, {}),
    "efficientvit-down": (lambda: EfficientViTDown(12, 8), lambda u, x: mbconv(u[0], x, 2), {}),
    "repvit": (lambda: RepViTUnit(12, 2.0, 3, se=False), repvit, {"gated": False}),
    "repvit-se": (lambda: RepViTUnit(12, 2.5, 5, se=True), repvit, {"gated": True}),
    "repvit-stem": (lambda: RepViTStem(12, 8), repvit_stem, {}),
    "repvit-down": (lambda: RepViTDown(12, 8, ratio=1.5, kernel=5), repvit_down, {}),
    "irmb-one-window": (irmb_unit(heads=3, ratio=2.5), irmb, {"heads": 3}),
    "irmb-whole-map": (irmb_unit(heads=2, kernel=5, window=0), irmb, {"heads": 2, "window": 0}),
    "irmb-windows": (irmb_unit(heads=2, window=3), irmb, {"heads": 2, "window": 3}),
    "irmb-windows-unmasked": (
        irmb_unit(heads=2, window=3, mask_padding=False, qkv_bias=True),
        irmb,
        {"heads": 2, "window": 3, "masked": False},
    ),
    "irmb-values-first": (
        irmb_unit(heads=3, window=3, attn_pre=False),
        irmb,
        {"heads": 3, "window": 3, "pre": False},
    ),
    "irmb-values-first-unmasked": (
        irmb_unit(heads=3, window=3, attn_pre=False, mask_padding=False, qkv_bias=True),
        irmb,
        {"heads": 3, "window": 3, "pre": False, "masked": False},
    ),
    "irmb-as-in-emo": (
        irmb_unit(heads=3, kernel=5, window=3, norm="ln2d", act=nn.GELU, qkv_bias=True, mask_padding=False, se_ratio=0.25),
        irmb,
        {"heads": 3, "window": 3, "normed": ln, "act": gelu, "masked": False, "gated": True},
    ),
    "irmb-without-attention": (irmb_unit(attention=False, se_ratio=0.25), irmb, {"gated": True}),
    "irmb-strided": (
        lambda: IRMBUnit(12, 8, stride=2, ratio=3.0, heads=2, window=3),
        irmb,
        {"heads": 2, "window": 3, "stride": 2, "residual": False},
    ),
    "mobile_mqa": (lambda: MobileMQAUnit(12, 3, 4), mobile_mqa, {"heads": 3}),
    "mobile_mqa-keys-strided": (lambda: MobileMQAUnit(12, 2, 8, kv_stride=2), mobile_mqa, {"heads": 2, "kv_stride": 2}),
    "mobile_mqa-queries-strided": (lambda: MobileMQAUnit(12, 2, 8, q_stride=2), mobile_mqa, {"heads": 2, "q_stride": 2}),
    "mqa_elan": (lambda: MQAELAN(12, 8, 2, heads=3, ratio=1.0, key_dim=4), mqa_elan, {"heads": 3}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_unit_is_its_formula(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr("nas.blocks.efficientvit.LiteMLA.eps", 1e-300)  # the formula has none
    build, formula, options = CASES[case]
    with torch.no_grad():
        unit = shaken(build()).double()
        for parameter in unit.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2)  # activations outside of their linear part
        x = torch.randn(2, 12, 5, 7, dtype=torch.float64)
        y = unit(x).numpy()
        expected = formula(unit, x.numpy(), **options)
        np.testing.assert_allclose(y, expected, rtol=1e-9, atol=1e-9)
        before = x.numpy() if y.shape == x.shape else 0
        assert np.linalg.norm(expected - before) > 0.1 * np.linalg.norm(x)
