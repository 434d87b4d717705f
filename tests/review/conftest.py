"""A made-up run: a baseline over the limit, three members of a front, and one trial of every other fate."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from nas.limits import Limits
from nas.review.record import Record, RunSummary

# Ends a script element, opens an attribute, is a plotly template, broken mathtext and terminal markup, holds control
# characters, and ends in a link that plotly would make.
HOSTILE = (
    "</script><script>document.documentElement.dataset.pwned=1</script>"
    '<img src=x onerror="document.documentElement.dataset.pwned=1">'
    "'&lt;%{x}$\\frac{$[red]\x1b\u202e<a href='//a.b'>b</a>"
)


@dataclass
class Run:
    """What the writers take."""

    records: list[Record]
    summary: RunSummary


def record(trial: int, latency: float | None, accuracy: float | None, **more) -> Record:
    """A done, feasible record unless said otherwise."""
    values = {
        "trial": trial,
        "id": f"a{trial:07x}",
        "state": "done",
        "reason": None,
        "baseline": False,
        "feasible": True,
        "map": accuracy,
        "map50": None if accuracy is None else accuracy * 1.5,
        "latency_ms": latency,
        "latency_spread": 0.02,
        "params": 2_590_000,
        "gmacs": 3.25,
        "size_mb": 10.36,
        "memory_mb": 6.5,
        "seconds": 41.5,
        "placement": {"backbone.P4": "repvit w1.25 d2"},
    }
    return Record(**(values | more))


@pytest.fixture
def make_run():
    """A function from a text, put wherever users' texts go, to a run."""

    def make(text: str = "") -> Run:
        records = [
            record(0, 2.4, 0.33, baseline=True, feasible=False, placement={}),
            record(1, 1.0, 0.10),
            record(2, 1.2, 0.28, placement={"neck.topdown.P3": "irmb d1" + text, "backbone.P4": "riformer w1 d1"}),
            record(3, 1.9, 0.31, id="b" + text),
            record(4, 1.5, 0.12, latency_spread=None, params=None, gmacs=None),
            record(5, 3.0, None, state="rejected", reason="over-latency" + text, feasible=False),
            record(6, None, None, state="rejected", reason="invalid: no export", feasible=False),
            record(7, 1.3, None, state="failed", reason="diverged" + text),
            record(8, 1.3, None, state="running"),
        ]
        summary = RunSummary(
            name="search3" + text,
            skeleton="yolo11n.yaml",
            target="cpu:onnxruntime" + text,
            imgsz=160,
            limits=Limits(ms=2.0, params=3e6),
            data="cells.yaml" + text,
            classes=("rbc", "wbc" + text),
            fidelity="5 epochs at 160 px, seed 0",
            split="held-out part of train (20%)",
            seed=0,
            command="nas search --data cells.yaml" + text,
            counts={"done": 5, "rejected": 2, "failed": 1, "running": 1},
            device_seconds=1234.5,
            wall_seconds=2000.0,
            stopped_because="budget spent" + text,
        )
        return Run(records, summary)

    return make
