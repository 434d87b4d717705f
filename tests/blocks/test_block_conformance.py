"""What every block of the catalog must do, whatever its paper."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import warnings

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from nas.blocks.catalog import CATALOG
from nas.blocks.common import SqueezeExcite

CASES = [
    *((name, {}) for name in CATALOG),
    ("efficientvit", {"heads": 3, "kernel": 3, "ratio": 1.5}),  # 3 heads do not divide 16 channels
    ("repvit", {"se": False, "kernel": 5, "ratio": 2.5}),
    ("irmb", {"heads": 2, "window": 0, "kernel": 5}),
    ("irmb", {"heads": 4, "window": 3, "se": True}),
    ("mobile_mqa", {"heads": 2, "key_dim": 8, "kv_stride": 2}),
]
every_case = pytest.mark.parametrize(
    ("name", "options"), CASES, ids=[f"{name}{i if options else ''}" for i, (name, options) in enumerate(CASES)]
)
SIZES = [(7, 5), (1, 1), (16, 9)]


def make(name: str, options: dict, c1: int = 8, c2: int = 16, depth: int = 2, *, shaken: bool = True) -> nn.Module:
    """A seeded block; `shaken` moves every vector and statistic away from what initialisation makes of it."""
    torch.manual_seed(0)
    block = CATALOG[name].load()(c1, c2, depth, **options)
    if shaken:
        for module in block.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, std=0.3)
                nn.init.uniform_(module.running_var, 0.25, 1.75)
        for parameter in block.parameters():
            if parameter.ndim == 1:
                nn.init.uniform_(parameter, 0.5, 1.5)
    return block.eval()


def image(h: int, w: int, n: int = 2, c: int = 8) -> Tensor:
    return torch.randn(n, c, h, w, generator=torch.Generator().manual_seed(h * 100 + w))


@every_case
def test_shape_and_finite(name, options):
    for c1, c2, depth in ((8, 16, 2), (16, 16, 1), (24, 8, 3)):
        block = make(name, options, c1, c2, depth)
        assert len(block.units) == depth
        assert isinstance(block.stem, nn.Identity) == (c1 == c2)
        for h, w in SIZES:
            for n in (1, 2):
                y = block(image(h, w, n, c1))
                assert y.shape == (n, c2, h, w)
                assert torch.isfinite(y).all()
    assert torch.isfinite(block.train()(image(5, 7, 2, 24))).all()


@every_case
def test_every_parameter_learns(name, options):
    block = make(name, options)  # eval mode: a batch norm in training mode cancels every bias before it
    (block(image(7, 5)) * image(7, 5, c=16)).sum().backward()
    assert [n for n, p in block.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []


@every_case
def test_first_steps_reduce_the_loss(name, options):
    block = make(name, options, shaken=False).train()
    x = image(7, 5)
    wanted = x.mean((2, 3), keepdim=True).sin().repeat(1, 2, 7, 5) + x.repeat(1, 2, 1, 1)
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
        assert len(left) == (2 if name == "irmb" or options.get("kv_stride") == 2 else 0)  # norms that padding follows
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
    other = make(name, options, shaken=False)
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
    one, two = make(name, options, shaken=False), make(name, options, shaken=False)
    y = one(x)
    assert torch.equal(one(x), y)
    assert torch.equal(two(x), y)


def export(block: nn.Module, size: tuple[int, int], dynamic: bool) -> onnxruntime.InferenceSession:
    buffer = io.BytesIO()
    axes = {"x": {0: "n", 2: "h", 3: "w"}, "y": {0: "n", 2: "h", 3: "w"}} if dynamic else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            block,
            (image(*size, n=1),),
            buffer,
            dynamo=False,
            opset_version=18,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes=axes,
        )
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(buffer.getvalue(), settings, providers=["CPUExecutionProvider"])


def assert_same_in_onnx(session: onnxruntime.InferenceSession, block: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        expected = block(x).numpy()
    (y,) = session.run(None, {"x": x.numpy()})
    assert y.shape == expected.shape
    assert np.abs(y - expected).max() <= 1e-4 * np.abs(expected).max()


@every_case
def test_onnx_of_any_size(name, options):
    block = make(name, options, depth=1).fuse()
    session = export(block, (14, 21), dynamic=True)  # traced where no window needs padding
    for h, w in ((14, 21), (9, 5), (1, 1)):
        assert_same_in_onnx(session, block, image(h, w, 2))


@every_case
def test_onnx_of_one_size(name, options):
    block = make(name, options, depth=1)
    for size in ((14, 7), (5, 9), (2, 2)):
        assert_same_in_onnx(export(block, size, dynamic=False), block, image(*size, 1))


@pytest.mark.parametrize("name", CATALOG)
def test_signature_is_the_catalogs(name):
    spec = CATALOG[name]
    parameters = inspect.signature(spec.load()).parameters
    assert list(parameters)[:4] == ["c1", "c2", "depth", "heads"]
    keywords = {k: p.default for k, p in parameters.items() if p.kind is p.KEYWORD_ONLY and k != "heads"}
    assert keywords == {knob: entry.default for knob, entry in spec.knobs.items()}
    assert spec.load().__module__ == f"nas.blocks.{name}"


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


@pytest.mark.parametrize("name", CATALOG)
def test_batch_norms_are_plain_and_names_are_ours(name):
    stock = {"cv1", "cv2", "cv3", "m", "conv", "bn", "attn"}
    for path, module in make(name, {}).named_modules():
        assert not stock & set(path.split("."))
        assert type(module) is nn.BatchNorm2d or not isinstance(module, nn.modules.batchnorm._BatchNorm)


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
    ],
)
def test_bad_arguments_say_what_is_wrong(name, c2, options, words):
    with pytest.raises(ValueError, match=words):
        CATALOG[name].load()(8, c2, **options)
