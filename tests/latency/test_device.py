"""`measure.py` as people run it on a small device: the file alone beside ONNX probes, in a folder without nas."""

from __future__ import annotations

import ast
import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nas.latency import measure
from nas.latency.measure import FIGURES, by_row
from nas.space.architecture import Architecture, model_yaml
from nas.space.skeleton import read_skeleton
from nas.yolo.build import build, export_onnx, inference_form

ROWS = 24


@pytest.fixture(scope="module")
def probes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `nas latency probes` writes it: two probes and a file that is no model."""
    folder = tmp_path_factory.mktemp("probes")
    skeleton = read_skeleton("yolo11n.yaml")
    torch.manual_seed(0)
    model = inference_form(build(model_yaml(skeleton, Architecture(skeleton.name), nc=3)))
    for name in ("small", "large"):
        export_onnx(model, folder / f"{name}.onnx", (32, 64) if name == "small" else (64, 128))
    (folder / "broken.onnx").write_bytes(b"no model")
    listed = [{"id": name, "file": f"{name}.onnx"} for name in ("small", "broken", "large")]
    (folder / "probes.json").write_text(json.dumps({"skeleton": "yolo11n", "rows": ROWS, "probes": listed}))
    shutil.copy(measure.__file__, folder)
    return folder


def run(probes: Path, *words: str) -> subprocess.CompletedProcess[str]:
    # -I: neither the present folder nor PYTHONPATH, so nothing of this repository can be imported
    command = [sys.executable, "-I", str(probes / "measure.py"), "--allow-noisy", *words]
    return subprocess.run(command, cwd=probes, capture_output=True, text=True, timeout=300)


def test_every_probe_gets_a_line_and_none_is_measured_twice(probes: Path) -> None:
    out = probes / "device.csv"
    done = run(probes)
    assert done.returncode == 1, done.stderr  # one is no model
    assert "3 of 3 probes to measure" in done.stdout and "broken: " in done.stdout
    lines = list(csv.DictReader(out.open()))
    assert [line["id"] for line in lines] == ["small", "large"]
    for line in lines:
        assert list(line) == ["id", *FIGURES, "device", "runtime", "threads", *(f"row_{row}" for row in range(ROWS))]
        low, ms, high = (float(line[name]) for name in ("low", "ms", "high"))
        assert 0 <= low <= ms <= high and float(line["cpu_ms"]) > 0 and int(line["runs"]) >= 100
        assert line["runtime"].startswith("onnxruntime ") and line["runtime"].endswith(" CPUExecutionProvider")
        assert {line["throttled"], line["noisy"]} <= {"0", "1"} and line["threads"] == "1"
        rows = [float(line[f"row_{row}"] or 0) for row in range(ROWS)]
        assert rows[0] > 0 and rows[-1] > 0 and 0.01 < sum(rows) / ms < 100
    whole = out.read_text()
    out.write_text(whole + "torn,1.0,")  # a power cut in the middle of a line
    again = run(probes)
    assert "1 of 3 probes to measure" in again.stdout
    assert out.read_text() == whole


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--probes", "absent.json"], "absent.json"),
        (["--probes", "small.onnx"], "small.onnx"),
        (["--threads", "0"], "--threads must be 1 or more"),
        (["--providers", "FastExecutionProvider"], "has no FastExecutionProvider; it has"),
        (["--out", "other.csv"], "other.csv: has other columns"),
    ],
)
def test_what_cannot_be_done_is_said(probes: Path, words: list[str], says: str) -> None:
    (probes / "other.csv").write_text("a,b\n1,2\n")
    done = run(probes, *words)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert says in done.stderr
    assert (probes / "other.csv").read_text() == "a,b\n1,2\n"


def test_the_file_suits_a_small_device() -> None:
    """Python 3.8's grammar, and nothing but the standard library is imported with the file."""
    tree = ast.parse(Path(measure.__file__).read_text(encoding="utf-8"), feature_version=(3, 8))
    imported = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in imported} <= sys.stdlib_module_names


def test_nodes_without_a_row_belong_to_the_one_before() -> None:
    nodes = [("reorder", 1.0), ("/model.2/cv1/conv/Conv", 2.0), ("copy", 4.0), ("/model.1/a/model.7/Conv", 8.0)]
    assert by_row(nodes) == {0: 1.0, 1: 8.0, 2: 6.0}
