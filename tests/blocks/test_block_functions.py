"""The attentions against plain numpy transcriptions of the papers' formulas, pixel by pixel."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nas.blocks import efficientvit
from nas.blocks.efficientvit import LiteMLA
from nas.blocks.irmb import IRMB, IRMBUnit, WindowAttention
from nas.blocks.mobile_mqa import MobileMQAUnit, MultiQueryAttention
from nas.blocks.repvit import RepDW, RepViTUnit
from nas.blocks.riformer import AffineMixer


def image(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def pixels(x: Tensor) -> np.ndarray:
    """(C, H, W) -> (H * W, C)."""
    return x.flatten(1).T.numpy()


def matrix(conv: nn.Conv2d) -> np.ndarray:
    return conv.weight.flatten(1).numpy()


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


@pytest.mark.parametrize(("kv_stride", "memory_format"), [(1, torch.contiguous_format), (2, torch.channels_last)])
def test_mqa_is_its_formula(kv_stride, memory_format):
    heads, d, h, w = 3, 4, 5, 7
    mqa = MultiQueryAttention(6, heads, d, kv_stride).double().eval()
    x = image(2, 6, h, w)
    y = mqa(x.to(memory_format=memory_format))
    for n in range(2):
        key = pixels(mqa.key_down(x)[n]) @ matrix(mqa.key).T
        value = pixels(mqa.value_down(x)[n]) @ matrix(mqa.value).T
        for i, pixel in enumerate(pixels(x[n])):
            query = (matrix(mqa.query) @ pixel).reshape(heads, d)
            read = [softmax(key @ query[head] / np.sqrt(d)) @ value for head in range(heads)]
            np.testing.assert_allclose(pixels(y[n])[i], matrix(mqa.output) @ np.concatenate(read), atol=1e-12)


def test_mqa_commutes_with_any_permutation_of_pixels():
    unit = MobileMQAUnit(8, 2, 16, layer_scale=1.0).double().eval()
    x = image(2, 8, 6, 5)
    order = torch.randperm(30)
    shuffled = x.flatten(2)[:, :, order].reshape(x.shape)
    torch.testing.assert_close(unit(shuffled).flatten(2), unit(x).flatten(2)[:, :, order], rtol=0, atol=1e-12)


def test_lite_mla_is_its_formula():
    heads, d, h, w = 2, 3, 4, 5
    mla = LiteMLA(7, heads, d, (5, 3)).double().eval()
    x = image(1, 7, h, w)
    qkv = mla.qkv(x)
    scales = [qkv, *(blur(qkv) for blur in mla.blurs)]
    reads = []
    for scale in scales:
        for head in np.split(pixels(scale[0]), heads, 1):
            q, k, v = np.split(head, 3, 1)
            q, k = np.maximum(q, 0), np.maximum(k, 0)
            similar = q @ k.T  # quadratic form; the block computes the linear one
            reads.append(similar @ v / (similar.sum(1, keepdims=True) + mla.eps * h * w))
    expected = mla.project(torch.from_numpy(np.concatenate(reads, 1).T.reshape(1, -1, h, w)))
    torch.testing.assert_close(mla(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(2, 2), (160, 160)])
def test_lite_mla_survives_what_overflows_half_precision(size):
    mla = LiteMLA(16, 1, 16).half().eval()
    x = 100 * image(1, 16, *size).half()
    x[:, :, 0, 0] = 0  # a pixel without any query
    assert torch.isfinite(mla(x)).all()
    mla.qkv.weight.zero_()
    assert torch.isfinite(mla(x)).all()


class FlushSubnormals(TorchFunctionMode):
    """Every result below the normal numbers of float16 is zero, as on much hardware."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.dtype == torch.float16:
            return torch.where(result.abs() < torch.finfo(torch.float16).tiny, 0, result)
        return result


@pytest.mark.parametrize("side", [80, 160])
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_lite_mla_is_accurate_where_a_runtime_computes_in_half_precision(monkeypatch, side, scale):
    mla = LiteMLA(16, 2, 16)
    qkv = (scale * (image(1, 2, 48, side * side) + 0.5)).half()
    expected = mla._attend(qkv.double())
    monkeypatch.setattr(torch, "promote_types", lambda first, second: first)  # no cast to float32
    monkeypatch.setattr(efficientvit, "has_torch_function", lambda tensors: False)  # its single operations are to be flushed
    with FlushSubnormals():
        got = mla._attend(qkv)
    assert got.dtype == torch.float16
    assert mla.eps >= torch.finfo(torch.float16).tiny
    assert (got.double() - expected).norm() < 0.002 * expected.norm()


def grid_windows(h: int, w: int, window: int) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """Pixels (also padded ones) of each window, by their definition."""
    down, across = -(-h // window), -(-w // window)
    members: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for row, column in itertools.product(range(down * window), range(across * window)):
        members.setdefault((row % down, column % across), []).append((row, column))
    return members


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("size", [(6, 6), (4, 7), (2, 1)])
def test_window_attention_is_its_formula(masked, size):
    heads, d, window = 2, 3, 3
    layer = WindowAttention(heads * d, heads, window, True, masked).double()
    x = image(1, heads * d, *size)
    y = layer(x, nn.Identity())
    weight, bias = matrix(layer.query_key), layer.query_key.bias.numpy()
    for members in grid_windows(*size, window).values():
        inside = [p for p in members if p[0] < size[0] and p[1] < size[1]]
        keys = inside if masked else members
        tokens = {p: x[0, :, p[0], p[1]].numpy() if p in inside else np.zeros(heads * d) for p in members}
        projected = {p: (weight @ t + bias).reshape(2, heads, d) for p, t in tokens.items()}
        for p in inside:
            for head in range(heads):
                logits = np.array([projected[p][0, head] @ projected[key][1, head] for key in keys]) / np.sqrt(d)
                values = np.stack([tokens[key].reshape(heads, d)[head] for key in keys])
                read = y[0, head * d : (head + 1) * d, p[0], p[1]].numpy()
                np.testing.assert_allclose(read, softmax(logits) @ values, atol=1e-12)


def test_irmb_does_not_see_its_padding():
    # A map inside one window: however large the window, so however much padding, attention is over the whole map.
    x = image(2, 8, 5, 4)
    whole = IRMB(8, 8, heads=2, window=0).double().eval()
    for window in (5, 7, 16):
        windowed = IRMB(8, 8, heads=2, window=window).double().eval()
        windowed.load_state_dict(whole.state_dict())
        torch.testing.assert_close(windowed(x), whole(x), rtol=0, atol=1e-12)
    # As EMO has it, the padding takes part.
    unmasked = IRMBUnit(8, heads=2, window=7, mask_padding=False).double().eval()
    unmasked.load_state_dict(whole.units[0].state_dict())
    assert (unmasked(x) - whole(x)).abs().max() > 1e-4


def test_irmb_expands_before_or_after_attending():
    x = image(1, 8, 5, 4)
    pre = IRMBUnit(8, heads=1, act=nn.Identity).double().eval()
    post = IRMBUnit(8, heads=1, act=nn.Identity, attn_pre=False).double().eval()
    post.load_state_dict(pre.state_dict())
    torch.testing.assert_close(post(x), pre(x), rtol=0, atol=1e-12)  # the same for one head and linear values only
    post.value[1] = pre.value[1] = nn.SiLU()
    assert (post(x) - pre(x)).abs().max() > 1e-6


def test_repvit_branches_and_start():
    mixer = RepDW(4).double().eval()
    x = image(1, 4, 5, 6)
    branches = mixer.wide(x) + mixer.point(x) + x
    torch.testing.assert_close(mixer(x), mixer.norm(branches))
    unit = RepViTUnit(4, se=False).double().eval()
    assert torch.equal(unit(x), unit.mixer(x))  # its channel mixer starts at zero


def test_riformer_mixer_starts_at_zero_and_moves():
    mixer = AffineMixer(4, 0.1).double()
    x = image(2, 4, 3, 3)
    assert not mixer(x).any()
    with torch.enable_grad():
        mixer(x).square().sum().backward()
        assert not mixer.weight.grad.any()
        (mixer(x) * image(2, 4, 3, 3)).sum().backward()
    assert mixer.weight.grad.all()
    assert mixer.bias.grad.all()
