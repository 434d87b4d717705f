"""Each unit against its paper's formula, written with functions over the unit's own (shaken) parameters, in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.blocks.efficientvit import EfficientViTUnit
from nas.blocks.irmb import IRMBUnit
from nas.blocks.mobile_mqa import MobileMQAUnit
from nas.blocks.repvit import RepViTUnit
from nas.blocks.riformer import RIFormerUnit


def conv(x: Tensor, layer: nn.Conv2d) -> Tensor:
    """Stride 1 and "same" padding, as everywhere in the five units."""
    return F.conv2d(x, layer.weight, layer.bias, padding=layer.weight.shape[-1] // 2, groups=layer.groups)


def channelwise(vector: Tensor) -> Tensor:
    return vector.reshape(-1, 1, 1)


def bn(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    n = (x - channelwise(norm.running_mean)) / (channelwise(norm.running_var) + norm.eps).sqrt()
    return n * channelwise(norm.weight) + channelwise(norm.bias)


def gn(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    variance, mean = torch.var_mean(x, (1, 2, 3), keepdim=True, correction=0)
    return (x - mean) / (variance + norm.eps).sqrt() * channelwise(norm.weight) + channelwise(norm.bias)


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / 2**0.5)) / 2


def silu(x: Tensor) -> Tensor:
    return x * x.sigmoid()


def hardswish(x: Tensor) -> Tensor:
    return x * (x + 3).clamp(0, 6) / 6


def se(x: Tensor, gate: nn.Module, act: Callable[[Tensor], Tensor]) -> Tensor:
    return x * conv(act(conv(x.mean((2, 3), keepdim=True), gate.squeeze)), gate.excite).sigmoid()


def riformer(u: RIFormerUnit, x: Tensor) -> Tensor:
    n = gn(x, u.mixer.norm)
    affine = channelwise(u.mixer.weight) * n + channelwise(u.mixer.bias)
    x = x + channelwise(u.mixer.scale.gamma) * (affine - n)
    return x + channelwise(u.scale.gamma) * conv(gelu(conv(gn(x, u.norm), u.widen)), u.narrow)


def efficientvit(u: EfficientViTUnit, x: Tensor) -> Tensor:
    shape = x.shape
    qkv = conv(x, u.context.qkv)
    scales = [qkv, *(conv(conv(qkv, wide), mix) for wide, mix in u.context.blurs)]
    reads = []
    for head in torch.cat(scales, 1).flatten(2).split(3 * u.context.head_dim, 1):
        q, k, v = head.chunk(3, 1)
        similar = q.relu().transpose(1, 2) @ k.relu()  # (pixels, pixels)
        reads.append(v @ (similar / similar.sum(2, keepdim=True).clamp_min(1e-300)).transpose(1, 2))
    x = x + bn(conv(torch.cat(reads, 1).reshape(shape[0], -1, *shape[2:]), u.context.project.filter), u.context.project.norm)
    widen, _, local, _, narrow = u.local
    return x + bn(conv(hardswish(conv(hardswish(conv(x, widen)), local)), narrow.filter), narrow.norm)


def repvit(u: RepViTUnit, x: Tensor) -> Tensor:
    x = bn(bn(conv(x, u.mixer.wide.filter), u.mixer.wide.norm) + conv(x, u.mixer.point) + x, u.mixer.norm)
    x = x if isinstance(u.gate, nn.Identity) else se(x, u.gate, torch.relu)
    widen, narrow = u.mlp
    return x + bn(conv(gelu(bn(conv(x, widen.filter), widen.norm)), narrow.filter), narrow.norm)


def irmb(u: IRMBUnit, x: Tensor) -> Tensor:
    """The window reaches over the whole map; the windows have a test of their own."""
    y = bn(x, u.norm)
    heads = u.weigh.heads
    q, k = (t.unflatten(1, (heads, -1)).flatten(3) for t in conv(y, u.weigh.query_key).chunk(2, 1))
    seen = (q.transpose(2, 3) @ k / q.shape[2] ** 0.5).softmax(3)
    y = (y.unflatten(1, (heads, -1)).flatten(3) @ seen.transpose(2, 3)).reshape(y.shape)
    y = silu(conv(y, u.value[0]))
    local = silu(bn(conv(y, u.local.filter), u.local.norm))
    return x + conv(y + (local if isinstance(u.gate, nn.Identity) else se(local, u.gate, silu)), u.project)


def mobile_mqa(u: MobileMQAUnit, x: Tensor) -> Tensor:
    y, mixer = bn(x, u.norm), u.mixer
    q = conv(y, mixer.query).unflatten(1, (mixer.heads, mixer.key_dim)).flatten(3)
    if mixer.kv_stride == 1:
        below = [y, y]
    else:
        downs = (mixer.key_down, mixer.value_down)
        below = [bn(conv(y, down.filter)[:, :, :: mixer.kv_stride, :: mixer.kv_stride], down.norm) for down in downs]
    k, v = conv(below[0], mixer.key).flatten(2)[:, None], conv(below[1], mixer.value).flatten(2)[:, None]
    seen = (q.transpose(2, 3) @ k / mixer.key_dim**0.5).softmax(3)
    y = (v @ seen.transpose(2, 3)).reshape(x.shape[0], -1, *x.shape[2:])
    return x + channelwise(u.scale.gamma) * conv(y, mixer.output)


def shaken(unit: nn.Module) -> nn.Module:
    """No parameter or statistic keeps a value at which a wrong formula could be right."""
    for module in unit.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.25, 1.75)
    for parameter in unit.parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
        else:
            parameter.mul_(2)  # activations outside of their linear part
    return unit.double().eval()


CASES = {
    "riformer": (lambda: RIFormerUnit(12, 2.5), riformer),
    "efficientvit": (lambda: EfficientViTUnit(12, 2, 6, 2.5, (5,)), efficientvit),
    "efficientvit3": (lambda: EfficientViTUnit(12, 2, 6, 4.0, (3,)), efficientvit),
    "repvit": (lambda: RepViTUnit(12, 2.0, 3, se=False), repvit),
    "repvit-se": (lambda: RepViTUnit(12, 2.5, 5, se=True), repvit),
    "irmb": (lambda: IRMBUnit(12, heads=3, ratio=2.5, window=7), irmb),
    "irmb-se": (lambda: IRMBUnit(12, heads=2, kernel=5, window=0, se_ratio=0.25), irmb),
    "mobile_mqa": (lambda: MobileMQAUnit(12, 3, 4), mobile_mqa),
    "mobile_mqa-strided": (lambda: MobileMQAUnit(12, 2, 8, kv_stride=2), mobile_mqa),
}


@pytest.mark.parametrize("case", CASES)
def test_a_unit_is_its_formula(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr("nas.blocks.efficientvit.LiteMLA.eps", 1e-300)  # the formula has none
    make, formula = CASES[case]
    with torch.no_grad():
        unit = shaken(make())
        x = torch.randn(2, 12, 5, 7, dtype=torch.float64)
        expected = formula(unit, x)
        torch.testing.assert_close(unit(x), expected, rtol=1e-9, atol=1e-9)
        assert (expected - x).norm() > 0.1 * x.norm()
