"""Segmentation searched from the command line: polygons, a checkpoint to start from, mask mAP on the front."""

import json
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
import yaml
from ultralytics import YOLO

from nas.dataset import builtin
from nas.space.architecture import Architecture, model_yaml
from nas.space.skeleton import read_skeleton
from nas.yolo.build import build

pytestmark = pytest.mark.slow
CLI = [sys.executable, "-c", "from nas.cli import main; main()"]
SPACE = "skeleton: {}.yaml\nslots:\n  backbone.P4: {{block: repvit}}\n  neck.topdown.P3: {{block: irmb, width: 0.5}}\n"
SMALL = ["--space", "space.yaml", "--imgsz", "64", "--epochs", "1", "--workers", "1", "--allow-noisy"]
LAYERS = (6, 16)  # of the two slots in yolo11


def nas(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*CLI, *arguments], cwd=home, capture_output=True, text=True, timeout=600)


def results(folder: Path) -> dict[int, dict]:
    study = optuna.load_study(study_name="rung0", storage=f"sqlite:///{folder / 'study.db'}")
    return {t.number: {**t.user_attrs["results"][-1], **t.user_attrs, "values": t.values} for t in study.get_trials()}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 40 training images of the built-in set with polygons, and best.pt, trained on them by Ultralytics."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builtin, "SPLITS", {"train": 40, "val": 6})
        data = builtin.builtin_dataset(home, polygons=True)
    YOLO("yolo11n-seg.yaml").train(
        data=str(data), epochs=1, imgsz=64, batch=20, workers=0, plots=False, val=False, project=str(home), name="before"
    )
    (home / "before" / "weights" / "last.pt").rename(home / "best.pt")
    (home / "data.yaml").write_text(data.read_text() + f"path: {data.parent}\n")
    (home / "space.yaml").write_text(SPACE.format("yolo11n-seg"))
    return home


@pytest.fixture(scope="module")
def run(home: Path) -> Path:
    done = nas(home, "search", *SMALL, "--data", "data.yaml", "--budget", "2trials", "--weights", "best.pt")
    assert done.returncode == 0, done.stderr
    assert "the skeleton: 561 of 561 tensors from best.pt" in done.stderr
    assert "mask mAP50-95 is a proxy" in " ".join(done.stdout.split())
    return home / "results" / "search"


def test_masks_are_what_a_segmentation_search_ranks_by(run: Path) -> None:
    found = results(run)
    assert len(found) == 2
    for result in found.values():
        maps = [each["map"] for each in (*result["results"], *result.get("repeats", []))]
        assert result["values"][0] == sum(maps) / len(maps)
        assert 0 <= result["map"] <= result["map50"] <= 1 and 0 <= result["box_map"] <= 1
    summary = json.loads((run / "front.json").read_text())["run"]
    assert (summary["metric"], summary["weights"]) == ("mask mAP50-95", "best.pt")
    assert "from best.pt" in summary["fidelity"]
    # best.pt was trained on the whole of train: what is claimed is of val
    assert "The checkpoint that it began with, best.pt, may have learned from the held-out part" in summary["seen"]
    members = json.loads((run / "front.json").read_text())["records"]
    assert members and all(0 <= member["val"] <= 1 for member in members)
    assert "trial 1 done: mask mAP50-95" in (run / "search.log").read_text()
    winner = (run / "winner.yaml").read_text()
    assert "# proxy mask mAP50-95" in winner and 'YOLO("winner.yaml").load("best.pt")' in winner
    assert yaml.safe_load(winner)["head"][-1][2] == "Segment"


def test_kept_layers_start_from_the_checkpoint_and_replaced_ones_do_not(run: Path, home: Path) -> None:
    skeleton = read_skeleton("yolo11n-seg.yaml")
    stock = build(model_yaml(skeleton, Architecture(skeleton.name), 8)).state_dict()
    kept = {name for name in stock if int(name.split(".")[1]) not in LAYERS}
    # a narrower neck slot also changes what reads it: the next convolution, and the first level of the head
    told = results(run)[1]["transferred"]
    chosen = optuna.load_study(study_name="rung0", storage=f"sqlite:///{run / 'study.db'}").get_trials()[1]
    trial = build(model_yaml(skeleton, Architecture.from_dict(chosen.user_attrs["architecture"]), 8)).state_dict()
    expected = {name for name in kept if name in trial and trial[name].shape == stock[name].shape}
    assert results(run)[0]["transferred"] == [len(stock), len(stock)] == [561, 561]
    assert told == [len(expected), len(trial)]
    assert 300 < len(expected) < len(kept)
    log = (run / "search.log").read_text()
    assert "trial 0: 561 of 561 tensors from best.pt" in log
    assert f"trial 1: {told[0]} of {told[1]} tensors from best.pt" in log
    config = yaml.safe_load((run / "run.yaml").read_text())
    assert config["weights"] == str(home / "best.pt")


def test_a_checkpoint_that_changed_is_refused_on_resume(run: Path, home: Path) -> None:
    whole = (home / "best.pt").read_bytes()
    try:
        (home / "best.pt").write_bytes(whole + b"x")
        done = nas(home, "search", "--resume", "search", "--add-budget", "1trials")
        assert done.returncode == 2
        assert "best.pt: has changed since" in done.stderr
        (home / "best.pt").unlink()
        done = nas(home, "search", "--resume", "search", "--add-budget", "1trials")
        assert done.returncode == 2
        assert "best.pt: no such file" in done.stderr
    finally:
        (home / "best.pt").write_bytes(whole)


def test_a_checkpoint_of_another_task_ends_a_search_before_it_begins(run: Path, home: Path) -> None:
    before = sorted(path.name for path in (home / "results").iterdir())
    YOLO("yolo11n.yaml").save(home / "detector.pt")
    done = nas(home, "search", *SMALL, "--data", "data.yaml", "--budget", "2trials", "--weights", "detector.pt")
    assert done.returncode == 2, done.stderr
    assert "detector.pt: a checkpoint for detect, but the skeleton is for segment" in done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""
    assert sorted(path.name for path in (home / "results").iterdir()) == before


def test_boxes_are_refused_with_file_and_cure(home: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builtin, "SPLITS", {"train": 4, "val": 2})
        data = builtin.builtin_dataset(tmp_path)
    done = nas(home, "search", *SMALL, "--data", str(data), "--budget", "1trials")
    assert done.returncode == 2
    assert "0000.txt:1: a box, where segmentation needs a polygon (and so in 5 other files)" in done.stderr
    assert "yolo11n.yaml" in done.stderr


@pytest.mark.parametrize("name", ["yolov8n-seg", "yolo26n-seg", "yolo12n-seg"])
def test_without_data_the_built_in_set_has_polygons(tmp_path: Path, name: str) -> None:
    (tmp_path / "space.yaml").write_text(SPACE.format(name))
    words = [
        "--space",
        "space.yaml",
        "--imgsz",
        "96",
        "--epochs",
        "4",
        "--budget",
        "2trials",
        "--workers",
        "2",
        "--allow-noisy",
    ]
    done = nas(tmp_path, "search", *words, "--allow-noisy")
    assert done.returncode == 0, done.stderr
    found = results(tmp_path / "results" / "search")
    assert len(found) == 2
    assert any(0 < result["map"] != result["box_map"] for result in found.values())
    assert "mask mAP50-95" in (tmp_path / "results" / "search" / "winner.yaml").read_text()
