"""Every runtime computes what the model computes, and times that."""

import statistics
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nas.blocks.irmb import IRMBUnit
from nas.errors import InputError, UnreachableError, UnstableError
from nas.execution import work
from nas.hardware import cores
from nas.latency.measure import Latency, Unstable
from nas.latency.runtimes import SESSIONS, Session
from nas.latency.target import Target
from nas.latency.timing import repeat_spread, repeated
from nas.space.architecture import Architecture, model_yaml
from nas.space.reader import read_space
from nas.space.skeleton import read_skeleton
from nas.yolo.build import build, inference_form, is_end2end, parameters
from nas.yolo.stage import Stage

IMGSZ = 64
SPACES = {
    "convolutions": "{backbone.P3: {block: repvit}, backbone.P4: {block: irmb, width: 0.5}, neck.topdown.P3: "
    "{block: riformer}}",
    "attention": "{backbone.P4: {block: efficientvit, width: 1.25}, backbone.P5: {block: mobile_mqa}, neck.bottomup.P4: "
    "{block: repvit, depth: 2}}",
}
# What a precision may do to an output, as a share of the largest value.
LIMITS = {"fp32": 1e-3, "fp16": 3e-2, "bf16": 1e-1}


def reachable(kind: str) -> bool:
    try:
        Target.parse(kind).require()
    except UnreachableError:
        return False
    return True


EVERY_KIND = pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=pytest.mark.skipif(not reachable(k), reason=f"no {k} here")) for k in SESSIONS]
)


def opened(model: nn.Module, kind: str, size: tuple[int, int] = (IMGSZ, IMGSZ), **how: object) -> Session:
    return SESSIONS[kind](inference_form(model), Target(kind, imgsz=size, **how))


def close(got: np.ndarray, wanted: np.ndarray, kind: str) -> bool:
    return np.abs(got - wanted).max() <= LIMITS[Target(kind).precision] * np.abs(wanted).max()


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few blocks: what is measured here is looked at for its kind, not for its value."""
    for name, value in {"BLOCKS": 3, "MAX_BLOCKS": 3, "LAST_BLOCKS": 4, "REST_SECONDS": 0.0, "WARM_UP_SECONDS": 0.2}.items():
        monkeypatch.setattr(f"nas.latency.measure.{name}", value)


@pytest.fixture(scope="module", params=[pytest.param("convolutions", marks=pytest.mark.slow), "attention"])
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


@EVERY_KIND
@pytest.mark.parametrize(("batch", "size"), [(1, (64, 64)), (2, (64, 96))])
def test_a_session_computes_what_the_model_does(model: nn.Module, kind: str, batch: int, size: tuple[int, int]) -> None:
    session = opened(model, kind, size, batch=batch)
    images = np.random.default_rng(0).random((2, batch, 3, *size), np.float32)
    seen = []
    for image in images:
        with torch.no_grad():
            expected = model(torch.from_numpy(image))[0].numpy()
        seen += session.infer(image)
        session.run()
        assert seen[-1].dtype == np.float32
        assert seen[-1].shape == expected.shape == (batch, 7, size[0] * size[1] * 21 // 1024)
        for part in (slice(4), slice(4, None)):  # boxes in pixels, probabilities
            assert close(seen[-1][:, part], expected[:, part], kind)
    assert not np.array_equal(*seen) or Target(kind).precision in {"bf16", "fp16"}  # too coarse to tell two noises apart
    np.testing.assert_array_equal(session.infer(images[0])[0], seen[0])


def plain() -> nn.Module:
    skeleton = read_skeleton("yolo11n.yaml")
    return build(model_yaml(skeleton, Architecture(skeleton.name), nc=3)).eval()


@EVERY_KIND
def test_a_session_computes_masks_too(kind: str) -> None:
    skeleton = read_skeleton("yolo11n-seg.yaml")
    torch.manual_seed(0)
    model = build(model_yaml(skeleton, Architecture(skeleton.name), nc=3)).eval()
    image = np.random.default_rng(0).random((1, 3, IMGSZ, IMGSZ), np.float32)
    with torch.no_grad():
        expected = [tensor.numpy() for tensor in model(torch.from_numpy(image))[0]]
    got = opened(model, kind).infer(image)
    assert [output.shape for output in got] == [(1, 39, 84), (1, 32, 16, 16)]
    assert all(close(output, wanted, kind) for output, wanted in zip(got, expected, strict=True))


@EVERY_KIND
@pytest.mark.parametrize("name", [pytest.param("yolov10n.yaml", marks=pytest.mark.slow), "yolo26n.yaml"])
def test_a_head_that_picks_its_boxes_is_timed_to_the_end(kind: str, name: str) -> None:
    skeleton = read_skeleton(name)
    torch.manual_seed(0)
    model = build(model_yaml(skeleton, Architecture(skeleton.name), nc=3)).eval()
    assert is_end2end(model)
    image = np.random.default_rng(0).random((1, 3, IMGSZ, 2 * IMGSZ), np.float32)
    (got,) = opened(model, kind, (IMGSZ, 2 * IMGSZ)).infer(image)
    assert got.shape == (1, 168, 6)
    model.end2end = True
    with torch.no_grad():
        expected = model(torch.from_numpy(image))[0].numpy()
    assert (np.diff(got[0, :, 4]) <= 0).all()
    assert close(got[..., 4], expected[..., 4], kind)


@EVERY_KIND
def test_rows_are_those_of_the_model_and_take_the_time_that_it_takes(model: nn.Module, kind: str) -> None:
    session = opened(model, kind)
    rows = session.rows()
    if rows is None:
        pytest.skip(f"{kind} has no profiler of rows")
    assert set(rows) <= set(range(len(model.model))) and list(rows) == sorted(rows)
    assert all(ms >= 0 for ms in rows.values())
    stages = {row for row, layer in enumerate(model.model) if isinstance(layer, Stage)}
    assert all(rows[row] > 0 for row in {0, *stages, len(model.model) - 1})
    times = []
    for _ in range(20):
        began = time.perf_counter()
        session.run()
        times.append((time.perf_counter() - began) * 1e3)
    assert 0.01 < sum(rows.values()) / statistics.median(times) < 100  # milliseconds, on however busy a machine


@pytest.mark.slow
@EVERY_KIND
def test_a_wide_row_takes_its_share(kind: str) -> None:
    skeleton = read_skeleton("yolo11n.yaml")
    shares = []
    for channels in (32, 512):
        resolved = model_yaml(skeleton, Architecture(skeleton.name), nc=3)
        resolved["backbone"][2][3][0] = channels
        rows = opened(build(resolved).eval(), kind, (128, 128)).rows()
        if rows is None:
            pytest.skip(f"{kind} has no profiler of rows")
        shares.append({row: ms / sum(rows.values()) for row, ms in rows.items()})
    assert shares[1][2] > shares[0][2]


@EVERY_KIND
def test_one_thread_is_one_thread(kind: str) -> None:
    if kind.startswith("cuda"):
        pytest.skip("a GPU has no threads")
    session = opened(plain(), kind, (160, 160))
    session.run()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(10):
        session.run()
    assert (time.process_time() - cpu) / (time.perf_counter() - wall) < 1.2


@pytest.mark.parametrize("threads", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_thread_numbers_reach_the_runtimes(threads: int) -> None:
    def reached(kind: str) -> Session:
        return opened(plain(), kind, threads=threads)

    assert reached("cpu:onnxruntime")._session.get_session_options().intra_op_num_threads == threads
    reached("cpu:torch")
    assert torch.get_num_threads() == threads
    if reachable("cpu:openvino"):
        compiled = reached("cpu:openvino")._request.get_compiled_model()
        assert compiled.get_property("INFERENCE_NUM_THREADS") == min(threads, cores())


def test_what_a_gpu_target_needs_is_said(model: nn.Module) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    for kind in ("cuda:torch-fp16", "cuda:tensorrt-fp16"):
        with pytest.raises(UnreachableError, match="no CUDA device found"):
            opened(model, kind)


def test_nothing_unfused_is_timed(model_of_blocks: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    class Spy(Session):
        def __init__(self, model: nn.Module, target: Target) -> None:
            stages = [module for module in model.modules() if isinstance(module, Stage)]
            assert len(stages) == 3 and all(stage.fused for stage in stages)
            for module in model.modules():
                # iRMB norms its input and then pads it: that norm cannot move into what follows
                if any(isinstance(child, nn.BatchNorm2d) for child in module.children()):
                    assert isinstance(module, IRMBUnit)
            assert not model.training and not any(p.requires_grad for p in model.parameters())
            seen.update(target=target, params=parameters(model))

        def infer(self, images: np.ndarray) -> list[np.ndarray]:
            raise AssertionError

        def run(self) -> None:
            seen["runs"] = seen.get("runs", 0) + 1
            time.sleep(0.001)

        def rows(self) -> None:
            raise AssertionError

    seen: dict = {}
    reports: list = []
    monkeypatch.setitem(SESSIONS, "cpu:torch", Spy)
    payload = {"model": model_of_blocks, "target": "cpu:torch,batch=2,threads=2", "imgsz": 96}
    told = work.price(payload | {"allow_noisy": True}, 0, reports.append)
    assert seen["target"] == Target("cpu:torch", batch=2, threads=2, imgsz=(96, 96))
    assert reports == [{"quiet": True}]
    assert told["params"] == seen["params"] and told["ms"] >= 1 and seen["runs"] > told["runs"]


def test_price_of_a_model(model_of_blocks: dict) -> None:
    def reported(data: dict) -> None:
        assert data == {"quiet": True}

    payload = {"model": model_of_blocks, "target": "cpu:onnxruntime", "imgsz": IMGSZ, "allow_noisy": True}
    one, two = (work.price(payload | {"imgsz": imgsz}, 0, reported) for imgsz in (IMGSZ, 2 * IMGSZ))
    assert set(one) == {
        *("ms", "low", "high", "p90", "spread", "runs", "cpu_ms", "rough", "noisy", "throttled"),
        *("params", "gmacs", "size_mb", "memory_mb", "source", "end2end", "measured_on"),
    }
    assert 0 <= one["low"] <= one["ms"] <= one["high"] and one["ms"] <= one["p90"] and one["spread"] >= 0
    assert (one["source"], one["end2end"]) == ("measured", False) and one["cpu_ms"] > 0
    assert one["params"] == two["params"] and 3.5 < two["gmacs"] / one["gmacs"] < 4.5
    flat = work.price(payload | {"target": "cpu:onnxruntime,imgsz=64x128"}, 0, reported)
    assert 1.8 < flat["gmacs"] / one["gmacs"] < 2.2


def test_an_unstable_latency_is_refused_in_words_that_a_search_knows(
    model_of_blocks: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unstable(*_: object, allow_noisy: bool, **__: object) -> Latency:
        assert not allow_noisy
        raise Unstable("the machine is never still")

    monkeypatch.setattr("nas.latency.timing.measure", unstable)
    payload = {"model": model_of_blocks, "target": "cpu:torch", "imgsz": IMGSZ}
    with pytest.raises(UnstableError, match=f"^{work.UNSTABLE}: the machine is never still"):
        work.price(payload, 0, lambda _: None)


@pytest.mark.slow
def test_a_real_figure_is_of_the_right_order(model: nn.Module) -> None:
    target = Target("cpu:onnxruntime", imgsz=(IMGSZ, IMGSZ))
    latencies = repeated(inference_form(model), target, 2, allow_noisy=True)
    session = opened(model, "cpu:onnxruntime")
    times = []
    for _ in range(50):
        began = time.perf_counter()
        session.run()
        times.append((time.perf_counter() - began) * 1e3)
    for latency in latencies:
        assert 0.01 < latency.ms / statistics.median(times) < 100
        assert 0 < latency.ms <= latency.p90 and latency.runs >= 30 and latency.cpu_ms is not None
    low, high = sorted(latency.ms for latency in latencies)
    assert repeat_spread(latencies) == pytest.approx(high / low - 1)


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        ("cpu:onxruntime", InputError, "did you mean 'cpu:onnxruntime'"),
        ("table:jetson.csv", InputError, "another device's"),
    ],
)
def test_targets_that_are_not_there(model_of_blocks: dict, target: str, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        work.price({"model": model_of_blocks, "target": target, "imgsz": IMGSZ}, 0, print)


@pytest.mark.slow
def test_no_file_stays_behind(model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for kind in filter(reachable, SESSIONS):
        session = opened(model, kind)
        session.run()
        session.rows()
    assert list(tmp_path.iterdir()) == []
