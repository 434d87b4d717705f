"""A run as its reviewers see it: the store's trials as records, the summary beside them, and the files of a run folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from nas.config import RunConfig
from nas.export import write_winner
from nas.limits import Limits
from nas.review.page import write_html
from nas.review.picture import write_png
from nas.review.record import Record, RunSummary, Teacher, metric_of, printable, teacher_of
from nas.review.table import front_of, picks_of, write_csv, write_json
from nas.runs.folder import read_config, read_manifest
from nas.runs.ledger import Ledger
from nas.runs.store import Entry, Store
from nas.runs.trials import TrialFolders
from nas.search.front import front_indices, hypervolume
from nas.search.ladder import Climber, share_of, tau_of
from nas.search.noise import LEAST_PAIRS, hypervolume_interval, interval, pooled_deviation, tau_interval
from nas.seeds import derive
from nas.sensitivity import FILE as SENSITIVITY
from nas.sensitivity import Sensitivity, write_sensitivity
from nas.space.architecture import Architecture
from nas.space.search_space import SearchSpace
from nas.space.skeleton import Skeleton

Describe = Callable[[Architecture], Mapping[str, str]]

TABLES_SECONDS = 5.0
TABLES_SHARE = 0.005


def records_of(entries: Sequence[Entry], describe: Describe, limits: Limits) -> list[Record]:
    """One record per trial. `describe` says which slots of an architecture are changed, and to what."""
    noise = noise_of(entries)
    return [_record(entry, describe, limits, noise) for entry in entries]


def noise_of(entries: Iterable[Entry]) -> float | None:
    """How far mAP differs from seed to seed, from what was trained more than once: see `pooled_deviation`."""
    return pooled_deviation([entry.maps for entry in entries if entry.repeats])


def _record(entry: Entry, describe: Describe, limits: Limits, noise: float | None) -> Record:
    architecture, price = entry.architecture, entry.price or {}
    known = (*entry.results[-1:], *entry.repeats)
    low, high = interval(entry.map, len(known), noise) if known and noise is not None else (None, None)
    return Record(
        trial=entry.number,
        id=architecture.id,
        state=entry.state,
        reason=entry.reason,
        baseline=architecture.is_skeleton,
        feasible=limits.met(price),
        map=entry.map if known else None,
        map50=sum(result["map50"] for result in known) / len(known) if known and "map50" in known[0] else None,
        map_low=low,
        map_high=high,
        trainings=len(known),
        rung=len(entry.results) - 1 if known else None,
        latency_ms=price.get("ms"),
        latency_spread=price.get("spread"),
        params=price.get("params"),
        gmacs=price.get("gmacs"),
        size_mb=price.get("size_mb"),
        memory_mb=price.get("memory_mb"),
        seconds=entry.seconds,
        placement=describe(architecture),
        latency_low_ms=price.get("low"),
        latency_high_ms=price.get("high"),
        latency_p90_ms=price.get("p90"),
        latency_source=price.get("source"),
        val=None if entry.val is None else float(entry.val["map"]),
    )


def summary_of(folder: Path, config: RunConfig, skeleton: Skeleton, store: Store, ledger: Ledger) -> RunSummary:
    """What stands beside the figures of a run in every report."""
    weights = Path(config.weights or "").name
    data = f" on {config.fraction:.0%} of the images" if config.fraction < 1 else ""
    start = f" from {weights}" if weights else ""
    teacher = teacher_in(store, weights) if config.imitate else None
    if config.imitate:
        start = f", begun as blocks that imitate a teacher{f' ({teacher.name})' if teacher else ''}"
    return RunSummary(
        name=folder.name,
        skeleton=f"{skeleton.name}.yaml",
        target=config.target,
        imgsz=config.imgsz,
        limits=config.limits,
        data="/".join(Path(config.data).parts[-2:]),
        classes=tuple(read_manifest(folder)["classes"]),
        fidelity=f"{_epochs(config)} epochs at {config.imgsz} px{data}{start}, seed {config.seed}",
        split=f"held-out part of train ({config.held_out:.0%})",
        seed=config.seed,
        command=read_config(folder)[1],
        counts=counts_of(store),
        device_seconds=ledger.device_seconds(),
        wall_seconds=ledger.wall_seconds,
        stopped_because=_stopped_because(store),
        **certainty(store, config.limits, config.seed),
        metric=metric_of(skeleton),
        predictions=_predictions(store),
        weights=weights,
        rungs=rung_words(store.entries),
        lane=config.lane or "",
        seen=seen_words(store, config),
        teacher=teacher,
    )


def teacher_in(store: Store, weights: str) -> Teacher | None:
    """The teacher of a run, once there is one; `weights` is the name of the checkpoint that the run was given, or ""."""
    fact = store.fact("teacher")
    if fact is None:
        return None
    name = weights if fact["path"] else f"trained here{f', from {weights}' if weights else ''}"
    return Teacher(name, float(fact["map"]), fact.get("map50"), fact.get("val"))


def seen_words(store: Store, config: RunConfig) -> str:
    """Why nothing is claimed of the held-out part where the user's own checkpoint may have learned from it, and how well mAP
    there ranks as mAP on `val` does; "" where there is none such."""
    path = store.fact("seen")
    if path is None:
        return ""
    known = [(e.map, float(e.val["map"])) for e in store.entries if e.val is not None and (e.repeats or not config.confirm)]
    said = (
        f"The checkpoint that it began with, {printable(Path(path).name)}, may have learned from the held-out part, so nothing "
        "is claimed of mAP there: comparisons with the baseline are of the kept weights on val, and the held-out part only "
        "picks knee and best. "
    )
    which = "confirmed members" if config.confirm else "members that were validated"
    if len(known) < LEAST_PAIRS:
        return f"{said}Whether it ranks as val does cannot be said of {len(known)} {which}. "
    tau, low, high = tau_interval(*np.array(known).T, seed=derive(config.seed, 0, "tau"))
    agreement = f"Kendall's tau {tau:.2f}, 90% interval {low:.2f} to {high:.2f}"
    return f"{said}It ranks the {len(known)} {which} as val does with {agreement}. "


def _epochs(config: RunConfig) -> str:
    *lower, top = config.rung_epochs
    return f"{top}" if not lower else f"{top} (rungs {', '.join(map(str, lower))} before)"


def certainty(store: Store, limits: Limits, seed: int) -> dict[str, Any]:
    """`RunSummary.noise` and `hypervolume`: its slow end is the limit, or twice the baseline's latency."""
    if not any(entry.repeats for entry in store.entries):
        return {"noise": None, "hypervolume": None}
    noise = noise_of(store.entries) or 0.0
    if store.fact("seen") is not None:  # a claim of mAP on the held-out part
        return {"noise": noise, "hypervolume": None}
    done = [e for e in store.entries if e.state == "done" and e.price and limits.met(e.price)]
    points = [(e.map, e.price["ms"]) for e in done if e.price]
    front = [done[index] for index in front_indices(*zip(*points, strict=True))] if points else []
    baseline = store[0].price or {}
    reference = limits.ms or 2 * baseline.get("ms", 0.0)
    if not front or not (front[0].price or {})["ms"] < reference:
        return {"noise": noise, "hypervolume": None}
    maps, latencies = [e.map for e in front], [(e.price or {})["ms"] for e in front]
    box = {"reference_ms": reference, "fastest_ms": latencies[0]}
    low, high = hypervolume_interval(
        maps, [len(e.maps) for e in front], latencies, noise, **box, seed=derive(seed, 0, "hypervolume")
    )
    return {"noise": noise, "hypervolume": (hypervolume(maps, latencies, **box), low, high)}


def rung_words(entries: Iterable[Entry]) -> str:
    """How well each rung foretells the next, in a sentence each; "" where there is one rung, or too few were on two."""
    climbers = [Climber(e.number, 1.0, tuple(float(r["map"]) for r in e.results), rests=False) for e in entries if e.results]
    words = []
    for rung in range(max((len(climber.scores) for climber in climbers), default=1) - 1):
        if (tau := tau_of(climbers, rung)) is not None:
            more = ", so more are promoted" if share_of(tau) > share_of(None) else ""
            words.append(f"Rung {rung} ranks as rung {rung + 1} does with Kendall's tau {tau:.2f}{more}. ")
    return "".join(words)


def counts_of(store: Store) -> dict[str, int]:
    """How many trials are in each state that any is in."""
    return {state: count for state, count in store.counts.items() if count}


def _predictions(store: Store) -> str:
    error = store.fact("latency_error")
    return f"off by {error['mape']:.1f}% on average ({error['n']} measured, each left out in turn)" if error else ""


def _stopped_because(store: Store) -> str:
    return store.fact("stopped_because") or "not ended"


class Tables:
    """The tables of a search under way: trials.csv, front.csv and front.json.

    Writing them takes longer the more trials there are, so they are written when a trial has ended, but not within
    5 seconds after the last time, nor as long as that would take more than half a percent of the time: nothing starts
    meanwhile. A killed search loses nothing by it: everything stands in the store.

    Raises:
        InputError: run.yaml or manifest.json cannot be read.
    """

    def __init__(
        self,
        folder: Path,
        config: RunConfig,
        space: SearchSpace,
        store: Store,
        ledger: Ledger,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder, self._describe, self._store, self._ledger, self._clock = folder, space.describe, store, ledger, clock
        self._config = config
        self._summary = summary_of(folder, config, space.skeleton, store, ledger)
        self._outdated = False
        self._next = clock()
        self._noise: float | None = None
        self._records: dict[int, tuple[Entry, Record]] = {}  # as last written

    def outdate(self) -> None:
        """A trial has ended."""
        self._outdated = True

    def update(self) -> None:
        """Write the tables if they are outdated and it is time; to be called often. Raises OSError."""
        if self._outdated and self._clock() >= self._next:
            self.write()

    def write(self) -> None:
        """Write the tables now. Raises OSError."""
        began = self._clock()
        summary = replace(
            self._summary,
            **certainty(self._store, self._summary.limits, self._summary.seed),
            counts=counts_of(self._store),
            device_seconds=self._ledger.device_seconds(),
            wall_seconds=self._ledger.wall_seconds,
            stopped_because=_stopped_because(self._store),
            rungs=rung_words(self._store.entries),
            seen=seen_words(self._store, self._config),
            teacher=teacher_in(self._store, self._summary.weights) if self._config.imitate else None,
        )
        write_tables(self._folder, self._renewed(summary.limits), summary)
        now = self._clock()
        self._outdated, self._next = False, now + max(TABLES_SECONDS, (now - began) / TABLES_SHARE)

    def _renewed(self, limits: Limits) -> list[Record]:
        """As `records_of`; what has not changed since it was last written is taken from there."""
        if (noise := noise_of(self._store.entries)) != self._noise:
            self._noise, self._records = noise, {}
        for entry in self._store.entries:
            known = self._records.get(entry.number)
            if known is None or known[0] is not entry:
                self._records[entry.number] = entry, _record(entry, self._describe, limits, noise)
        return [record for _, record in self._records.values()]


def winner_of(records: Sequence[Record], max_latency_ms: float | None) -> Record | None:
    """The architecture that `winner.yaml` holds: the best under a latency limit, without one the knee; always of the front,
    so within all limits."""
    return picks_of(front_of(records)).get("knee" if max_latency_ms is None else "best")


def write_report(
    folder: Path,
    records: Sequence[Record],
    summary: RunSummary,
    space: SearchSpace,
    entries: Sequence[Entry],
    trials: TrialFolders,
    sensitivity: Sequence[Sensitivity] = (),
) -> None:
    """All result files of a run folder: trials.csv, front.csv, front.json, pareto.png, pareto.html, winner.yaml, winner.pt
    where its weights are kept, and after an imitation sensitivity.csv."""
    write_tables(folder, records, summary)
    write_png(records, summary, folder / "pareto.png")
    write_html(records, summary, folder / "pareto.html", sensitivity)
    if sensitivity:
        write_sensitivity(sensitivity, folder / SENSITIVITY)
    winner = winner_of(records, summary.limits.ms)
    if winner is None:
        for name in ("winner.yaml", "winner.pt"):
            (folder / name).unlink(missing_ok=True)  # of an earlier, higher limit
        return
    architecture, nc = architecture_of(entries, winner), len(summary.classes)
    write_winner(folder / "winner.yaml", space.skeleton, architecture, nc, record=winner, summary=summary)
    if not trials.export(winner.trial, folder / "winner.pt"):
        (folder / "winner.pt").unlink(missing_ok=True)  # of an earlier winner


def write_tables(folder: Path, records: Sequence[Record], summary: RunSummary) -> None:
    """The result files that are written while a search runs: trials.csv, front.csv, front.json.

    The front's files hold the baseline too, marked as not on the front where it is not, and the teacher.
    """
    front, teacher = front_of(records), teacher_of(records, summary)
    shown = front + [r for r in records if r.baseline and r not in front] + ([teacher] if teacher else [])
    write_csv(records, folder / "trials.csv", summary.apart)
    write_csv(shown, folder / "front.csv", summary.apart)
    write_json(shown, folder / "front.json", summary)


def architecture_of(entries: Sequence[Entry], record: Record) -> Architecture:
    """The architecture of a record."""
    return next(entry.architecture for entry in entries if entry.number == record.trial)
