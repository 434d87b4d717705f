"""The other device of a search: the table of its latencies, and what is left to measure on it."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from nas.advice import to_measure
from nas.config import RunConfig
from nas.errors import InputError
from nas.execution.executor import Attempt, Executor, Progress, Result
from nas.execution.work import WRITE_PROBES, ProbesJob
from nas.latency.probes import README, Probes, held
from nas.latency.table import Table, TablePrices, read_table
from nas.latency.target import TABLE, Target
from nas.runs import folder as folders
from nas.runs.store import Entry
from nas.space.search_space import SearchSpace

PROBES = "probes"
POLL_SECONDS = 0.5


def image_size(table: Table, imgsz: int | None, default: int) -> int:
    """The image size of a search by a table: the table's own, of one that is not square its longer side.

    Args:
        imgsz: what was asked for, if anything.
        default: of a table that does not say.

    Raises:
        InputError: another one was asked for.
    """
    if table.imgsz is None:
        return default if imgsz is None else imgsz
    if imgsz not in {None, max(table.imgsz)}:
        size = "x".join(map(str, dict.fromkeys(table.imgsz)))
        raise InputError(f"--imgsz {imgsz}: the table is of {size} px", f"use --imgsz {max(table.imgsz)}, or leave it out")
    return max(table.imgsz)


def table_notes(table: Table, nc: int, imgsz: int) -> list[str]:
    """What to know of a table in a search with so many classes at this image size, in words."""
    notes = list(table.notes)
    if table.nc not in {None, nc}:
        notes.append(f"the table's models have {table.nc} classes, the search's {nc}: their heads differ a little")
    if table.imgsz is None:
        notes.append(f"the table does not say its image size: taken for {imgsz} px")
    return notes


def table_prices(target: Target, space: SearchSpace, entries: Sequence[Entry]) -> TablePrices | None:
    """The prices of a table; None for a target that is measured here. Raises InputError."""
    if target.kind != TABLE:
        return None
    known = {entry.architecture.id: entry.architecture for entry in entries}
    return TablePrices(read_table(Path(target.file), space.skeleton, known), space)


def ask_for_more(
    run: Path, config: RunConfig, prices: TablePrices, space: SearchSpace, nc: int, entries: Sequence[Entry], executor: Executor
) -> str:
    """Write what is left to measure on the device as a probe folder of the run, `probes`, `probes2`, …; what to do with it, in
    words.

    Raises:
        InputError: it could not be written.
    """
    measured = {row.architecture for row in prices.table.measured}
    architectures = to_measure(space, entries, config.limits, measured)
    if not architectures:
        return "nothing is left to measure on the device"
    file = Path(Target.parse(config.target).file)
    size = prices.table.imgsz or (config.imgsz, config.imgsz)
    nc = prices.table.nc or nc  # what is added to a table must be like what is in it
    then = f"{folders.resume_command(run)}\n    {shlex.join(['nas', 'front', str(run), '--target', f'table:{file}'])}"
    probes = Probes(space.skeleton, architectures, size, nc, prices.table.batch, file.name, then)
    folder = _folder(run, probes)
    job = ProbesJob(
        folder=str(folder.absolute()),
        space=str((run / "space.yaml").absolute()),
        architectures=[architecture.to_dict() for architecture in architectures],
        imgsz=list(size),
        nc=nc,
        batch=prices.table.batch,
        table=file.name,
        then=then,
        blocks=[str(path.absolute()) for path in folders.block_files(run)],
    )
    executor.start(Attempt("probes", WRITE_PROBES, asdict(job), quiet=True))
    while not (events := [e for e in executor.poll(POLL_SECONDS) if e.key == "probes" and not isinstance(e, Progress)]):
        pass
    if not isinstance(event := events[0], Result):
        raise InputError(f"{folder}: could not be written: {event.reason}", f"see {run / 'workers' / 'lane.log'}")
    what = f"{len(architectures)} architectures are too near the limit to be predicted, or on the front by a prediction"
    return f"{what}; measure them on the device: {folder / README}"


def _folder(run: Path, probes: Probes) -> Path:
    """The first folder of a run that is free or holds these very probes."""
    names = (PROBES if number == 1 else f"{PROBES}{number}" for number in itertools.count(1))
    return next(folder for folder in (run / name for name in names) if held(folder) in {None, probes.text()})
