"""What leaves this package: `winner.yaml` and checkpoints in Ultralytics' hands, and ONNX files in onnxruntime's."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from ultralytics import YOLO
from ultralytics.nn import tasks

from nas.blocks.catalog import CATALOG
from nas.export import write_winner
from nas.limits import Limits
from nas.review.record import Record, RunSummary
from nas.space.architecture import KEEP, Architecture, model_yaml, place
from nas.space.skeleton import Skeleton, read_skeleton
from nas.yolo.build import build, export_onnx, inference_form, is_end2end, tensors

SKELETON = read_skeleton("yolo11n.yaml")


def placed(skeleton: Skeleton, blocks: dict[str, str], width: float = 0.5) -> Architecture:
    slots = [slot for slot in skeleton.slots if slot.name in blocks]
    return Architecture(skeleton.name, tuple(place(slot, blocks[slot.name], width, 1, None, {}) for slot in slots))


def scores(model: torch.nn.Module, output: object) -> object:
    """The scores of a head that picks its boxes itself, highest first: boxes of nearly equal scores may change places."""
    return output[..., 4] if is_end2end(model) and output.ndim == 3 else output


# every block once, and a resized slot of the skeleton's own
EVERYTHING = placed(
    SKELETON,
    {
        "backbone.P2": KEEP,
        "backbone.P3": "repvit",
        "backbone.P4": "efficientvit",
        "backbone.P5": "mobile_mqa",
        "neck.topdown.P4": "irmb",
        "neck.topdown.P3": "riformer",
    },
)


def write(path: Path, architecture: Architecture = EVERYTHING, skeleton: Skeleton = SKELETON) -> Path:
    record = Record(
        trial=7,
        id=architecture.id,
        state="done",
        reason=None,
        baseline=False,
        feasible=True,
        map=0.25,
        map50=0.5,
        latency_ms=1.5,
        latency_spread=0.01,
        params=None,
        gmacs=None,
        seconds=10.0,
        placement=architecture.describe(skeleton),
    )
    summary = RunSummary(
        name="search\n!!python/object: evil",
        skeleton="yolo11n.yaml",
        target="cpu:onnxruntime",
        imgsz=128,
        limits=Limits(),
        data="shapes\n- x: y",
        classes=("a", "b", "c"),
        fidelity="5 epochs",
        split="held-out part of train",
        seed=0,
        command="nas search",
        counts={"done": 1},
        device_seconds=1.0,
        wall_seconds=1.0,
        stopped_because="budget spent",
    )
    write_winner(path, skeleton, architecture, 3, record=record, summary=summary)
    return path


def trained(model: torch.nn.Module) -> torch.nn.Module:
    """The model with norms as a training would leave them, so that a wrong fusion shows."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.7, 1.4)
            torch.nn.init.uniform_(module.weight, 0.7, 1.4)
            torch.nn.init.uniform_(module.bias, -0.2, 0.2)
    return model.eval()


def outputs(model: torch.nn.Module, images: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        found = model(images)
    return (found[0] if isinstance(found, tuple | list) else found).numpy()


def assert_equal(got: np.ndarray, expected: np.ndarray, tolerance: float = 1e-4) -> None:
    """Predictions (N, 4 + classes, anchors): boxes in pixels and class probabilities, each on its own scale."""
    assert got.shape == expected.shape
    for part, whole in zip(np.split(got, [4], 1), np.split(expected, [4], 1), strict=True):
        assert whole.std() > 0
        assert np.abs(part - whole).max() <= tolerance * np.abs(whole).max()


def shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def test_a_winner_is_a_plain_yaml_that_says_where_it_comes_from(tmp_path: Path) -> None:
    path = write(tmp_path / "winner.yaml")
    text = path.read_text(encoding="utf-8")
    assert yaml.safe_load(text) == model_yaml(SKELETON, EVERYTHING, 3)
    head = [line for line in text.splitlines() if line.startswith("#")]
    assert text.splitlines()[: len(head)] == head
    assert EVERYTHING.id in head[0]
    assert "trial 7" in head[0]
    assert "#   backbone.P3: repvit w0.5" in head
    assert [entry.name for entry in tmp_path.iterdir()] == ["winner.yaml"]


def test_ultralytics_builds_a_winner_as_we_do(tmp_path: Path) -> None:
    yolo = YOLO(str(write(tmp_path / "winner.yaml")))
    assert yolo.task == "detect"
    ours = build(model_yaml(SKELETON, EVERYTHING, 3))
    assert shapes(yolo.model) == shapes(ours)
    assert yolo.model.model[-1].nc == 3


@pytest.mark.parametrize("name", ["yolo11m_x.yaml", "ein Sieger é.yaml"])
def test_a_file_name_does_not_change_the_model(tmp_path: Path, name: str) -> None:
    for architecture, skeleton in ((EVERYTHING, SKELETON), (placed(SKELETON, {"backbone.P2": KEEP}), SKELETON)):
        path = write(tmp_path / name, architecture, skeleton)
        expected = shapes(build(model_yaml(skeleton, architecture, 3)))
        assert shapes(YOLO(str(path), task="detect").model) == expected
        again = read_skeleton(str(path))
        read_skeleton.cache_clear()  # the next round writes the same file anew
        assert shapes(build(model_yaml(again, Architecture(again.name)))) == expected


def test_a_file_name_does_not_change_a2c2f(tmp_path: Path) -> None:
    skeleton = read_skeleton("yolo12n.yaml")
    baseline = Architecture(skeleton.name)
    path = write(tmp_path / "yolo12x.yaml", baseline, skeleton)
    assert shapes(YOLO(str(path)).model) == shapes(build(model_yaml(skeleton, baseline, 3)))


RELOAD = """
import sys, torch
from ultralytics import YOLO
image = torch.linspace(0, 1, 3 * 64 * 96).reshape(1, 3, 64, 96)
model = YOLO(sys.argv[1]).model.eval()
assert not model.is_fused()
with torch.no_grad():
    before = model(image)[0]
    model.fuse(verbose=False)
    after = model(image)[0]
assert model.is_fused()
torch.save((before, after), sys.argv[2])
"""


def test_a_checkpoint_loads_in_a_fresh_process_without_importing_us(tmp_path: Path) -> None:
    yolo = YOLO(str(write(tmp_path / "winner.yaml")))
    trained(yolo.model)
    yolo.save(tmp_path / "winner.pt")
    command = [sys.executable, "-c", RELOAD, str(tmp_path / "winner.pt"), str(tmp_path / "out.pt")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    before, after = torch.load(tmp_path / "out.pt")
    image = torch.linspace(0, 1, 3 * 64 * 96).reshape(1, 3, 64, 96)
    again = YOLO(str(tmp_path / "winner.pt")).model.eval()  # Ultralytics' checkpoints are in half precision
    assert_equal(before.numpy(), outputs(again, image), 1e-5)
    assert_equal(after.numpy(), before.numpy())


@pytest.mark.parametrize("name", ["yolo11n", "yolov9t", "yolov10n", "yolo26n"])
def test_fusing_changes_no_output_and_leaves_the_original_alone(name: str) -> None:
    skeleton = read_skeleton(f"{name}.yaml")
    chosen = placed(skeleton, {"backbone.P4": "repvit", "backbone.P5": "irmb", "neck.bottomup.P5": "riformer"})
    model = trained(build(model_yaml(skeleton, chosen, 3)))
    fused = inference_form(model, export=False)
    assert fused.is_fused()
    assert not model.is_fused()
    images = torch.rand(2, 3, 96, 64)
    model.end2end = is_end2end(model)
    assert_equal(scores(model, outputs(fused, images)), scores(model, outputs(model, images)))
    assert sum(p.numel() for p in fused.parameters()) < sum(p.numel() for p in model.parameters())
    assert not any(p.requires_grad for p in fused.parameters())
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in fused.model[skeleton.slot("backbone.P4").layer].modules())


def run_onnx(path: Path, images: torch.Tensor) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 2  # warnings: a wrong shape in the file is one
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]


@pytest.mark.parametrize("imgsz", [64, pytest.param(96, marks=pytest.mark.slow), 160])
def test_a_static_onnx_file_equals_the_model(tmp_path: Path, imgsz: int) -> None:
    model = inference_form(trained(build(model_yaml(SKELETON, EVERYTHING, 3))))
    path = tmp_path / "model.onnx"
    export_onnx(model, path, imgsz)
    images = torch.rand(1, 3, imgsz, imgsz)
    assert_equal(run_onnx(path, images), outputs(model, images))


@pytest.mark.parametrize("name", [pytest.param("yolo11n", marks=pytest.mark.slow), "yolo26n"])
def test_a_dynamic_onnx_file_runs_at_every_size(tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    skeleton = read_skeleton(f"{name}.yaml")
    chosen = EVERYTHING if name == "yolo11n" else placed(skeleton, {"backbone.P4": "irmb", "backbone.P5": "mobile_mqa"})
    model = inference_form(trained(build(model_yaml(skeleton, chosen, 3))))
    path = tmp_path / "model.onnx"
    export_onnx(model, path, 128, dynamic=True)
    for batch, height, width in ((1, 128, 128), (2, 96, 224), (3, 256, 160)):
        images = torch.rand(batch, 3, height, width)
        assert_equal(scores(model, run_onnx(path, images)), scores(model, outputs(model, images)))
    assert "does not match" not in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolov5n", "yolov8n", "yolov9t", "yolov10n", "yolo12n"])
@pytest.mark.parametrize("block", CATALOG)
def test_onnx_of_every_block_in_other_skeletons(tmp_path: Path, name: str, block: str) -> None:
    skeleton = read_skeleton(f"{name}.yaml")
    chosen = placed(skeleton, {"backbone.P4": block, "neck.bottomup.P4": block})
    model = inference_form(trained(build(model_yaml(skeleton, chosen, 3))))
    export_onnx(model, tmp_path / "model.onnx", 96)
    images = torch.rand(1, 3, 96, 96)
    assert_equal(scores(model, run_onnx(tmp_path / "model.onnx", images)), scores(model, outputs(model, images)))


def run_whole(path: Path, images: torch.Tensor) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"images": images.numpy()}), strict=True))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("yolo26n-seg", 2),
        ("yolo11n-cls", 1),
        ("yolo26n-sem", 1),
        *(pytest.param(f"{n}-seg", 2, marks=pytest.mark.slow) for n in ("yolov8n", "yolov9c", "yolo11n", "yolo12n")),
        *(pytest.param(f"yolo11n-{task}", 1, marks=pytest.mark.slow) for task in ("pose", "obb")),
        *(pytest.param(f"yolo26n-{task}", 1, marks=pytest.mark.slow) for task in ("pose", "obb", "cls", "depth")),
    ],
)
def test_every_output_of_every_task_is_exported(tmp_path: Path, name: str, count: int) -> None:
    skeleton = read_skeleton(f"{name}.yaml")
    model = trained(build(model_yaml(skeleton, placed(skeleton, {"backbone.P4": "repvit"}), 3)))
    classes_of_pixels = name.endswith("-sem")
    if classes_of_pixels:  # untrained, one class would win everywhere
        with torch.no_grad():
            model.model[-1].classifier[-1].bias -= model(torch.rand(1, 3, 64, 64)).mean((0, 2, 3))
    fused = inference_form(model)
    model.end2end = is_end2end(model)
    for dynamic in (False, True):
        path = tmp_path / f"{dynamic}.onnx"
        export_onnx(fused, path, 64, dynamic=dynamic)
        for shape in ((1, 3, 64, 64), *([(2, 3, 96, 128)] if dynamic else [])):
            images = torch.rand(shape)
            got = run_whole(path, images)
            with torch.no_grad():
                expected = tensors(fused(images))
                unfused = model(images)
                while not isinstance(unfused, torch.Tensor):
                    unfused = unfused[0]
            assert list(got) == [f"output{index}" for index in range(count)]
            for output, wanted in zip(got.values(), expected, strict=True):
                assert output.shape == wanted.shape and wanted.float().std() > 0
                output, wanted = scores(model, output), scores(model, wanted)  # noqa: PLW2901
                difference = np.abs(output.astype(float) - wanted.numpy())
                if classes_of_pixels:  # a tie may fall either way
                    assert (difference > 0).mean() < 1e-3
                else:
                    assert difference.max() <= 1e-4 * wanted.abs().max()
            if not name.endswith(("-sem", "-depth")):  # of these only the exported form is as large as the image
                assert (scores(model, expected[0]) - scores(model, unfused)).abs().max() <= 1e-4 * unfused.abs().max()


def test_ultralytics_exports_a_winner(tmp_path: Path) -> None:
    yolo = YOLO(str(write(tmp_path / "winner.yaml")))
    trained(yolo.model)
    yolo.save(tmp_path / "winner.pt")
    exported = YOLO(str(tmp_path / "winner.pt")).export(format="onnx", imgsz=96, device="cpu", verbose=False)
    expected = YOLO(str(tmp_path / "winner.pt")).model.eval().fuse(verbose=False)
    images = torch.rand(1, 3, 96, 96)
    assert_equal(run_onnx(Path(exported), images), outputs(expected, images))


def test_a_winner_of_another_activation_keeps_it(tmp_path: Path) -> None:
    skeleton = read_skeleton("yolo11n.yaml")
    data = model_yaml(skeleton, EVERYTHING, 3) | {"activation": "nn.ReLU()"}
    path = tmp_path / "winner.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    assert isinstance(YOLO(str(path)).model.model[0].act, torch.nn.ReLU)
    assert isinstance(tasks.DetectionModel("yolo11n.yaml", verbose=False).model[0].act, torch.nn.SiLU)


def test_an_evil_activation_in_a_file_is_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "was-run"
    data = model_yaml(SKELETON, EVERYTHING, 3) | {"activation": f"__import__('os').system('touch {trace}')"}
    path = tmp_path / "evil.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    with pytest.raises(Exception, match="is not a known activation"):
        YOLO(str(path))
    assert not trace.exists()
