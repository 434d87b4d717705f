"""What follows from the papers' formulas, and what floating point makes of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nas.blocks import efficientvit
from nas.blocks.efficientvit import LiteMLA
from nas.blocks.irmb import IRMB, IRMBUnit
from nas.blocks.mobile_mqa import MobileMQAUnit
from nas.blocks.repvit import RepDW, RepViTUnit
from nas.blocks.riformer import AffineMixer


def image(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def test_mqa_commutes_with_any_permutation_of_pixels():
    unit = MobileMQAUnit(8, 2, 16, layer_scale=1.0).double().eval()
    x = image(2, 8, 6, 5)
    order = torch.randperm(30)
    shuffled = x.flatten(2)[:, :, order].reshape(x.shape)
    torch.testing.assert_close(unit(shuffled).flatten(2), unit(x).flatten(2)[:, :, order], rtol=0, atol=1e-12)


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


def test_irmb_does_not_see_its_padding():
    # A map inside one window: however large the window, so however much padding, attention is over the whole map.
    x = image(2, 8, 5, 4)
    whole = IRMB(8, 8, heads=2, window=0).double().eval()
    for window in (5, 7, 16):
        windowed = IRMB(8, 8, heads=2, window=window).double().eval()
        windowed.load_state_dict(whole.state_dict())
        torch.testing.assert_close(windowed(x), whole(x), rtol=0, atol=1e-12)
    # As EMO has it, the padding takes part.
    unmasked = IRMBUnit(8, 8, heads=2, window=7, mask_padding=False).double().eval()
    unmasked.load_state_dict(whole.units[0].state_dict())
    assert (unmasked(x) - whole(x)).abs().max() > 1e-4


def test_irmb_expands_before_or_after_attending():
    x = image(1, 8, 5, 4)
    pre = IRMBUnit(8, 8, heads=1, act=nn.Identity).double().eval()
    post = IRMBUnit(8, 8, heads=1, act=nn.Identity, attn_pre=False).double().eval()
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
