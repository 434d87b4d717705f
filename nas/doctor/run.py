"""A run folder: who holds it, its files, its store, its trials. What is mended is mended under the run's own lock."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from nas.doctor.data import data_of
from nas.doctor.data import dataset as dataset_of
from nas.doctor.finding import Finding, Repair, guarded, mended
from nas.doctor.leftovers import remove, size, temporary_files
from nas.doctor.store import cut_off, integrity, is_cut_off
from nas.errors import InputError, NasError
from nas.latency.site import of_machine, site
from nas.origin import other_machine, other_versions
from nas.outcome import winner_of
from nas.run import Run
from nas.runs import folder as folders
from nas.runs.trials import TrialFolders

RESULTS = ("trials.csv", "front.csv", "front.json", "pareto.png", "pareto.html")
Check = Callable[[Run], Iterator[Finding]]


def examine_run(folder: Path, *, data: Path | None = None, with_data: bool, repair: bool) -> Iterator[Finding]:
    """Everything about a run; what can be mended is, where `repair` says so and nobody holds the run.

    Args:
        folder: of the run.
        data: a dataset YAML to look at in place of the run's own.
        with_data: whether to look at data at all.
        repair: whether to mend.
    """
    holder = folders.holder_of(folder)
    free = holder is None or holder.state == "gone"
    with contextlib.ExitStack() as stack:
        if repair and free:
            try:
                stack.enter_context(folders.locked(folder))
            except InputError as error:
                yield Finding("run", "fault", f"nothing was repaired: {error.message}", error.hint)
                repair = False
        look = None if not with_data else data_of if data is None else partial(_other_data, data)
        for finding in _findings(Run(folder), holder, look):
            if not free and finding.repair is not None:
                yield replace(finding, repair=None, cure="not touched while somebody may hold the run")
            else:
                yield mended(finding) if repair else finding


def _findings(run: Run, holder: folders.Holder | None, look: Check | None) -> Iterator[Finding]:
    """All checks, of which each needs what those before it found good."""
    free = holder is None or holder.state == "gone"
    path = run.folder / "study.db"
    yield from guarded("run", lambda: _held(run, holder))
    sound = yield from _judged("run", partial(_files, run))
    if sound:
        yield from guarded("run", lambda: _machine(run))
        if look is not None:
            yield from guarded("data", partial(look, run))
    if free and is_cut_off(path):
        yield cut_off(path)
    if not (free and is_cut_off(path)):  # else opening the store would mend it, unasked
        sound &= yield from _judged("store", partial(_store, run))
        checks = (_weights, _results, _checkpoints) if free else (_weights,)
        for check in (partial(_trials, free=free), *checks) if sound else ():
            yield from guarded("trials", partial(check, run))
    yield from guarded("run", lambda: temporary_files("run", run.folder))


def _judged(name: str, check: Callable[[], Iterator[Finding]]) -> Generator[Finding, None, bool]:
    """What a check finds, and whether none of it is a fault."""
    good = True
    for finding in guarded(name, check):
        good &= finding.verdict != "fault"
        yield finding
    return good


def _other_data(yaml: Path, run: Run) -> Iterator[Finding]:
    return dataset_of(yaml, run)


def _held(run: Run, holder: folders.Holder | None) -> Iterator[Finding]:
    if holder is None:
        yield Finding("run", "ok", f"{run.folder}: held by nobody")
    elif holder.state == "held":
        yield Finding("run", "ok", f"{run.folder}: held by {holder.words}")
    elif holder.state == "gone":
        # Taking the lock replaces the mark, and giving it back removes it.
        mend = Repair("holder.json removed", lambda: None)
        yield Finding("run", "note", f"{run.folder}: {holder.words} held it, and was killed", repair=mend)
    else:
        cure = f"if that process has ended, remove {run.folder / 'holder.json'}"
        yield Finding("run", "note", f"{run.folder}: {holder.words} may hold it: that cannot be told from here", cure)


def _files(run: Run) -> Iterator[Finding]:
    """What a search writes once, and reads whenever it goes on."""
    reads: tuple[Callable[[], Any], ...] = (
        lambda: run.config,
        lambda: folders.read_manifest(run.folder),
        lambda: run.space,
        lambda: folders.block_files(run.folder),
    )
    faults = [finding for read in reads for finding in guarded("run", partial(_nothing_from, read))]
    yield from faults or [Finding("run", "ok", "run.yaml, manifest.json and space.yaml can be read")]


def _nothing_from(read: Callable[[], Any]) -> Iterator[Finding]:
    """No finding, unless reading raises."""
    read()
    yield from ()


def _machine(run: Run) -> Iterator[Finding]:
    """What is other than when the run began: versions, and what latency is measured on."""
    manifest = folders.read_manifest(run.folder)
    if other := other_versions(manifest):
        yield Finding(
            "run", "note", f"began with {'; '.join(other)}", "results may differ a little from what it would have found"
        )
    if run.config.lane is not None:
        began = " with ".join(of_machine(manifest.get("machine", {})).values())
        what = f"its latencies are of {run.config.lane} ({began}), a host of the Ray cluster at {run.config.address}"
        yield Finding("run", "ok", f"{what}: it goes on where that, or one like it, offers `latency`")
        return
    try:
        here = site(run.config.target)
    except NasError as error:
        yield Finding("run", "note", f"cannot be gone on with here: {error.message}", error.hint)
        return
    if other := other_machine(manifest, here):
        cure = "go on with it where it began: latencies of two machines cannot be compared"
        yield Finding("run", "note", f"its latencies are of {'; '.join(other)}", cure)


def _store(run: Run) -> Iterator[Finding]:
    """Its file, if it has one, and what stands in it. Raises InputError where it cannot be opened."""
    path = run.folder / "study.db"
    if path.is_file():
        for finding in integrity(path):
            yield finding
            if finding.verdict == "fault":
                return
    counted = ", ".join(f"{count} {state}" for state, count in run.store.counts.items() if count) or "none yet"
    stopped = run.store.fact("stopped_because") or "not ended"
    yield Finding("store", "ok", f"version {run.store.fact('version')}; trials: {counted}; stopped: {stopped}")


def _trials(run: Run, *, free: bool) -> Iterator[Finding]:
    """Whether the search ended, or was ended."""
    running = sum(bool(entry.attempts) and entry.attempts[-1]["outcome"] == "running" for entry in run.entries)
    cure = f"go on with: {folders.resume_command(run.folder)}"
    if free and running:
        yield Finding("trials", "note", f"{running} still marked as running, though nobody holds the run", cure)
    elif free and run.store.fact("stopped_because") is None:
        yield Finding("trials", "note", "the search has not ended, though nobody holds the run", cure)


def _weights(run: Run) -> Iterator[Finding]:
    """The weights of the front's members."""
    trials = TrialFolders(run.folder)
    if lost := [record.trial for record in run.front if not trials.weights(record.trial).is_file()]:
        seen = f"the weights of {len(lost)} of {len(run.front)} members of the front are lost: {', '.join(map(str, lost[:9]))}"
        yield Finding("trials", "note", seen, "export and train begin with drawn weights for them")


def _results(run: Run) -> Iterator[Finding]:
    """The files that a search leaves when it ends: they can be written anew at any time."""
    if not run.store.counts["done"]:
        return
    winner = winner_of(run.records, run.config.max_latency_ms)
    expected = (*RESULTS, *(["winner.yaml"] if winner is not None else []))
    if lost := [name for name in expected if not (run.folder / name).is_file()]:
        mend = Repair("all result files written anew from the store", run.report)
        yield Finding("results", "note", f"{', '.join(lost)} missing", repair=mend)


def _checkpoints(run: Run) -> Iterator[Finding]:
    """States of trainings that will not go on."""
    trials = TrialFolders(run.folder)
    ended = (trials.state(entry.number) for entry in run.entries if entry.state in {"done", "failed"})
    if found := [path for path in ended if path.is_file()]:
        what = f"states of trainings that have ended: {len(found)} ({size(found)})"
        yield Finding("trials", "note", what, repair=Repair("these files removed", lambda: remove(found)))
