"""Zero-cost scores beside their papers' formulas, written out by hand on nets of a few weights, and on whole detectors."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.blocks.catalog import CATALOG
from nas.blocks.common import SqueezeExcite
from nas.blocks.efficientvit import LiteMLA
from nas.blocks.mobile_mqa import MultiQueryAttention
from nas.errors import InputError
from nas.space.architecture import Architecture, model_yaml, place
from nas.space.skeleton import read_skeleton
from nas.training import zero_cost
from nas.training.zero_cost import (
    BATCH,
    SCORES,
    SIDE,
    Passes,
    UndefinedScoreError,
    activation_agreement,
    grouped_convolution,
    layer_weights,
    loss_gradients,
    score_batch,
    synaptic_flow,
    zero_cost_scores,
)
from nas.yolo.build import build
from nas.yolo.criterion import Batch, Criterion
from nas.yolo.decode import Images

Rectangles = Callable[[int, int, int], Images]
RECTIFIERS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.GELU, nn.Hardswish, nn.Mish, nn.ELU, nn.SELU, nn.PReLU)


def model_of(skeleton: str = "yolo11n", block: str | None = None, width: float = 1.0, seed: int = 0) -> nn.Module:
    """A skeleton with three classes, in every slot the block."""
    source = read_skeleton(f"{skeleton}.yaml")
    placements = [] if block is None else [place(slot, block, width, None, None, {}) for slot in source.slots]
    torch.manual_seed(seed)
    return build(
        {**model_yaml(source, Architecture(source.name, tuple(placed for placed in placements if placed is not None))), "nc": 3}
    )


def passes(agreement: Tensor | None = None, weights: list[Tensor] = [], gradients: list[Tensor] = []) -> Passes:  # noqa: B006
    return Passes(100, 1e6, torch.eye(2) if agreement is None else agreement, weights, gradients, 1.0)


@pytest.fixture
def batch(rectangles: Rectangles) -> Batch:
    return score_batch(rectangles(12, 64, 0), 0)


# --- NWOT


@pytest.mark.parametrize("rectifier", RECTIFIERS)
def test_nwot_of_a_net_of_two_layers(rectifier: type[nn.Module]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 7), rectifier(), nn.Linear(7, 5), rectifier(), nn.Linear(5, 2))
    images = torch.randn(4, 3)
    first = net[0](images)
    codes = torch.cat([first, net[2](net[1](first))], 1).detach().numpy() > 0
    kernel = np.array([[12 - np.sum(one != other) for other in codes] for one in codes], float)
    agreement = activation_agreement(net, images)
    assert agreement.tolist() == kernel.tolist()
    assert SCORES["nwot"](passes(agreement)) == pytest.approx(math.log(np.linalg.det(kernel)))


def test_codes_do_not_care_how_a_rectifier_is_called_nor_for_weighings() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = F.silu(x, inplace=True).relu() + torch.relu(-x)
            windows = y.reshape(8, 2, 3, 3)  # of each image two, as attention in windows has
            return F.gelu(windows).softmax(1) * F.scaled_dot_product_attention(y, y, y).sigmoid().mean()

    x = torch.randn(4, 4, 3, 3).contiguous(memory_format=torch.channels_last)
    y = F.silu(x)
    codes = torch.cat([c.reshape(4, -1) > 0 for c in (x, y, -y, y.relu() + torch.relu(-y))], 1).numpy()
    kernel = [[np.sum(one == other) for other in codes] for one in codes]
    assert activation_agreement(Net(), x.clone()).tolist() == kernel


def test_nwot_forgets_the_scale_of_relu_layers() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 9), nn.ReLU(), nn.Linear(9, 9), nn.ReLU())
    images = torch.randn(4, 3)
    before = activation_agreement(net, images)
    with torch.no_grad():
        net[0].weight *= 8  # powers of two: exact
        net[0].bias *= 8
        net[2].weight *= 0.25
        net[2].bias *= 8 * 0.25
    assert torch.equal(activation_agreement(net, images), before)


def test_every_rectifier_of_a_detector_has_its_bits(batch: Batch) -> None:
    model = deepcopy(model_of()).train()  # all models of a process share one SiLU, their copies do not: no hook may stay there
    bits = []
    for module in model.modules():
        if isinstance(module, nn.SiLU):
            module.register_forward_hook(lambda module, inputs, output: bits.append(output[0].numel()))
    agreement = activation_agreement(model, batch["img"])
    assert set(agreement.diagonal().tolist()) == {float(sum(bits))}
    assert torch.equal(agreement, agreement.round()) and torch.equal(agreement, agreement.T)


# --- synaptic flow


def flow_of(net: nn.Module, *shape: int) -> float:
    net = deepcopy(net).double().train()
    return synaptic_flow(net, layer_weights(net), shape)


def product(*weights: Tensor) -> float:
    """1ᵀ |W_n| … |W_1| 1."""
    signal = torch.ones(weights[0].shape[1], dtype=torch.float64)
    for weight in weights:
        signal = weight.detach().double().abs().flatten(1) @ signal
    return signal.sum().item()


def test_flow_of_linear_layers_is_their_product_once_per_layer() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 1, bias=False), nn.Conv2d(6, 5, 1, bias=False), nn.Conv2d(5, 2, 1, bias=False))
    conducted = 4 * 7 * product(*(layer.weight for layer in net))
    assert flow_of(net, 3, 4, 7) == pytest.approx(math.log(3 * conducted), rel=1e-12)
    dressed = nn.Sequential(
        net[0],
        nn.BatchNorm2d(6),
        nn.SiLU(),
        SqueezeExcite(6, 2, nn.ReLU()),
        nn.GroupNorm(2, 6),
        net[1],
        nn.ReLU6(),
        net[2],
        nn.GELU(),
    )
    assert flow_of(dressed, 3, 4, 7) == pytest.approx(math.log(3 * conducted), rel=1e-12)


def test_flow_does_not_overflow_where_single_precision_does() -> None:
    layers = [nn.Conv2d(64, 64, 1, bias=False) for _ in range(80)]
    for layer in layers:
        nn.init.ones_(layer.weight)
    assert flow_of(nn.Sequential(*layers), 64, 1, 1) == pytest.approx(81 * math.log(64) + math.log(80))


@pytest.mark.parametrize("linear", [False, True])
def test_attention_conducts_the_mean_of_its_values(linear: bool) -> None:
    torch.manual_seed(0)
    before = nn.Conv2d(3, 6, 3, padding=1, bias=False)  # at the borders it conducts less: the values differ
    if linear:
        attention: nn.Module = LiteMLA(6, 1, 4, ())
        value, output = attention.qkv.weight[8:], attention.project.filter.weight
    else:
        attention = MultiQueryAttention(6, 2, 4)
        value, output = torch.cat([attention.value.weight, attention.value.weight]), attention.output.weight  # two heads
    inputs = F.conv2d(torch.ones(1, 3, 4, 5), before.weight.detach().abs(), padding=1).sum((0, 2, 3))[:, None]
    expected = math.log(3 * product(inputs, value, output))
    found = flow_of(nn.Sequential(before, attention), 3, 4, 5)
    assert found == pytest.approx(expected, rel=1e-4 if linear else 1e-6), "the eps of a linear attention takes a little"


# --- gradients


def regression(seed: int = 0) -> tuple[nn.Module, list[Batch], list[np.ndarray]]:
    """Two linear layers, one unused and one shared by all, three parts of a batch, and the gradients written out."""
    torch.manual_seed(seed)
    net = nn.ModuleDict(
        {"first": nn.Linear(3, 4, bias=False), "unused": nn.Linear(2, 2), "second": nn.Linear(4, 2, bias=False)}
    )
    net.forward = lambda x: net["second"](net["first"](x))
    parts = [{"img": torch.randn(5, 3), "y": torch.randn(5, 2)} for _ in range(3)]
    a, b = (net[name].weight.detach().double().numpy() for name in ("first", "second"))
    by_first, by_second = [], []
    for part in parts:
        x, y = part["img"].double().numpy(), part["y"].double().numpy()
        error = x @ a.T @ b.T - y
        by_first.append(b.T @ error.T @ x)
        by_second.append(error.T @ (x @ a.T))
    return net, parts, [np.stack(by_first), np.zeros((3, 2, 2)), np.stack(by_second)]


def half_square(predictions: Tensor, part: Batch) -> Tensor:
    return (predictions - part["y"]).square().sum() / 2


def test_scores_of_gradients_are_their_formulas() -> None:
    net, parts, expected = regression()
    weights = layer_weights(net)
    gradients = loss_gradients(net, weights, parts, half_square)
    for gradient, wanted in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(gradient.numpy(), wanted, rtol=1e-4, atol=1e-5)
    found = {name: SCORES[name](passes(None, weights, gradients)) for name in ("grad_norm", "snip", "zico")}

    whole = [gradient.sum(0) for gradient in expected]
    assert found["grad_norm"] == pytest.approx(sum(np.sqrt((g**2).sum()) for g in whole), rel=1e-5)
    pairs = zip(weights, whole, strict=True)
    assert found["snip"] == pytest.approx(sum(np.abs(w.detach().numpy() * g).sum() for w, g in pairs), rel=1e-5)
    ratios = [np.mean(np.abs(g), 0) / np.std(np.abs(g), 0) for g in (expected[0], expected[2])]
    assert found["zico"] == pytest.approx(sum(np.log(ratio.sum()) for ratio in ratios), rel=1e-4)


def test_zico_and_nwot_are_not_defined_where_nothing_differs() -> None:
    steady = [torch.ones(3, 4, 2)]
    assert SCORES["zico"](passes(None, steady, steady)) == -math.inf
    assert SCORES["nwot"](passes(torch.full((3, 3), 5.0).double())) == -math.inf


def test_gradients_of_a_detector_are_those_of_its_parts(rectangles: Rectangles, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of()
    images = rectangles(5, 64, 0)
    images.labels[1] = images.labels[1][:0]
    batch = score_batch(images, 0)
    seen: list[Passes] = []
    observe = zero_cost._observe
    monkeypatch.setattr(zero_cost, "_observe", lambda *given: seen.append(observe(*given)) or seen[0])
    scores = zero_cost_scores(model, batch)

    twin = deepcopy(model).train()
    criterion = Criterion(twin, 1)
    inside = [(batch["batch_idx"] < 3), (batch["batch_idx"] >= 3)]
    for part, (rows, first) in enumerate(((slice(0, 3), 0), (slice(3, 5), 3))):
        labels = {name: batch[name][inside[part]] for name in ("cls", "bboxes", "batch_idx")}
        twin.zero_grad()
        criterion(
            twin(batch["img"][rows]), {"img": batch["img"][rows], **labels, "batch_idx": labels["batch_idx"] - first}
        ).backward()
        wanted = [weight.grad for weight in layer_weights(twin)]
        for got, gradient in zip(seen[0].gradients, wanted, strict=True):
            if gradient is not None:
                torch.testing.assert_close(got[part], gradient, rtol=1e-2, atol=1e-3 * float(gradient.abs().max()))
    assert scores["grad_norm"] > 0 and all(
        torch.equal(w, o) for w, o in zip(seen[0].weights, layer_weights(model), strict=True)
    )


# --- whole detectors


def state(model: nn.Module) -> tuple:
    return (
        {name: (id(tensor), tensor._version, tensor.clone()) for name, tensor in model.state_dict(keep_vars=True).items()},
        [(id(module), module.training, len(module._forward_hooks), sorted(vars(module))) for module in model.modules()],
        [(parameter.requires_grad, parameter.grad) for parameter in model.parameters()],
        [parameter.is_contiguous() for parameter in model.parameters()],
    )


@pytest.mark.parametrize("training", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_model_is_left_as_it_was(batch: Batch, training: bool) -> None:
    model = model_of(block="repvit").train(training)
    model.model[0].conv.weight.requires_grad_(False)
    given = {name: tensor.clone() for name, tensor in batch.items()}
    before, drawn = state(model), torch.get_rng_state()
    with torch.no_grad():
        scores = zero_cost_scores(model, batch)
    after = state(model)
    assert torch.equal(torch.get_rng_state(), drawn)
    for name, (identity, version, tensor) in before[0].items():
        assert after[0][name][:2] == (identity, version) and torch.equal(after[0][name][2], tensor), name
    assert after[1:] == before[1:]
    assert all(torch.equal(batch[name], tensor) for name, tensor in given.items())
    assert list(scores) == list(SCORES) and all(type(score) is float for score in scores.values())
    assert zero_cost_scores(model_of(block="repvit"), batch) == scores, "mode and requires_grad do not matter, equal seeds do"


CASES = [
    *(("yolo11n", block) for block in ("repvit", "mobile_mqa")),
    *(pytest.param("yolo11n", block, marks=pytest.mark.slow) for block in CATALOG if block not in {"repvit", "mobile_mqa"}),
    *((skeleton, None) for skeleton in ("yolov9t", "yolo26n")),
    *(
        pytest.param(skeleton, None, marks=pytest.mark.slow)
        for skeleton in ("yolov5n", "yolov8n", "yolov10n", "yolo11n", "yolo12n")
    ),
]


@pytest.mark.parametrize(("skeleton", "block"), CASES)
def test_every_block_and_skeleton_has_scores(batch: Batch, skeleton: str, block: str | None) -> None:
    scores = zero_cost_scores(model_of(skeleton, block), batch)
    assert scores["grad_norm"] > 0 and scores["snip"] > 0
    assert 0 < scores["nwot"] < BATCH * math.log(1e7)


@pytest.mark.slow
def test_what_each_score_looks_at(batch: Batch, rectangles: Rectangles) -> None:
    model = model_of()
    scores = zero_cost_scores(model, batch)
    labels = zero_cost_scores(model, {**batch, "cls": 2 - batch["cls"], "bboxes": batch["bboxes"] / 2})
    images = zero_cost_scores(model, score_batch(rectangles(8, 64, 5), 0))
    weights = zero_cost_scores(model_of(seed=1), batch)
    assert {name for name in SCORES if labels[name] != scores[name]} == {"grad_norm", "snip", "zico"}
    assert {name for name in SCORES if images[name] != scores[name]} == {"nwot", "grad_norm", "snip", "zico"}
    assert {name for name in SCORES if weights[name] == scores[name]} == {"log_params", "log_macs"}


@pytest.mark.parametrize("block", ["keep", pytest.param("irmb", marks=pytest.mark.slow)])
def test_wider_is_more(batch: Batch, block: str) -> None:
    found = [zero_cost_scores(model_of(block=block, width=width), batch) for width in (0.5, 1.25)]
    for name in ("log_params", "log_macs", "synflow", "nwot"):
        assert found[0][name] < found[1][name], name


def test_masks_are_scored_too() -> None:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 255, (6, 3, 64, 64), dtype=np.uint8)
    square = np.array([[8, 8], [40, 8], [40, 40], [8, 40]], np.float32)
    label = np.array([[0, 24 / 64, 24 / 64, 0.5, 0.5]], np.float32)
    images = Images(pixels, [label] * 6, polygons=[[square]] * 6)
    scores = zero_cost_scores(model_of("yolo11n-seg"), score_batch(images, 0))
    assert scores["grad_norm"] > 0


# --- what cannot be scored


@pytest.mark.slow
def test_what_is_not_finite_is_said(batch: Batch) -> None:
    model = model_of()
    with torch.no_grad():
        model.model[3].conv.weight[0, 0] = math.nan
    with pytest.raises(UndefinedScoreError, match=r"not finite: .*grad_norm = nan"):
        zero_cost_scores(model, batch)
    huge = model_of()
    torch._foreach_mul_([weight.detach() for weight in layer_weights(huge)], 1e6)
    with pytest.raises(UndefinedScoreError, match=r"synflow = (inf|nan)"):
        zero_cost_scores(huge, batch)
    same = {**batch, "img": batch["img"][:1].expand(BATCH, -1, -1, -1)}
    with pytest.raises(UndefinedScoreError, match="nwot = -inf"):
        zero_cost_scores(model_of(), same)


@pytest.mark.parametrize(("kernel", "stride", "groups", "bias"), [(3, 1, 8, True), (5, 2, 8, False), (1, 1, 2, False)])
def test_a_grouped_convolution_is_one_product(kernel: int, stride: int, groups: int, bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 16, kernel, stride, kernel // 2, groups=groups, bias=bias).double()
    x = torch.randn(2, 8, 7, 9, dtype=torch.float64, requires_grad=True)
    more = (layer.stride, layer.padding, layer.dilation, groups)
    expected, found = layer(x), grouped_convolution(x, layer.weight, layer.bias, *more)
    assert torch.allclose(expected, found, rtol=1e-12)
    given = torch.randn_like(expected)
    for leaf in (x, layer.weight):
        one, other = (torch.autograd.grad(y, leaf, given, retain_graph=True)[0] for y in (expected, found))
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-12)


def test_large_images_are_scored_small(rectangles: Rectangles) -> None:
    images = rectangles(12, 2 * SIDE, 0).take([11, 3, 5, 7, 9, 1])  # their pixels lie in another order
    corners = np.array([[0, 0], [8, 0], [8, 8]], np.float32)
    outlined = replace(images, polygons=[[corners] * len(label) for label in images.labels])
    batch = score_batch(outlined, 0)
    assert batch["img"].shape == (6, 3, SIDE, SIDE) and batch["masks"].shape == (6, SIDE // 4, SIDE // 4)
    means = images.read(slice(None)).reshape(6, 3, SIDE, 2, SIDE, 2).mean((3, 5)) / 255
    distance = np.abs(batch["img"].numpy()[:, None] - means[None]).max((2, 3, 4))
    assert sorted(distance.argmin(1)) == list(range(6)) and distance.min(1).max() < 0.51 / 255
    assert batch["bboxes"].max() < 5 / SIDE  # polygons shrink with the pixels


def test_images_to_score_by(rectangles: Rectangles) -> None:
    images = rectangles(12, 64, 0)
    images.pixels[3] = images.pixels[7]
    images.labels[5] = images.labels[5][:0]
    batches = [score_batch(images, seed) for seed in (0, 0, 1)]
    assert all(torch.equal(batches[0][name], batches[1][name]) for name in batches[0])
    assert not torch.equal(batches[0]["img"], batches[2]["img"])
    for seed in range(20):
        chosen = (score_batch(images, seed)["img"] * 255).round().byte().numpy()
        rows = [next(i for i in range(12) if np.array_equal(images.pixels[i], image)) for image in chosen]
        assert len(set(rows)) == BATCH and 5 not in rows
    few = Images(images.pixels[[3, 7, 1, 2]], [images.labels[i] for i in (3, 7, 1, 2)])
    with pytest.raises(InputError, match="3 different images"):
        zero_cost_scores(model_of(), score_batch(few, 0))
