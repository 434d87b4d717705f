"""The dry run: its arithmetic, and the real thing from the command line on a space that can be looked at whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.config import Budget, RunConfig
from nas.dataset.description import Dataset
from nas.dry_imitation import Learning, Met, Shares, meet, rehearse_learning, shares, too_little
from nas.dry_imitation import lines as phase_lines
from nas.dry_run import Rehearsal, Share, purchase
from nas.errors import StartError, StoppedError
from nas.execution.executor import Attempt, Failed, Progress, Result
from nas.execution.imitate import IMITATE, MEET
from nas.jobs import training_job
from nas.pricing import Intervals
from nas.space.reader import read_space

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


LEARNING = Learning(beside=2.0, image=0.01)  # 100 images: 2 s, with 6 epochs 8 s


@pytest.mark.parametrize(
    ("budget", "mean_ap", "teach", "epochs", "imitate", "left", "limited"),
    [
        ("1000gpu-s", 0.4, 2, 0, (20, 80), 918, False),  # taken as it is: scored once
        ("300gpu-s", 0.4, 2, 0, (20, 60), 238, False),  # a fifth at most
        ("50gpu-s", 0.4, 2, 0, (10, 10), 38, True),
        ("500s", 0.4, 2, 0, (5, 20), 478, False),  # four learn side by side
        ("1000gpu-s", None, 2 + 25 * 10 + 14, 25, (20, 80), 654, False),  # epochs of 12 s with their scores: 30%
        ("20trials", None, 2 + 30 * 10, 30, (20, 80), 20, False),
    ],
)
def test_what_teacher_and_imitation_take(budget, mean_ap, teach, epochs, imitate, left, limited):
    """Ten alternatives have yet to learn; an epoch of the skeleton takes 10 s, a score 2 s."""
    met, asked = Met(mean_ap, "", 12, 2, seen=False), Budget.parse(budget)
    found = shares(asked, met, LEARNING, epoch=10, meeting=2, epochs=5, images=100, workers=4)
    assert found == Shares(teach, pytest.approx(imitate), pytest.approx(left), epochs, limited)
    told = phase_lines(asked, met, found)
    assert told[1].startswith("imitate    2 of 12 alternatives have learned already") and ("when an arch" in told[1]) == limited
    if asked.kind != "trials":
        assert found.teach + found.imitate[1] + found.left <= asked.amount


def test_what_a_trial_by_imitation_takes():
    """All are assembled and scored (3 s), one in nine is trained on for 3 epochs, one in 27 for 9; seven go all the way."""
    config = RunConfig("d.yaml", "s", "2h", "cpu:torch", epochs=9, batch=8, rungs=2, confirm=1, imitate=True)
    rehearsal = Rehearsal(start=1.0, step=0.5, image=0.02, steps=4, images=32, workers=2)
    first, second = 3 + 3 + 3 * 5, 3 + 3 + 6 * 5
    trial, again, once = rehearsal.assembled(config, fit=80, held_out=100)
    assert trial == pytest.approx(3 + first / 9 + second / 27)
    assert again == pytest.approx(6 * (3 + 3 + 9 * 5)) and once == pytest.approx(7 * (first + second))
    assert rehearsal.validation(50) == pytest.approx(7 * 2)


@dataclass
class Answers:
    """An executor that answers each kind of job with what it is told to."""

    told: dict
    started: list[Attempt] = field(default_factory=list)
    free: int = 1

    def start(self, attempt: Attempt) -> None:
        self.started.append(attempt)

    def poll(self, _: float) -> list:
        attempt = self.started[-1]
        answer = self.told[attempt.kind]
        epochs = [Progress(attempt.key, {}, 0.0)] + [
            Progress(attempt.key, {"epoch": n, "students": 3}, 10.0 + 6 * n) for n in range(1, 7)
        ]
        return [
            *epochs,
            answer(attempt.key, "worker died", 1.0) if isinstance(answer, type) else Result(attempt.key, answer, 52.0),
        ]


@pytest.fixture
def imitated(tmp_path, monkeypatch):
    monkeypatch.setenv("NAS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "space.yaml").write_text(TINY)
    space = read_space(tmp_path / "space.yaml")
    config = RunConfig("d.yaml", "s", "2h", "cpu:torch", imitate=True, weights="best.pt")
    data = Dataset(Path("d.yaml"), tmp_path, ("a", "b"), (), (), (), "digest", (), ())
    return config, space, data, training_job(config, data, []), tmp_path


def test_a_checkpoint_is_met_before_the_search(imitated):
    *asked, folder = imitated
    found = meet(*asked, Answers({MEET: {"digest": "d", "map": 0.41}}), folder)
    assert (found.mean_ap, found.alternatives, found.learned) == (0.41, 3, 0) and "best.pt is taken as it is" in found.words
    assert found.seen
    found = meet(*asked, Answers({MEET: {"shortfall": "it knows 80 classes", "fresh": True}}), folder)
    assert found.mean_ap is None and "it knows 80 classes" in found.words and "held-out" not in found.words
    assert not found.seen
    found = meet(*asked, Answers({MEET: {"shortfall": "it is a segment model", "fresh": False}}), folder)
    assert found.mean_ap is None and found.words.endswith("starts from it, which may have seen the held-out part")
    assert found.seen
    with pytest.raises(StartError, match="nothing to imitate"):
        meet(*asked, Answers({MEET: {"fault": "mAP is 0.001: there is nothing to imitate", "cure": "train it longer"}}), folder)
    with pytest.raises(StoppedError, match="worker died"):
        meet(*asked, Answers({MEET: Failed}), folder)


@pytest.mark.parametrize(
    ("budget", "mean_ap", "why"),
    [
        ("1000gpu-s", None, "from scratch: the budget buys a teacher 7 epochs, imitation is worth it from 25 on"),
        ("3400gpu-s", None, ""),
        ("1700s", None, ""),  # two GPUs train it at the price of one's time
        ("1000gpu-s", 0.4, ""),  # a teacher as it is
    ],
)
def test_a_budget_that_buys_no_teacher_is_told(imitated, budget, mean_ap, why):
    config = replace(imitated[0], budget=budget, imitate=None, device="cuda", gpus_per_trial=2)
    assert too_little(config, Met(mean_ap, "", 3, 0, seen=False), 20.0) == why


def test_learning_is_rehearsed(imitated):
    """Three alternatives, 6 s an epoch over 32 images; of 52 s six such epochs are 36, the rest is beside them."""
    _, space, _, train, folder = imitated
    executor = Answers({IMITATE: {"entries": {}}})
    job = replace(train, keep=str(folder / "skeleton.pt"))
    found = rehearse_learning(space, job, 32, executor, folder)
    assert executor.started[0].payload["teacher"] == str(folder / "skeleton.pt")
    assert (found.beside, found.image) == (pytest.approx((52 - 36) / 3), pytest.approx(6 / 3 / 32))


@pytest.mark.slow
def test_a_dry_run_of_imitation_from_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    words = ["search", "--space", "tiny.yaml", "--imgsz", "64", "--imitate", "--budget", "1gpu-h", "--workers", "1"]
    command = [sys.executable, "-c", "from nas.cli import main; main()", *words, "--allow-noisy", "--dry-run"]
    environment = {**os.environ, "NAS_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    told = dict(line.split(None, 1) for line in done.stdout.splitlines() if not line.startswith(" "))
    assert "the skeleton is trained first" in told["teach"] and "of the budget" in told["teach"]
    assert "0 of 3 alternatives have learned already" in told["imitate"]
    assert told["trials"].startswith("about 4 in 1gpu-h: ")


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
