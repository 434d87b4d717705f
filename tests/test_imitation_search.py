"""A real search by imitation from the command line, killed while the teacher is trained and while blocks learn."""

from __future__ import annotations

import csv
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from ultralytics import YOLO

from nas.dataset.builtin import builtin_dataset
from nas.yolo.full import map_on_val

CLI = [sys.executable, "-c", "from nas.cli import main; main()"]
SPACE = """
skeleton: yolo11n.yaml
slots:
  backbone.P4: {block: [keep, repvit, riformer], width: [0.5, 1.0]}
  backbone.P5: {block: [keep, irmb]}
"""
SEARCH = ["search", "--space", "space.yaml", "--imitate", "--imgsz", "96", "--epochs", "2", "--budget", "6trials"]
SEARCH += ["--workers", "2", "--allow-noisy"]

pytestmark = pytest.mark.slow


def killed_in(home: Path, phase: str, *arguments: str) -> str:
    """Start a session and kill -9 it 3 s after it has entered a phase; what it said."""
    path = home / f"{phase}.log"
    with path.open("w") as log:
        search = subprocess.Popen([*CLI, *arguments], cwd=home, stdout=log, stderr=log)
    deadline = time.monotonic() + 600
    while f"{phase} ·" not in path.read_text() and search.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    assert search.poll() is None, path.read_text()
    time.sleep(3)
    search.send_signal(signal.SIGKILL)
    search.wait()
    return path.read_text()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    (home / "space.yaml").write_text(SPACE)
    return home


@pytest.fixture(scope="module")
def run(home: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NAS_CACHE", str(home / "cache"))
        killed_in(home, "teach", *SEARCH)
        said = killed_in(home, "imitate", "search", "--resume", "search")
        assert "the teacher was trained here" in said
        done = subprocess.run([*CLI, "search", "--resume", "search"], cwd=home, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert "the teacher was trained" not in done.stderr  # once is enough
    return home / "results" / "search"


def test_the_front_is_made_of_trained_models(run: Path) -> None:
    with (run / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    done = [row for row in rows if row["state"] == "done"]
    assert len([row for row in rows if row["map"]]) == 6 and done[0]["baseline"] == "true"
    assert all(row["rung"] == "1" for row in done)
    front = [row for row in rows if row["front"] == "true"]
    for row in front:
        weights = run / "trials" / f"{int(row['trial']):04d}" / "weights.pt"
        assert int(YOLO(weights).model.yaml["nc"]) == 8 or row["baseline"] == "true"
        assert not weights.with_name("assembled0.pt").exists()
    assert len(done) > 1 and max(float(row["map"]) for row in front) > 0.05  # two epochs from scratch find next to nothing
    summary = json.loads((run / "front.json").read_text())["run"]
    assert "blocks that imitate a teacher (trained here)" in summary["fidelity"]
    with (run / "front.csv").open(newline="") as file:
        *_, teacher = csv.DictReader(file)
    assert (teacher["state"], teacher["trial"], teacher["val"]) == ("teacher", "0", "")
    assert float(teacher["map"]) == summary["teacher"]["map"]
    assert f"mAP50-95 {summary['teacher']['map']:.3f} on the held-out part" in (run / "search.log").read_text()


def test_a_second_search_finds_the_library(run: Path, home: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NAS_CACHE", str(home / "cache"))
        checkpoint = torch.load(run / "teacher.pt", weights_only=False)
        assert checkpoint["model"].left_out  # what any other training would not say
        checkpoint["model"].left_out = None
        torch.save(checkpoint, home / "best.pt")
        more = ["--name", "second", "--weights", "best.pt", "--confirm", "0"]
        done = subprocess.run([*CLI, *SEARCH, *more], cwd=home, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert re.search(r"library: (\d+) of \1 alternatives have learned already", done.stderr)
    assert "has seen the held-out part if it was trained on train" in done.stderr
    second = home / "results" / "second"
    summary = json.loads((second / "front.json").read_text())["run"]
    assert "best.pt, may have learned from the held-out part" in summary["seen"]
    assert "may have learned from the held-out part" in (second / "pareto.html").read_text()
    with (second / "front.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[-1]["state"] == "teacher"
    for row in rows:
        kept = second / "trials" / f"{int(row['trial']):04d}" / "weights.pt" if row["state"] == "done" else home / "best.pt"
        how = {"imgsz": 96, "device": "cpu", "folder": home / "val"}
        assert float(row["val"]) == pytest.approx(map_on_val(kept, data=builtin_dataset(), **how), abs=0.02)


def test_a_budget_of_time_decides_whether_to_imitate(run: Path, home: Path) -> None:
    """Killed before it is decided; decided for good; and by the way a checkpoint that is a teacher is always imitated."""
    common = ["search", "--space", "space.yaml", "--imgsz", "96", "--workers", "2", "--allow-noisy", "--confirm", "0"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NAS_CACHE", str(home / "cache"))
        killed_in(home, "teach", *common, "--name", "short", "--budget", "90gpu-s", "--epochs", "30")
        assert yaml.safe_load((home / "results" / "short" / "run.yaml").read_text())["imitate"] is None
        resume = [*CLI, "search", "--resume", "short"]  # nothing can be trained to its end: that it says
        short = subprocess.run(resume, cwd=home, capture_output=True, text=True, timeout=900)
        assert "all is trained from scratch" in short.stderr and "library:" not in short.stderr
        assert "Traceback" not in short.stderr
        long = [*CLI, *common, "--name", "long", "--budget", "3gpu-min", "--epochs", "1", "--weights", str(run / "teacher.pt")]
        imitated = subprocess.run(long, cwd=home, capture_output=True, text=True, timeout=900)
        assert imitated.returncode == 0, imitated.stderr
        assert "library:" in imitated.stderr and "trained it, without the held-out part" in imitated.stderr
        assert not json.loads((home / "results" / "long" / "front.json").read_text())["run"]["seen"]
    decided = [yaml.safe_load((home / "results" / name / "run.yaml").read_text())["imitate"] for name in ("short", "long")]
    assert decided == [False, True]
    assert "from scratch" not in json.loads((home / "results" / "long" / "front.json").read_text())["run"]["fidelity"]


def test_what_blocks_cost_is_told_slot_by_slot(run: Path, home: Path) -> None:
    shown = subprocess.run([*CLI, "front", "search", "--sensitivity"], cwd=home, capture_output=True, text=True, check=True)
    assert "backbone.P4" in shown.stdout and "loss rises by" in shown.stdout
    with (run / "sensitivity.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["slot"] for row in rows} == {"backbone.P4", "backbone.P5"}
    assert all(float(row["rise_low"]) <= float(row["rise"]) <= float(row["rise_high"]) for row in rows if row["rise"])
    assert "<h2>Sensitivity</h2>" in (run / "pareto.html").read_text()


def test_the_winner_is_trained_on(run: Path, home: Path) -> None:
    done = subprocess.run([*CLI, "train", "search", "--epochs", "1"], cwd=home, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    trained, baseline, weights = done.stdout.splitlines()[-3:]
    assert re.search(r"mAP50-95 0\.\d+ on val, [\d.]+ ms, after 1 epochs from \w+\.pt", trained)
    assert baseline.startswith("baseline: mAP50-95 0.") and baseline.endswith("the teacher of the search")
    anew = [*CLI, "train", str(run / "winner.yaml"), "--epochs", "1", "--random-init"]
    drawn = subprocess.run(anew, cwd=home, capture_output=True, text=True, timeout=600)
    assert drawn.returncode == 0 and "after 1 epochs from drawn weights" in drawn.stdout, drawn.stderr
    assert drawn.stdout.splitlines()[-2] == baseline  # the same weights on the same images
    model = YOLO(weights.removeprefix("weights: ")).model
    assert [row[2] for row in model.yaml["backbone"]] == [
        row[2] for row in yaml.safe_load((run / "winner.yaml").read_text())["backbone"]
    ]
