"""Every runtime computes what the model computes, and times that."""

import statistics
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nas.blocks.irmb import IRMBUnit
from nas.errors import InputError, UnreachableError
from nas.execution import work
from nas.latency.measure import measure
from nas.latency.runtimes import SESSIONS, Session
from nas.latency.target import Target
from nas.space.architecture import Architecture, model_yaml
from nas.space.reader import read_space
from nas.space.skeleton import read_skeleton
from nas.yolo.build import build, inference_form, parameters
from nas.yolo.stage import Stage

IMGSZ = 64
SPACES = {
    "convolutions": "{backbone.P3: {block: repvit}, backbone.P4: {block: irmb, width: 0.5}, neck.topdown.P3: "
    "{block: riformer}}",
    "attention": "{backbone.P4: {block: efficientvit, width: 1.25}, backbone.P5: {block: mobile_mqa}, neck.bottomup.P4: "
    "{block: repvit, depth: 2}}",
}
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(scope="module", params=SPACES)
def model_of_blocks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """A resolved model YAML that holds several blocks."""
    path = tmp_path_factory.mktemp("space") / "space.yaml"
    path.write_text(f"skeleton: yolo11n.yaml\nslots: {SPACES[request.param]}\n", encoding="utf-8")
    space = read_space(path)
    (architecture,) = space.enumerate()
    assert len(architecture.placements) == 3
    return model_yaml(space.skeleton, architecture, nc=3)


@pytest.fixture(scope="module")
def model(model_of_blocks: dict) -> nn.Module:
    """That model in eval mode, its norms as if it had been trained: fusing must get them right."""
    torch.manual_seed(0)
    model = build(model_of_blocks).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.7, 1.4)
    return model


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[CUDA] * kind.startswith("cuda")) for kind in SESSIONS])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_session_computes_what_the_model_does(model: nn.Module, kind: str, batch: int) -> None:
    session = SESSIONS[kind](inference_form(model), Target(kind, batch=batch), IMGSZ)
    images = np.random.default_rng(0).random((2, batch, 3, IMGSZ, IMGSZ), np.float32)
    seen = []
    for image in images:
        with torch.no_grad():
            expected = model(torch.from_numpy(image))[0].numpy()
        seen += session.infer(image)
        session.run()
        assert seen[-1].shape == expected.shape == (batch, 7, 84)
        limit = 1e-3 if kind.startswith("cpu") else 3e-2
        for part in (slice(4), slice(4, None)):  # boxes in pixels, probabilities
            assert np.abs(seen[-1][:, part] - expected[:, part]).max() <= limit * np.abs(expected[:, part]).max()
    assert not np.array_equal(*seen)
    np.testing.assert_array_equal(session.infer(images[0])[0], seen[0])


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[CUDA] * kind.startswith("cuda")) for kind in SESSIONS])
def test_a_session_computes_masks_too(kind: str) -> None:
    skeleton = read_skeleton("yolo11n-seg.yaml")
    torch.manual_seed(0)
    model = build(model_yaml(skeleton, Architecture(skeleton.name), nc=3)).eval()
    session = SESSIONS[kind](inference_form(model), Target(kind), IMGSZ)
    image = np.random.default_rng(0).random((1, 3, IMGSZ, IMGSZ), np.float32)
    with torch.no_grad():
        expected = [tensor.numpy() for tensor in model(torch.from_numpy(image))[0]]
    got = session.infer(image)
    assert [output.shape for output in got] == [(1, 39, 84), (1, 32, 16, 16)]
    limit = 1e-3 if kind.startswith("cpu") else 3e-2
    for output, wanted in zip(got, expected, strict=True):
        assert np.abs(output - wanted).max() <= limit * np.abs(wanted).max()


def test_nothing_unfused_is_timed(model_of_blocks: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    class Spy(Session):
        def __init__(self, model: nn.Module, target: Target, imgsz: int) -> None:
            stages = [module for module in model.modules() if isinstance(module, Stage)]
            assert len(stages) == 3 and all(stage.fused for stage in stages)
            for module in model.modules():
                # iRMB norms its input and then pads it: that norm cannot move into what follows
                if any(isinstance(child, nn.BatchNorm2d) for child in module.children()):
                    assert isinstance(module, IRMBUnit)
            assert not model.training and not any(p.requires_grad for p in model.parameters())
            seen.update(target=target, imgsz=imgsz, params=parameters(model))

        def infer(self, images: np.ndarray) -> list[np.ndarray]:
            raise AssertionError

        def run(self) -> None:
            seen["runs"] = seen.get("runs", 0) + 1
            time.sleep(0.001)

    seen: dict = {}
    reports: list = []
    monkeypatch.setitem(SESSIONS, "cpu:torch", Spy)
    told = work.price({"model": model_of_blocks, "target": "cpu:torch,batch=2", "imgsz": 96}, 0, reports.append)
    assert (seen["target"], seen["imgsz"]) == (Target("cpu:torch", batch=2), 96)
    assert reports == [{"quiet": True}]
    assert told["params"] == seen["params"] and told["ms"] >= 1 and seen["runs"] > told["runs"]


def test_price_of_a_model(model_of_blocks: dict) -> None:
    def reported(data: dict) -> None:
        assert data == {"quiet": True}

    payload = {"model": model_of_blocks, "target": "auto", "imgsz": IMGSZ}
    one, two = (work.price(payload | {"imgsz": imgsz}, 0, reported) for imgsz in (IMGSZ, 2 * IMGSZ))
    assert set(one) == {"ms", "p90", "spread", "runs", "rough", "params", "gmacs"}
    assert 0 < one["ms"] <= one["p90"] and one["spread"] >= 0
    assert one["params"] == two["params"] and 3.5 < two["gmacs"] / one["gmacs"] < 4.5


def test_a_real_figure_is_of_the_right_order(model: nn.Module) -> None:
    session = SESSIONS["cpu:onnxruntime"](inference_form(model), Target("cpu:onnxruntime"), IMGSZ)
    latency = measure(session.run)
    times = []
    for _ in range(50):
        began = time.perf_counter()
        session.run()
        times.append((time.perf_counter() - began) * 1e3)
    assert 0.1 < latency.ms / statistics.median(times) < 10
    assert 0 < latency.ms <= latency.p90 and latency.runs >= 50


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        ("cpu:onxruntime", InputError, "did you mean 'cpu:onnxruntime'"),
        pytest.param(
            "cuda:torch-fp16",
            UnreachableError,
            "no CUDA device found",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
        ),
    ],
)
def test_targets_that_are_not_there(model_of_blocks: dict, target: str, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        work.price({"model": model_of_blocks, "target": target, "imgsz": IMGSZ}, 0, print)


def test_no_file_stays_behind(model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    SESSIONS["cpu:onnxruntime"](inference_form(model), Target("cpu:onnxruntime"), IMGSZ).run()
    assert list(tmp_path.iterdir()) == []
