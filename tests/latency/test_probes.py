"""The probe folder, and that the program in it needs nothing of ours: written, measured by a bare interpreter, read back."""

from __future__ import annotations

import ast
import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy
import onnxruntime
import pytest

from nas.cli import cli
from nas.latency import measure
from nas.latency.probes import LIST, PROGRAM, README
from nas.latency.table import COLUMNS, read_table
from nas.space.reader import read_space

SPACE = """
skeleton: yolo11n.yaml
slots:
  backbone.P4: {block: [keep, repvit, irmb], width: [0.5, 1.0]}
  backbone.P5: {block: [keep, repvit], width: [0.5, 1.0]}
"""
# Stands before the program: an import of anything but the standard library, numpy and onnxruntime is an error.
GUARD = """
import sys, runpy
class Guard:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"nas", "torch", "ultralytics", "ray", "optuna", "onnx", "cv2", "yaml", "click"}:
            raise ImportError(f"{name} is not on this device")
sys.meta_path.insert(0, Guard())
sys.path[:0] = sys.argv.pop(1).split("|")
sys.argv.pop(0)
sys.argv[0] = sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run the folder's program in an isolated interpreter that sees numpy's and onnxruntime's site-packages alone."""
    places = "|".join(sorted({str(Path(package.__file__).parents[1]) for package in (numpy, onnxruntime)}))
    command = [sys.executable, "-I", "-S", "-c", GUARD, places, str(folder / PROGRAM), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


def probes(*arguments: object) -> None:
    cli.main(["latency", "probes", *map(str, arguments)], standalone_mode=False)


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("space") / "tiny.yaml"
    path.write_text(SPACE)
    return path


@pytest.fixture(scope="module")
def folder(space: Path) -> Path:
    folder = space.parent / "probes"
    probes("--out", folder, "--space", space, "--imgsz", "64x96", "--count", 9)
    return folder


def test_the_folder_holds_all_that_a_device_needs(folder, space):
    listed = json.loads((folder / LIST).read_text())
    assert {path.name for path in folder.iterdir()} == {LIST, PROGRAM, README, *(p["file"] for p in listed["probes"])}
    assert len(listed["probes"]) == 9
    assert listed["rows"] == 24
    assert {(p["skeleton"], p["imgsz"], p["batch"], p["nc"]) for p in listed["probes"]} == {("yolo11n", "64x96", 1, 80)}
    assert (folder / PROGRAM).read_bytes() == Path(measure.__file__).read_bytes()
    session = onnxruntime.InferenceSession(folder / listed["probes"][3]["file"], providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == [1, 3, 64, 96]
    assert "python3 measure.py --out device.csv" in (folder / README).read_text()


def test_a_second_call_completes_the_folder_and_spares_another(folder, space, tmp_path):
    from nas.errors import InputError

    listed = json.loads((folder / LIST).read_text())
    lost, kept = (folder / listed["probes"][at]["file"] for at in (1, 2))
    before = kept.stat().st_mtime_ns
    lost.unlink()
    probes("--out", folder, "--space", space, "--imgsz", "64x96", "--count", 9)
    assert lost.is_file()
    assert kept.stat().st_mtime_ns == before
    with pytest.raises(InputError, match="holds other probes already"):
        probes("--out", folder, "--space", space, "--imgsz", "64", "--count", 9)
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="holds no probes"):
        probes("--out", tmp_path, "--space", space, "--count", 9)
    with pytest.raises(InputError, match="holds no probes"):
        probes("--out", tmp_path / "letter.txt", "--space", space, "--count", 9)


@pytest.mark.slow
def test_the_program_runs_without_us_and_goes_on_where_it_was(folder, space):
    done = run(folder, "--out", "jetson.csv", "--allow-noisy")
    assert done.returncode == 0, done.stderr
    lines = (folder / "jetson.csv").read_text().splitlines()
    assert len(lines) == 10
    (folder / "jetson.csv").write_text("\n".join(lines[:8]) + "\na1,torn")  # a power cut
    again = run(folder, "--out", "jetson.csv", "--allow-noisy")
    assert again.returncode == 0, again.stderr
    assert (folder / "jetson.csv").read_text().splitlines()[:8] == lines[:8]
    with (folder / "jetson.csv").open() as file:
        header = next(csv.reader(file))
    assert header == [*(n for n in COLUMNS if n != "row_N"), *(f"row_{row}" for row in range(24))]
    table = read_table(folder / "jetson.csv", read_space(space).skeleton)
    assert table.imgsz == (64, 96)
    assert len(table.measured) == 9
    assert all(sum(m.rows.values()) > 0.3 * m.ms for m in table.measured)


def test_the_guard_of_this_test_works(folder, tmp_path):
    (tmp_path / PROGRAM).write_text("import torch")
    assert "torch is not on this device" in run(tmp_path).stderr


def test_the_program_is_in_the_python_of_small_devices():
    ast.parse(Path(measure.__file__).read_text(), feature_version=(3, 8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--threads", "0"], "--threads"), (["--providers", "NoProvider"], "NoProvider"), (["--probes", "no.json"], "no.json")],
)
def test_what_the_program_cannot_use_is_said_in_a_line(folder, arguments, message):
    done = run(folder, "--out", "other.csv", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
