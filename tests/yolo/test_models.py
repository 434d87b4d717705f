"""The recipes people build by hand, as models that come with nas: written by one script, and what their authors counted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from steps import train_step

from nas.cli import cli
from nas.space.architecture import Architecture, model_yaml
from nas.space.skeleton import read_skeleton, shipped_model
from nas.space.source import shipped
from nas.yolo.build import build
from nas.yolo.counts import count

ROOT = Path(__file__).parent.parent.parent
NAMES = sorted(path.name.removesuffix(".yaml") for path in shipped("models").glob("*.yaml"))

# Parameters of the papers' stems and stages, counted from timm's models with the same weights layout.
REPVIT = {
    "m0.9": (11_160, 22_048, 135_480, 2_458_896, 2_090_208),
    "m1.1": (19_488, 37_584, 237_984, 3_775_360, 3_704_448),
}
EFFICIENTVIT = {
    "b0": (400, 4_128, 13_888, 142_208, 521_984),
    "b1": (928, 13_888, 86_528, 756_864, 3_785_728),
}


def layers(name: str, nc: int = 80) -> tuple[int, ...]:
    skeleton = read_skeleton(name)
    return count(model_yaml(skeleton, Architecture(skeleton.name)), nc).layers


def test_the_files_are_what_the_script_writes() -> None:
    done = subprocess.run([sys.executable, ROOT / "scripts" / "make_models.py", "--check"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(NAMES) == 14


@pytest.mark.parametrize("size", REPVIT)
def test_a_repvit_backbone_is_the_papers(size: str) -> None:
    n = layers(f"yolo11n-repvit-{size}")
    assert (n[0], n[1], n[2] + n[3], n[4] + n[5], n[6] + n[7]) == REPVIT[size]


@pytest.mark.parametrize("size", EFFICIENTVIT)
def test_an_efficientvit_backbone_is_the_papers(size: str) -> None:
    n = layers(f"yolov5n-efficientvit-{size}")
    assert (n[0], n[1], n[2], n[3] + n[4], n[5] + n[6]) == EFFICIENTVIT[size]


@pytest.mark.parametrize("name", ["yolov9c-mqa", pytest.param("mqa-yolov9c", marks=pytest.mark.slow)])  # model, and space
def test_mobile_mqa_in_yolov9c_has_the_parameters_that_its_recipe_prints(name: str) -> None:
    shown = CliRunner().invoke(cli, ["space", "show", name, "--params"], catch_exceptions=False).output
    for printed in ("249,472", "773,376", "2,119,168", "24,015,763"):
        assert printed in shown


QUICK = {"yolo11n-repvit", "yolo11n-repvit-m0.9", "yolov10n-irmb", "yolov5n-efficientvit", "yolov5n-efficientvit-b0"}


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in NAMES])
def test_a_shipped_model_learns(name: str) -> None:
    skeleton = read_skeleton(name)
    assert skeleton.name == name
    model = build(model_yaml(skeleton, Architecture(skeleton.name), 3))
    assert list(model.stride) == [8, 16, 32]
    train_step(model)


def test_ultralytics_command_line_gets_the_path_of_a_bare_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shipped_model("model=yolov9c-mqa.yaml") == f"model={shipped('models') / 'yolov9c-mqa.yaml'}"
    for other in ("model=yolo11n.yaml", "model=folder/yolov9c-mqa.yaml", "data=yolov9c-mqa.yaml", "train"):
        assert shipped_model(other) == other
    (tmp_path / "yolov9c-mqa.yaml").touch()
    assert shipped_model("model=yolov9c-mqa.yaml") == "model=yolov9c-mqa.yaml"  # a file of the user's own comes first
