"""A finished run on another target: what it trained is priced there, and its front drawn anew, without training.

A table gives every latency at once; on a target of this machine what was trained is measured, unless it is known.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nas.advice import Suggestions, worth_training
from nas.cache import cache_root
from nas.errors import InputError, StoppedError
from nas.execution.executor import Attempt, Executor, Progress, Result
from nas.execution.local import LocalExecutor
from nas.execution.work import PRICE, PriceJob
from nas.hardware import worker_environment
from nas.latency.cache import LatencyCache, model_key
from nas.latency.table import MIN_ROWS, Measured, Table, TablePrices, read_table
from nas.latency.target import TABLE, Target
from nas.limits import Limits
from nas.outcome import records_of, write_report
from nas.review.record import Record, RunSummary
from nas.review.suggested import write_suggested
from nas.run import Run, writing
from nas.runs import folder as folders
from nas.runs.store import Entry
from nas.runs.trials import TrialFolders
from nas.space.architecture import Architecture, model_yaml
from nas.space.skeleton import Skeleton

TARGETS = "targets"
POLL_SECONDS = 0.5

Price = Mapping[str, Any]


@dataclass(frozen=True)
class Repriced:
    """A run as it stands on another target.

    Args:
        folder: where its files are.
        records: of what was trained.
        suggestions: what would now be worth training; None where nothing is known of untrained architectures.
        notes: what to know of its latencies, in words.
    """

    folder: Path
    skeleton: Skeleton
    records: list[Record]
    summary: RunSummary
    suggestions: Suggestions | None
    notes: tuple[str, ...]


def reprice(run: Run, target: Target, limits: Limits, say: Callable[[str], None] = lambda _: None) -> Repriced:
    """Price what a run trained on `target` and write `RUN/targets/<target>/`; the run's own files stay as they are.

    Raises:
        InputError: nothing was trained, the table cannot be used, or the folder not written.
        UnreachableError: this machine cannot measure on the target.
        StoppedError: nothing could be measured.
    """
    trained = [entry for entry in run.entries if entry.state == "done"]
    if not trained:
        raise InputError(f"{run.folder}: nothing was trained, so there is nothing to price", "give it more budget")
    folder = run.folder / TARGETS / _slug(target)
    found: dict[int, Price]
    if target.kind == TABLE:
        known = {entry.architecture.id: entry.architecture for entry in run.entries}
        table = read_table(Path(target.file), run.space.skeleton, known)
        prices: TablePrices | None = (by_table := TablePrices(table, run.space))
        latencies = by_table.prices([entry.architecture for entry in trained])
        found = {entry.number: latency for entry, latency in zip(trained, latencies, strict=True)}
        notes = [*table.notes, str(prices), *_differences(run, table)]
    else:
        target.require()
        found, notes = _measured(run, trained, target, folder, say)
        table = _table(trained, found, target)
        prices = TablePrices(table, run.space) if len(table.measured) >= MIN_ROWS else None
        notes.append(str(prices) if prices else f"{len(found)} measured: too few to predict the latency of others")
    entries = [replace(e, price={**(e.price or {}), **found[e.number]}) for e in trained if e.number in found]
    height, width = table.imgsz or (run.config.imgsz, run.config.imgsz)
    counts, side = {"done": len(entries)}, max(height, width)
    summary = replace(run.summary, target=str(target), imgsz=side, limits=limits, counts=counts, lane="")
    records = records_of(entries, run.space.describe, limits)
    others = [entry for entry in run.entries if entry.state != "done"]
    suggestions = None
    if prices is not None:
        suggestions = worth_training(run.space, [*entries, *others], limits, prices.prices, run.config.imgsz, run.config.seed)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_report(folder, records, summary, run.space, entries, TrialFolders(run.folder))
        write_suggested(suggestions.found if suggestions else (), run.space.skeleton, folder / "suggested.csv")
    return Repriced(folder, run.space.skeleton, records, summary, suggestions, tuple(notes))


def _slug(target: Target) -> str:
    """A folder's name for a target."""
    name = f"table-{Path(target.file).stem}" if target.kind == TABLE else str(target)
    return re.sub(r"[^\w.=-]+", "-", name)


def _differences(run: Run, table: Table) -> list[str]:
    """In what the table's models differ from the run's, in words."""
    notes = []
    side = run.config.imgsz
    if table.imgsz is not None and table.imgsz != (side, side):
        notes.append(f"latencies are of {'x'.join(map(str, dict.fromkeys(table.imgsz)))} px, mAP of {side} px")
    classes = len(run.summary.classes)
    if table.nc not in {None, classes}:
        notes.append(f"latencies are of models with {table.nc} classes, the run's have {classes}")
    return notes


def _table(trained: Sequence[Entry], prices: Mapping[int, Price], target: Target) -> Table:
    """What was measured here, as a table."""
    measured = []
    for entry in trained:
        if (price := prices.get(entry.number)) is not None:
            ms = float(price["ms"])
            low, high = (float(price.get(end, ms)) for end in ("low", "high"))
            measured.append(Measured(entry.architecture, ms, low, high, noisy=bool(price.get("noisy")), source="measured"))
    return Table(str(target), target.imgsz, target.batch, None, tuple(measured), ())


def _measured(
    run: Run, trained: Sequence[Entry], target: Target, folder: Path, say: Callable[[str], None]
) -> tuple[dict[int, Price], list[str]]:
    """The price of each trial that could be measured, by number, and what to know of the others."""
    checkpoint = folders.read_manifest(run.folder).get("weights_digest")
    cache = LatencyCache(cache_root() / "latency", target, checkpoint)
    blocks = [str(path.absolute()) for path in folders.block_files(run.folder)]
    lane = worker_environment(1, target.device, threads=target.threads)[0]
    found: dict[int, Price] = {}
    notes: list[str] = []
    with contextlib.closing(LocalExecutor([], lane, folder / "workers")) as executor:
        for count, entry in enumerate(trained, 1):
            model = model_yaml(run.space.skeleton, entry.architecture, len(run.summary.classes))
            key = model_key(model, run.config.imgsz)
            price = cache.get(key)
            if price is None:
                job = PriceJob(
                    model,
                    str(target),
                    run.config.imgsz,
                    weights=run.config.weights,
                    allow_noisy=run.config.allow_noisy,
                    blocks=blocks,
                )
                told = _price(executor, job, entry.architecture)
                if isinstance(told, str):
                    notes.append(f"trial {entry.number} could not be measured: {told}")
                    say(f"{count}/{len(trained)} {notes[-1]}")
                    continue
                cache.put(key, price := told)
                say(f"{count}/{len(trained)} trial {entry.number}: {price['ms']:.3g} ms")
            found[entry.number] = price
    if not found:
        raise StoppedError(f"nothing could be measured on {target}: {notes[0]}", f"see {folder / 'workers' / 'lane.log'}")
    return found, notes


def _price(executor: Executor, job: PriceJob, architecture: Architecture) -> dict[str, Any] | str:
    """A measurement, waited for; why there is none, in words."""
    executor.start(Attempt(architecture.id, PRICE, asdict(job), quiet=True))
    while not (events := [event for event in executor.poll(POLL_SECONDS) if not isinstance(event, Progress)]):
        pass
    event = events[0]
    if not isinstance(event, Result):
        return event.reason
    return {name: value for name, value in event.data.items() if name != "measured_on"}  # on this machine
