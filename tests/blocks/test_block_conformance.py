"""What every row of the catalog must do, whatever its paper."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch
from block_cases import ONCE, SIZES, SPECS, every_case, every_row, image, make
from torch import nn

from nas.blocks.common import BlockBase, SqueezeExcite
from nas.yolo.stage import Stage


@every_case
def test_shape_and_finite(name, options):
    for c1, c2, depth in ((8, 16, 2), (16, 16, 1), (24, 8, 3)):
        block = make(name, options, c1, c2, depth)
        if isinstance(block, BlockBase):
            assert len(block.units) == depth
            assert isinstance(block.stem, nn.Identity) == (c1 == c2)
        for h, w in SIZES:
            for n in (1, 2):
                y = block(image(h, w, n, c1))
                assert y.shape == (n, c2, -(-h // SPECS[name].stride), -(-w // SPECS[name].stride))
                assert torch.isfinite(y).all()
    assert torch.isfinite(block.train()(image(5, 7, 2, 24))).all()


@every_case
def test_every_parameter_learns(name, options):
    block = make(name, options)  # eval mode: a batch norm in training mode cancels every bias before it
    y = block(image(7, 5))
    (y * image(*y.shape[2:], c=16)).sum().backward()
    assert [n for n, p in block.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []


@every_case
def test_first_steps_reduce_the_loss(name, options):
    block = make(name, options, fresh=True).train()
    x = image(7, 5)
    every = SPECS[name].stride
    wanted = (x.mean((2, 3), keepdim=True).sin() + x).repeat(1, 2, 1, 1)[..., ::every, ::every]
    optimizer = torch.optim.AdamW(block.parameters(), lr=4e-3)
    losses = []
    for _ in range(12):
        loss = (block(x) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert all(p.grad is not None for p in block.parameters())


@every_case
def test_channels_last_is_only_a_layout(name, options):
    block = make(name, options).double()
    x = image(7, 6).double()
    expected = block(x)
    block.to(memory_format=torch.channels_last)
    torch.testing.assert_close(block(x.to(memory_format=torch.channels_last)), expected, rtol=1e-10, atol=1e-10)


@every_case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(name, options, dtype):
    block = make(name, options)
    x = image(8, 6)
    expected = block(x)
    with torch.autocast("cpu", dtype):
        y = block(x)
    assert torch.isfinite(y).all()
    assert (y - expected).norm() < 0.05 * expected.norm()
    y.float().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in block.parameters())
    whole = copy.deepcopy(block).to(dtype)(x.to(dtype))
    assert whole.dtype == dtype
    assert (whole - expected).norm() < 0.1 * expected.norm()


@every_case
def test_fuse_changes_nothing(name, options):
    block = make(name, options).double()
    maps = [image(h, w).double() for h, w in SIZES]
    with torch.no_grad():
        expected = [block(x) for x in maps]
        before = sum(p.numel() for p in block.parameters())
        assert block.fuse() is block
        once = copy.deepcopy(block.state_dict())
        assert max((block(x) - y).abs().max() for x, y in zip(maps, expected, strict=True)) <= 1e-12
        # nothing to fold again, and nothing whose output depends on the mode
        again = block.fuse().state_dict()
        assert once.keys() == again.keys()
        assert all(torch.equal(once[key], again[key]) for key in once)
        left = [m for m in block.modules() if isinstance(m, nn.BatchNorm2d)]
        assert len(left) == (2 if name == "irmb" or options.get("kv_stride", 1) > 1 else 0)  # norms that padding follows
        if not left:
            assert torch.equal(block.train()(maps[0]), block.eval()(maps[0]))
        if name != "mobile_mqa":
            assert sum(p.numel() for p in block.parameters()) < before


@every_case
def test_fuse_in_training_mode_gives_the_eval_function(name, options):
    block = make(name, options).double()
    x = image(7, 5).double()
    with torch.no_grad():
        expected = block(x)
        assert (block.train().fuse().eval()(x) - expected).abs().max() <= 1e-12


@every_case
def test_as_ultralytics_leaves_it(name, options):
    """Ultralytics makes activations work in place and gives plain batch norms its own eps: neither may break a thing."""
    block = make(name, options).double()
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-3
    x = image(7, 5).double()
    gradients = []
    for _ in range(2):
        y = block(x)
        y.square().sum().backward()
        gradients.append([p.grad.clone() for p in block.parameters()])
        block.zero_grad()
        for module in block.modules():
            if hasattr(module, "inplace"):
                module.inplace = True
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    with torch.no_grad():
        assert (block.fuse()(x) - y).abs().max() <= 1e-12


@every_case
@pytest.mark.parametrize("fused", [False, True])
def test_saved_and_loaded(name, options, fused):
    block = make(name, options)
    other = make(name, options, fresh=True)
    if fused:
        block.fuse()
        other.fuse()
    x = image(7, 5)
    other.load_state_dict(block.state_dict(), strict=True)
    assert torch.equal(other(x), block(x))
    assert torch.equal(pickle.loads(pickle.dumps(block))(x), block(x))


@every_case
def test_deterministic(name, options):
    x = image(7, 5)
    one, two = make(name, options, fresh=True), make(name, options, fresh=True)
    y = one(x)
    assert torch.equal(one(x), y)
    assert torch.equal(two(x), y)


@every_row
def test_signature_is_the_catalogs(name):
    spec = SPECS[name]
    block = spec.load()
    parameters = inspect.signature(block).parameters
    assert list(parameters)[:4] == ["c1", "c2", "depth", "heads"]
    keywords = {k: p.default for k, p in parameters.items() if p.kind is p.KEYWORD_ONLY and k != "heads"}
    assert keywords == {knob: entry.default for knob, entry in spec.knobs.items()}
    assert spec.source == f"{block.__module__}:{block.__name__}"


def test_what_a_stage_makes_of_its_knobs():
    gates = [unit.gate for unit in make("repvit", {}, depth=3).units]
    assert [isinstance(gate, SqueezeExcite) for gate in gates] == [True, False, True]
    # 72 channels: the default heads, and as many as were asked for
    for options, heads in (({}, 4), ({"heads": 5}, 5)):
        attention = make("efficientvit", options, c2=72).units[0].context
        assert (attention.groups, attention.head_dim) == (2 * heads, 72 // heads)
    assert make("irmb", {}, c2=72).units[0].weigh.heads == 2
    assert make("irmb", {"heads": 6}, c2=72).units[0].weigh.heads == 6
    assert make("mobile_mqa", {"heads": 6}, c2=72).units[0].mixer.query.out_channels == 6 * 32


@every_row
def test_batch_norms_are_plain(name):
    """Ultralytics looks for the exact type where it sets its own eps and momentum."""
    for module in make(name, {}).modules():
        assert type(module) is nn.BatchNorm2d or not isinstance(module, nn.modules.batchnorm._BatchNorm)


@every_row
def test_no_weight_of_a_stock_layer_is_taken_for_one_of_ours(name):
    """Ultralytics transfers weights by name and shape; no module of its own begins with `block`."""
    stage = Stage(SPECS[name].row, 8, 16, 1)
    assert {key.split(".")[0] for key in stage.state_dict()} == {"block"}
    stage.fuse()
    assert {key.split(".")[0] for key in stage.state_dict()} == {"block"}


@pytest.mark.parametrize(
    ("name", "c2", "options", "words"),
    [
        ("repvit", 16, {"kernel": 4}, "kernel must be odd"),
        ("repvit", 16, {"heads": 2}, "has no heads"),
        ("repvit", 0, {}, "c2 must be a positive"),
        ("irmb", 16, {"heads": 3}, "3 heads do not divide 16"),
        ("irmb", 16, {"window": -1}, "window must be from 0"),
        ("efficientvit", 16, {"heads": 17}, "17 heads need at least"),
        ("mobile_mqa", 16, {"heads": 0}, "heads must be a positive"),
        ("mobile_mqa", 16, {"layer_scale": float("nan")}, "layer_scale must be from 0 to 10"),
        ("riformer", 16, {"depth": 0}, "depth must be a positive"),
        ("mqa_elan", 16, {"ratio": 0.1}, "ratio must be from 0.125"),
        *((name, 16, {"depth": 2}, f"{SPECS[name].row}: depth must be 1, not 2") for name in sorted(ONCE)),
    ],
)
def test_bad_arguments_say_what_is_wrong(name, c2, options, words):
    with pytest.raises(ValueError, match=words):
        SPECS[name].load()(8, c2, **options)
