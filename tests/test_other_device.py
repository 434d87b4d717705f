"""A search for another device from the command line: probes, a table, the search, its second folder, another front."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nas.advice import to_measure, worth_training
from nas.api import load
from nas.dataset.builtin import builtin_dataset
from nas.dataset.description import read_dataset
from nas.limits import Limits

CLI = [sys.executable, "-c", "from nas.cli import main; main()"]
SPACE = """
skeleton: yolo11n.yaml
slots:
  backbone.P4: {block: [keep, repvit, irmb], width: [0.5, 1.0]}
  backbone.P5: {block: [keep, repvit], width: [0.5, 1.0]}
"""
SEARCH = [
    "--data",
    "small.yaml",
    "--space",
    "tiny.yaml",
    "--epochs",
    "1",
    "--workers",
    "1",
    "--budget",
    "4trials",
    "--allow-noisy",
]

pytestmark = pytest.mark.slow


def nas(home: Path, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*CLI, *words], cwd=home, capture_output=True, text=True, timeout=900)
    assert done.returncode == code, done.stderr + done.stdout
    return done


def measured(folder: Path, table: Path) -> None:
    """What the README of a probe folder says to do on the device."""
    if table.exists():
        shutil.copy(table, folder)
    command = [sys.executable, "-I", "measure.py", "--out", table.name, "--allow-noisy"]
    subprocess.run(command, cwd=folder, check=True, timeout=900, stdout=subprocess.DEVNULL)
    shutil.copy(folder / table.name, table)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("a größer home")
    full = read_dataset(builtin_dataset())
    (home / "train.txt").write_text("\n".join(map(str, full.train[:24])))
    (home / "val.txt").write_text("\n".join(map(str, full.val[:8])))
    (home / "small.yaml").write_text(f"path: {home}\ntrain: train.txt\nval: val.txt\nnames: {json.dumps(list(full.names))}\n")
    (home / "tiny.yaml").write_text(SPACE)
    probes = ("latency", "probes", "--out", "probes", "--space", "tiny.yaml", "--imgsz", "64")
    nas(home, *probes, "--data", "small.yaml", "--count", "10")
    measured(home / "probes", home / "jetson.csv")
    return home


@pytest.fixture(scope="module")
def run(home: Path) -> Path:
    """A run under a limit that half of what was measured meets."""
    times = sorted(float(line["ms"]) for line in csv.DictReader((home / "jetson.csv").open()))
    limit = f"{times[5] * 1000:.0f}us"
    done = nas(home, "search", *SEARCH, "--max-latency", limit, "--target", "table:jetson.csv", "--name", "far")
    assert "10 architectures measured" in done.stdout + done.stderr
    return home / "results" / "far"


def test_the_run_measured_nothing_and_is_of_the_tables_image_size(run, home):
    found = load(run)
    assert found.config.imgsz == 64
    assert found.config.target == f"table:{home / 'jetson.csv'}"
    assert {e.price["source"] for e in found.entries if e.price} <= {"table", "predicted"}
    done = [e for e in found.entries if e.state == "done" and not e.architecture.is_skeleton]
    assert all(e.price["high"] <= found.config.max_latency_ms or e.price["source"] == "table" for e in done)
    assert all(e.price["params"] > 0 and e.price["gmacs"] > 0 for e in done)


def test_another_image_size_is_refused_with_the_tables(run, home):
    done = nas(home, "search", *SEARCH, "--imgsz", "96", "--target", "table:jetson.csv", code=2)
    assert "--imgsz 96: the table is of 64 px" in done.stderr
    assert "use --imgsz 64" in done.stderr


def test_a_front_on_this_machine_leaves_the_run_as_it_was(run, home):
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file() and path.suffix in {".csv", ".json"}}
    done = nas(home, "front", "far", "--target", "cpu:onnxruntime,threads=2", "--max-latency", "1s")
    assert "cpu:onnxruntime,threads=2" in done.stdout
    folder = run / "targets" / "cpu-onnxruntime-threads=2-batch=1-imgsz=64"
    assert {"front.csv", "front.json", "trials.csv", "pareto.png", "pareto.html", "suggested.csv"} <= {
        path.name for path in folder.iterdir()
    }
    assert before == {name: (run / name).read_bytes() for name in before}
    again = nas(home, "front", "far", "--target", "cpu:onnxruntime,threads=2", "--format", "csv")
    assert again.stdout == (folder / "front.csv").read_text()


def test_the_second_folder_goes_on_with_the_table_and_the_front_takes_it_in(run, home):
    found = load(run)
    wanted = {a.id for a in to_measure(found.space, found.entries, found.config.limits)}
    assert wanted == {p.stem for p in (run / "probes").glob("*.onnx")}
    if not wanted:
        pytest.skip("nothing was near the limit")
    before = (home / "jetson.csv").read_text()
    measured(run / "probes", home / "jetson.csv")
    assert (home / "jetson.csv").read_text().startswith(before)
    shown = nas(home, "front", "far", "--target", "table:jetson.csv", "--max-latency", "1s")
    assert f"{10 + len(wanted)} architectures measured" in shown.stderr
    records = json.loads((run / "targets" / "table-jetson" / "front.json").read_text())["records"]
    assert records
    again = nas(home, "search", "--resume", "far", "--add-budget", "1trials")
    assert "the table has changed" in again.stdout + again.stderr
    prices = {e.architecture.id: e.price for e in load(run).entries if e.state == "done"}
    assert all(prices[i]["source"] == "table" for i in wanted & prices.keys())


def test_what_would_be_worth_training_lies_on_the_front_and_is_not_trained(run):
    found = load(run)
    trained = {e.architecture for e in found.entries if e.state == "done"}

    def prices(architectures):
        return [{"ms": 0.1 + 0.001 * i, "low": 0.1, "high": 0.2, "source": "predicted"} for i, _ in enumerate(architectures)]

    told = worth_training(found.space, found.entries, Limits(ms=0.11), prices, 64, 0)
    assert told.considered == found.space.size - len(trained)
    assert told.found
    assert not {s.architecture for s in told.found} & trained
    assert all(s.ms <= 0.11 for s in told.found)
    assert [s.ms for s in told.found] == sorted(s.ms for s in told.found)
