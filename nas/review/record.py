"""What the review is given, plain data: one Record per trial, one RunSummary per run, and the words to show them with.

The study builds these from its store; the review never opens a store, a model or a device. Texts in them (class
names, file names, reasons, commands) come from users: whoever shows one passes it through `printable` and then
through the escape of its own medium.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath

from nas.limits import Limits
from nas.space.skeleton import Skeleton

STATES = ("proposed", "rejected", "queued", "running", "paused", "done", "failed")
TEACHER = "teacher"  # the state of a record that is no trial's, see `teacher_of`


@dataclass(frozen=True, slots=True)
class Record:
    """One trial as a row.

    Args:
        trial: number of the trial in the run.
        id: architecture id (short hash of its canonical form).
        state: one of STATES, or TEACHER.
        reason: why it was rejected or failed, else None.
        baseline: whether it is the unmodified skeleton.
        feasible: whether it is within the limits (False for a baseline over the limit).
        map: mAP50-95 in [0, 1] at the highest rung passed, mean over seeds, or None.
        map50: mAP50 in [0, 1], or None.
        latency_ms: p50 on the run's target in ms, or None, as for what another limit had ruled out before it was timed.
        latency_spread: how far the third-lowest p50 of the measured blocks lies above the lowest (0.02 is 2%), or None.
        params: parameters of the fused model, or None.
        gmacs: multiply-accumulates of one image at the run's image size, in 1e9, or None.
        size_mb: weights of the fused model as the target's precision stores them, in 1e6 bytes, or None.
        memory_mb: peak memory of the activations of one inference, in 1e6 bytes, or None.
        seconds: device seconds charged.
        placement: slot -> short text of what stands there; slots that keep the skeleton's own block are left out.
        latency_low_ms: lower end of the interval of the latency, or None.
        latency_high_ms: upper end, or None.
        latency_p90_ms: 90th percentile of the fastest measured block, or None.
        rung: the highest rung passed, from 0, or None.
        trainings: how many seeds `map` is the mean of, 0 before the first rung.
        map_low: lower end of the 90% interval of `map`, or None where nothing tells how seeds differ.
        map_high: upper end, or None.
        val: mAP50-95 of its kept weights on `val`, or None where nobody asked.
        latency_source: where the latency comes from: "measured", "predicted" or "table" (of another device), or None.

    Raises:
        ValueError: an unknown state or a number outside its range. What is not known is None, never NaN.
    """

    trial: int
    id: str
    state: str
    reason: str | None
    baseline: bool
    feasible: bool
    map: float | None
    map50: float | None
    latency_ms: float | None
    latency_spread: float | None
    params: int | None
    gmacs: float | None
    seconds: float
    placement: Mapping[str, str] = field(hash=False)
    size_mb: float | None = None
    memory_mb: float | None = None
    latency_low_ms: float | None = None
    latency_high_ms: float | None = None
    latency_p90_ms: float | None = None
    latency_source: str | None = None
    rung: int | None = None
    trainings: int = 0
    map_low: float | None = None
    map_high: float | None = None
    val: float | None = None

    def __post_init__(self) -> None:
        if self.state not in (*STATES, TEACHER):
            raise ValueError(f"trial {self.trial}: unknown state {self.state!r}")
        for name, low, high in (
            ("map", 0.0, 1.0),
            ("map50", 0.0, 1.0),
            ("map_low", 0.0, 1.0),
            ("map_high", 0.0, 1.0),
            ("val", 0.0, 1.0),
            ("latency_ms", math.ulp(0.0), math.inf),
            ("latency_spread", 0.0, math.inf),
            ("latency_low_ms", 0.0, math.inf),
            ("latency_high_ms", math.ulp(0.0), math.inf),
            ("latency_p90_ms", math.ulp(0.0), math.inf),
            ("gmacs", 0.0, math.inf),
            ("size_mb", 0.0, math.inf),
            ("memory_mb", 0.0, math.inf),
            ("seconds", 0.0, math.inf),
        ):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and low <= value <= high):
                raise ValueError(f"trial {self.trial}: {name} is {value}")


@dataclass(frozen=True)
class Teacher:
    """What the blocks of a run have learned from: the skeleton, trained before the search, or by it.

    Args:
        name: what it is called, e.g. "best.pt" or "trained here".
        map: its mAP50-95 on the run's split.
        map50: its mAP50, or None.
        val: its mAP50-95 on `val`, or None where nobody asked.
    """

    name: str
    map: float
    map50: float | None = None
    val: float | None = None


@dataclass(frozen=True)
class RunSummary:
    """What a run was: everything that must stand beside its figures for them to mean something.

    Args:
        name: the run folder's name.
        skeleton: the skeleton's file, e.g. yolo11n.yaml.
        target: where latency was measured, e.g. cpu:onnxruntime.
        imgsz: image size of the proxies in px; also of the latency, unless the target names its own.
        limits: what its trials had to be within.
        data: the dataset as the user named it.
        classes: its class names.
        fidelity: what mAP was trained with, e.g. "5 epochs at 160 px, seed 0".
        split: what mAP was measured on, e.g. "held-out part of train (20%)".
        seed: the run's seed.
        command: the command line that started it.
        counts: state -> number of trials.
        device_seconds: device time charged so far.
        wall_seconds: wall-clock time so far.
        stopped_because: why it ended, e.g. "budget spent".
        metric: what the mAP of its records is, see `metric_of`.
        predictions: how far predicted latencies are off, in words, or "" where none was predicted.
        weights: name of the checkpoint that proxies started from, or "" for a start from scratch.
        noise: standard deviation of mAP over seeds, pooled over those trained more than once, or None.
        hypervolume: of the front (`nas.search.front.hypervolume`) with the ends of its 90% interval, or None.
        rungs: how well rungs rank, in words, or "".
        seen: why no claim rests on the held-out part, and how it agrees with `val`, in words; "" where nothing has learned from
            it.
        simulated: what was simulated, in a sentence, or "" where trials were trained.
        lane: the host of a cluster on which latency was measured, or "" for the one where the search ran.
        teacher: what its blocks imitate, or None where they do not.
    """

    name: str
    skeleton: str
    target: str
    imgsz: int
    limits: Limits
    data: str
    classes: tuple[str, ...]
    fidelity: str
    split: str
    seed: int
    command: str
    counts: Mapping[str, int] = field(hash=False)
    device_seconds: float
    wall_seconds: float
    stopped_because: str
    metric: str = "mAP50-95"
    predictions: str = ""
    weights: str = ""
    noise: float | None = None
    hypervolume: tuple[float, float, float] | None = None
    rungs: str = ""
    seen: str = ""
    simulated: str = ""
    lane: str = ""
    teacher: Teacher | None = None

    @property
    def measured_on(self) -> str:
        """The target with its image size, which targets of older runs do not name, and the host where that is another one."""
        where = f" on {self.lane}" if self.lane else ""
        return (self.target if self.simulated or "imgsz=" in self.target else f"{self.target}, {self.imgsz} px") + where

    @property
    def proxy(self) -> str:
        """What the mAP of this run is, in a few words."""
        return self.simulated or f"proxy mAP: {self.fidelity}, on the {self.split}"

    @property
    def baseline_name(self) -> str:
        """The baseline as it is called everywhere: "baseline (yolo11n)"."""
        return f"baseline ({PurePath(self.skeleton).stem or self.skeleton})"

    @property
    def apart(self) -> float | None:
        """The noise to tell mAPs apart by; None where it is not known, or where nothing is claimed of them."""
        return None if self.seen else self.noise

    @property
    def meaning(self) -> str:
        """What the mAP of this run is, in one plain sentence for every report."""
        if self.simulated:
            return f"{self.simulated} {self.rungs}"
        words = f"{self.metric} is a proxy to rank architectures by: measured on the {self.split} after {self.fidelity}. "
        if self.noise is not None:
            words += f"Another seed changes it by {self.noise:.3f} (standard deviation). "
        if self.hypervolume is not None:
            words += "Hypervolume of the front {:.3f}, 90% interval {:.3f} to {:.3f}. ".format(*self.hypervolume)
        return f"{words}{self.seen}{self.rungs}A fully trained model will have another mAP."

    @property
    def tally(self) -> str:
        """How many trials are in each state: "24 done, 130 rejected"."""
        order = ("done", "failed", "paused", "running", "queued", "rejected", "proposed")
        counted = [f"{self.counts[s]:,} {s}" for s in order if self.counts.get(s)]
        return ", ".join(counted) or "no trials"


def metric_of(skeleton: Skeleton) -> str:
    """What the models of a skeleton are ranked by, in words."""
    return "mask mAP50-95" if skeleton.task == "segment" else "mAP50-95"


def baseline_of(records: Sequence[Record]) -> Record | None:
    """The unmodified skeleton among the records, or None where it has not been proposed."""
    return next((r for r in records if r.baseline), None)


def teacher_of(records: Sequence[Record], summary: RunSummary) -> Record | None:
    """The teacher as a row beside the trials: the baseline before it was trained on, with its number and latency.
    None where nothing imitates, or the baseline has not been proposed."""
    baseline, teacher = baseline_of(records), summary.teacher
    if baseline is None or teacher is None:
        return None
    figures = {"map": teacher.map, "map50": teacher.map50, "map_low": None, "map_high": None, "val": teacher.val}
    return replace(baseline, state=TEACHER, baseline=False, reason=None, rung=None, trainings=0, seconds=0.0, **figures)  # type: ignore[arg-type]


def standing(record: Record, summary: RunSummary) -> str:
    """Why a record cannot be on the front although it has a result ("over the limit on latency"), or "" where it could be."""
    if record.feasible:
        return ""
    figures = {"ms": record.latency_ms, "params": record.params, "gmacs": record.gmacs, "size_mb": record.size_mb}
    reason = summary.limits.broken({name: figure for name, figure in figures.items() if figure is not None})
    return f"over the limit on {reason.removeprefix('over-')}" if reason else "outside the limits"


def printable(text: str, width: int | None = None) -> str:
    """The text on one line, for showing. What does not print (control characters, terminal escapes, direction
    overrides, lone surrogates) becomes the replacement character.

    Args:
        text: any text.
        width: cut in the middle to this many characters, both ends being what tells paths and commands apart.
    """
    line = "".join(c if c.isprintable() else "�" for c in " ".join(text.split()))
    if width is None or len(line) <= width:
        return line
    head = (width - 1) // 2
    return f"{line[:head]}…{line[len(line) - (width - 1 - head) :]}"


def duration(seconds: float) -> str:
    """A time for people: "42 s", "7.5 min", "3.2 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"


def milliseconds(value: float) -> str:
    """A latency for people, to three digits: "0.920 ms", "12.3 ms", "140 ms"."""
    return f"{value:.0f} ms" if value >= 100 else f"{value:#.3g} ms"
