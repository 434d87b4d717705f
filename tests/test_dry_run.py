"""The dry run: its arithmetic, and the real thing from the command line on a space that can be looked at whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.config import Budget, RunConfig
from nas.dry_run import Rehearsal, Share, purchase
from nas.pricing import Intervals

TINY = "skeleton: yolo11n.yaml\nslots:\n  backbone.P5: {block: [keep, repvit], width: [0.5, 1.0]}\n"


def test_wilson_intervals():
    assert Share.of_sample(0, 0) == Share(0, 0, 0.0, 1.0)
    assert Share.of_sample(3, 4, whole=True) == Share(3, 4, 0.75, 0.75)
    for met, of, low, high in [(0, 10, 0.0, 0.2130), (5, 10, 0.2693, 0.7307), (10, 10, 0.7870, 1.0), (30, 100, 0.2307, 0.3798)]:
        found = Share.of_sample(met, of)
        assert (found.low, found.high) == pytest.approx((low, high), abs=5e-4)


@given(st.integers(1, 10**5).flatmap(lambda of: st.tuples(st.integers(0, of), st.just(of))))
def test_an_interval_holds_its_share_and_narrows(pair):
    met, of = pair
    few, many = Share.of_sample(met, of), Share.of_sample(100 * met, 100 * of)
    for found in (few, many):
        assert 0 <= found.low <= met / of <= found.high <= 1
        assert 0 < found.likely <= 1
    assert many.high - many.low < few.high - few.low


def test_a_share_by_predictions_is_as_wide_as_these_leave_open():
    """Of 100 drawn 40 are surely within the limit, 20 surely over it; the rest may be either."""
    ms = np.repeat([1.0, 1.9, 2.1, 3.0], [40, 20, 20, 20])
    sure, unsure = Intervals(ms, ms, ms), Intervals(ms, 0.9 * ms, 1.1 * ms)
    assert Share.of_predictions(sure, 2.0) == Share.of_sample(60, 100)
    found = Share.of_predictions(unsure, 2.0)
    assert (found.met, found.of) == (60, 100)
    assert (found.low, found.high) == (Share.of_sample(40, 100).low, Share.of_sample(80, 100).high)


@pytest.mark.parametrize(
    ("budget", "trials", "seconds"),
    [
        ("10trials", 10, 10 * (20 / 4 + 3 / 0.5)),
        ("110s", 10, 110),
        ("260gpu-s", 10, 10 * (20 / 4 + 3 / 0.5)),
        ("1000gpu-h", 25, 25 * (20 / 4 + 3 / 0.5)),  # there are no more
    ],
)
def test_what_a_budget_buys(budget, trials, seconds):
    """Trials of 20 s on 4 workers; every second proposal is within the limits and takes 3 s to price."""
    bought = purchase(Budget.parse(budget), trial=20, workers=4, proposal=3, share=0.5, most=25)
    assert (bought.trials, bought.proposals) == (pytest.approx(trials), pytest.approx(2 * trials))
    assert bought.seconds == pytest.approx(seconds)

    two = purchase(Budget.parse("400gpu-s"), trial=20, workers=4, proposal=0, share=1, most=25, held=2)
    assert (two.trials, two.seconds) == (10, 50)  # 40 GPU-s each, four at once


def test_what_a_trial_takes():
    config = RunConfig("d.yaml", "s", "2h", "cpu:torch", epochs=5, batch=8)
    rehearsal = Rehearsal(start=1.0, step=0.5, image=0.02, steps=4, images=32, workers=2)
    assert rehearsal.trial(config, fit=81, held_out=20) == pytest.approx(1 + 5 * 10 * 0.5 + 20 * 0.02)
    assert rehearsal.trial(config, fit=3, held_out=1) == pytest.approx(1 + 5 * 0.5 + 0.02)


@pytest.mark.slow
def test_a_dry_run_from_the_command_line(tmp_path: Path) -> None:
    """Lines for everything, no run folder, and prices that the next dry run finds in the cache."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    words = [
        "search",
        "--space",
        "tiny.yaml",
        "--imgsz",
        "32",
        "--budget",
        "2gpu-h",
        "--max-latency",
        "1s",
        "--max-params",
        "1G",
    ]
    command = [sys.executable, "-c", "from nas.cli import main; main()", *words, "--workers", "2", "--allow-noisy", "--dry-run"]
    environment = {**os.environ, "NAS_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    told = dict(line.split(None, 1) for line in done.stdout.splitlines() if not line.startswith(" "))
    assert told["space"] == "4 architectures of yolo11n"
    assert "at most 1,000 ms, 1,000 M parameters on cpu:onnxruntime" in told["within"]
    assert "of all 4: 100%" in told["within"]
    assert float(told["fastest"].split()[0]) <= float(told["baseline"].split()[0])
    assert told["trials"].startswith("about 4 in 2gpu-h: ")
    assert "decoded images take" in told["disk"] and told["ends"].endswith("if it begins now")
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.yaml", "cache"}
    lines = [line for file in (tmp_path / "cache" / "latency").iterdir() for line in file.read_text().splitlines() if line]
    for price in (json.loads(line)["price"] for line in lines):
        assert price["ms"] > 0 and price["size_mb"] > 0 and price["memory_mb"] > 0
