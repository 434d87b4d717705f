"""Segmentation by imitation from the command line: a teacher of masks, blocks that learn from it, weights that leave."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_sets
from ultralytics import YOLO

CLI = [sys.executable, "-c", "from nas.cli import main; main()"]
SPACE = "skeleton: yolo11n-seg.yaml\nslots:\n  backbone.P4: {block: [keep, repvit], width: [0.5, 1.0]}\n"
SEARCH = ["search", "--space", "space.yaml", "--imitate", "--data", "data/data.yaml", "--imgsz", "64"]
SEARCH += ["--epochs", "10", "--budget", "3trials", "--workers", "2", "--confirm", "0", "--allow-noisy"]

pytestmark = pytest.mark.slow


def test_from_a_teacher_of_masks_to_exported_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nas(*arguments: str) -> str:
        done = subprocess.run([*CLI, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=3000)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    monkeypatch.setattr(tiny_sets, "COUNT", 48)
    data = tiny_sets.tiny_set(tmp_path / "data", "segment")
    (tmp_path / "space.yaml").write_text(SPACE)
    told = nas(*SEARCH)
    assert "the teacher was trained here" in told
    run = tmp_path / "results" / "search"
    with (run / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    done = [row for row in rows if row["state"] == "done"]
    assert done[0]["baseline"] == "true" and sum(bool(row["map"]) for row in rows) == 3
    assert max(float(row["map"]) for row in done) > 0.2
    assert json.loads((run / "front.json").read_text())["run"]["metric"] == "mask mAP50-95"
    member = next((row for row in done if row["front"] == "true" and row["baseline"] == "false"), done[0])
    paths = nas("export", "search", "--pick", member["trial"]).split()
    weights = next(tmp_path / path for path in paths if path.endswith(".pt"))
    model = YOLO(weights)
    own = {"data": str(data), "imgsz": 64, "device": "cpu", "plots": False, "project": str(tmp_path)}
    assert model.task == "segment" and model.val(**own, name="val", verbose=False).seg.map > 0.2
    assert Path(model.export(format="onnx", imgsz=64, device="cpu", verbose=False)).is_file()
