"""`nas search --simulate`: the study's own loop over a table, in virtual time, and what came of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nas.config import RunConfig, parse_latency
from nas.errors import InputError
from nas.execution.simulate import ENDED, Faults
from nas.files import write_whole
from nas.outcome import certainty, counts_of, records_of, rung_words
from nas.review.picture import write_png
from nas.review.progress import Progress, Quiet, Status
from nas.review.record import Record, RunSummary, duration
from nas.review.table import front_of, write_csv, write_json
from nas.runs import folder as folders
from nas.runs.store import Store
from nas.simulate.faults import read_faults
from nas.simulate.play import Play
from nas.simulate.share import Share
from nas.simulate.space import TableSpace
from nas.simulate.table import read_table

BUDGET = "320trials"
TAU = 0.7
DRAWN_RUNGS = 3  # where a tau is asked for, and nothing says how many rungs
GOALS = (0.9, 0.95, 0.99)
SHOWN_SECONDS = 0.2


@dataclass(frozen=True)
class Simulated:
    """What came of a simulated search; `lines` say it in words.

    Attributes:
        records: of all trials that were not rejected.
        busy: the share of the simulated GPUs' time that they trained.
        share: the front's hypervolume as a share of the exhaustive front's.
        evaluations: to reach 90, 95 and 99% of it: results at the highest rung, in the order of their ends; None where it was
            not reached.
        stopped_because: as of any search.
    """

    folder: Path
    records: Sequence[Record]
    summary: RunSummary
    busy: float
    share: float
    evaluations: tuple[int | None, ...]
    stopped_because: str
    lines: tuple[str, ...]

    @property
    def front(self) -> list[Record]:
        """The non-dominated trials within the limit, fastest first."""
        return front_of(self.records)


def simulate(
    table: str | Path,
    *,
    accuracy: str,
    latency: str,
    features: Sequence[str] | None = None,
    budget: str = BUDGET,
    max_latency: str | None = None,
    gpus: int = 1,
    faults: str | Path | None = None,
    rungs: int | None = None,
    rung_tau: float | None = None,
    confirm: int = 0,
    stop_when_flat: float | None = None,
    sampler: str = "front",
    seed: int = 0,
    name: str | None = None,
    command: str | None = None,
    progress: Progress | None = None,
) -> Simulated:
    """Search a table; the front's files lie in `results/NAME`.

    Args:
        table: a CSV, see `nas.simulate.table`. Its first row is the baseline.
        accuracy: the column to maximise.
        latency: the column to minimise, in ms.
        features: the columns that are the search space.
        budget: as for a search, in virtual time.
        max_latency: the hard limit.
        gpus: trials trained at once.
        faults: a YAML, see `nas.simulate.faults`.
        rungs: how many; as many as the table has columns for (`acc_at_10`), or 3 where a tau is given.
        rung_tau: Kendall's tau of rungs that the table has no column for, 0.7.
        stop_when_flat: end when another GPU-hour promises a smaller share of the hypervolume.
        confirm: how often the front's members are trained once more, which takes time and tells nothing new here.

    Raises:
        NasError: something cannot be used, nothing meets the limit, or trial after trial fails.
    """
    if rung_tau is not None and not -1 <= rung_tau <= 1:
        raise InputError(f"rung-tau is {rung_tau:g}", "give a Kendall's tau from -1 to 1, for example 0.7")
    found = read_table(Path(table), accuracy, latency, features)
    harm = Faults() if faults is None else read_faults(Path(faults))
    if rungs is None:
        rungs = len(found.lower) + 1 if found.lower or rung_tau is None else DRAWN_RUNGS
    config = RunConfig(
        data=str(table),
        space=found.path.stem,
        budget=budget,
        target=latency,
        max_latency_ms=None if max_latency is None else parse_latency(max_latency),
        epochs=max(rungs, RunConfig.epochs),
        rungs=rungs,
        confirm=confirm,
        stop_when_flat=stop_when_flat,
        sampler=sampler,
        workers=gpus,
        seed=seed,
    )
    space, folder = TableSpace(found), folders.new_folder(name)
    with folders.removed_on_failure(folder), progress or Quiet() as view:
        store, tau = Store(None, create=True), TAU if rung_tau is None else rung_tau
        play = Play(space, config, store, tau=tau, faults=harm, folder=folder, watch=_now_and_then(view))
        began = time.perf_counter()
        ended = play.run()
        took = time.perf_counter() - began
        executor, ledger = play.executor, play.ledger
        records = records_of([e for e in store.entries if e.state != "rejected"], space.describe, config.limits)
        share = Share(found, config.max_latency_ms)
        ends = sorted((e.results[-1][ENDED], e.number, space.row(e.architecture)) for e in store.entries if e.state == "done")
        reached, evaluations = share.reached([row for _, _, row in ends], GOALS)
        summary = RunSummary(
            name=folder.name,
            skeleton=found.path.name,
            target=latency,
            imgsz=config.imgsz,
            limits=config.limits,
            data=found.path.name,
            classes=(),
            fidelity="",
            split="",
            seed=seed,
            command=command or "nas.simulate(…)",
            counts=counts_of(store),
            device_seconds=ledger.device_seconds(),
            wall_seconds=ledger.wall_seconds,
            stopped_because=ended,
            metric=accuracy,
            rungs=rung_words(store.entries),
            simulated=f"Simulated: {accuracy} as the table has it, nothing was trained.",
            **certainty(store, config.limits, seed),
        )
        lines = (
            f"{len(found):,} rows told apart by {', '.join(found.levels)}; {rungs} rung{'s' * (rungs > 1)}",
            f"{summary.tally} on {gpus:,} simulated GPU{'s' * (gpus > 1)} in {duration(ledger.wall_seconds)} of their time, "
            f"{executor.busy:.1%} busy; {duration(took)} of yours; stopped: {ended}",
            f"{reached:.1%} of the exhaustive front's hypervolume; " + _words(evaluations),
        )
        front = front_of(records)
        write_csv(records, folder / "trials.csv", summary.noise)
        write_csv(front, folder / "front.csv", summary.noise)
        write_json(front, folder / "front.json", summary)
        figures = {"busy": executor.busy, "share": reached, "evaluations": evaluations, "seconds": took}
        write_whole(folder / "simulation.json", json.dumps(figures, indent=1) + "\n")
        if front:
            write_png(records, summary, folder / "pareto.png")
    return Simulated(folder, records, summary, executor.busy, reached, evaluations, ended, lines)


def _now_and_then(view: Progress) -> Callable[[Callable[[], Status]], None]:
    """Shows a search that decides thousands of times a second."""
    shown = -np.inf

    def watch(status: Callable[[], Status]) -> None:
        nonlocal shown
        if (now := time.monotonic()) - shown >= SHOWN_SECONDS:
            shown = now
            view(status())

    return watch


def _words(evaluations: Sequence[int | None]) -> str:
    counts = ", ".join(
        f"{goal:.0%} {f'after {n:,}' if n else 'not reached'}" for goal, n in zip(GOALS, evaluations, strict=True)
    )
    return f"{counts} (evaluations)"
