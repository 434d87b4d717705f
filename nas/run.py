"""`Run`: a run folder opened, finished or not: its trials, its front, its exports."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from nas.blocks.register import register
from nas.config import Budget, RunConfig
from nas.errors import InputError
from nas.export import write_winner
from nas.imitation.library import Library
from nas.outcome import architecture_of, records_of, summary_of, write_report
from nas.review.record import Record, RunSummary
from nas.review.table import front_of, picks_of
from nas.runs import folder as folders
from nas.runs.ledger import Ledger
from nas.runs.store import Entry, Store
from nas.runs.trials import TrialFolders
from nas.sensitivity import Sensitivity, sensitivity_of
from nas.space.reader import read_space
from nas.space.search_space import SearchSpace


@dataclass(frozen=True)
class Run:
    """What lies in a run folder, read once, when it is first asked for."""

    folder: Path

    @cached_property
    def config(self) -> RunConfig:
        return folders.read_config(self.folder)[0]

    @cached_property
    def space(self) -> SearchSpace:
        """Needs no code of the user's: what it says of their blocks, the run folder describes."""
        register(folders.read_blocks(self.folder))
        return read_space(self.folder / "space.yaml")

    @cached_property
    def store(self) -> Store:
        return Store(self.folder, create=False)

    @property
    def entries(self) -> list[Entry]:
        return self.store.entries

    @cached_property
    def records(self) -> list[Record]:
        """One per trial."""
        return records_of(self.entries, self.space.describe, self.config.limits)

    @cached_property
    def summary(self) -> RunSummary:
        return summary_of(
            self.folder,
            self.config,
            self.space.skeleton,
            self.store,
            Ledger(Budget.parse(self.config.budget), self.store),
        )

    @property
    def stopped_because(self) -> str:
        return self.summary.stopped_because

    @property
    def front(self) -> list[Record]:
        """The non-dominated feasible trials, fastest first."""
        return front_of(self.records)

    def pick(self, which: str) -> Record:
        """A finished trial: `knee`, `fastest`, `best`, an architecture id (or its start) or a trial number.

        Raises:
            InputError: no such trial, or no front yet.
        """
        named = picks_of(self.front)
        if which in {"knee", "fastest", "best"}:
            if which not in named:
                raise InputError(f"{self.folder} has no front", "no feasible trial has finished; give it more budget")
            return named[which]
        done = [r for r in self.records if r.state == "done"]
        found = [r for r in done if which == str(r.trial) or (len(which) >= 4 and r.id.startswith(which))]
        if len(found) != 1:
            problem = "is not unique" if found else "is no finished trial"
            raise InputError(f"'{which}' {problem} of {self.folder}", "give knee, fastest, best, an id or a trial number")
        return found[0]

    def export(self, which: str) -> list[Path]:
        """Write `export/<id>/<id>.yaml` of a pick and, where its weights are kept, `<id>.pt`; returns what was written.

        Raises:
            InputError: no such trial, or the folder cannot be written.
        """
        record = self.pick(which)
        path = self.folder / "export" / record.id / f"{record.id}.yaml"
        architecture = architecture_of(self.entries, record)
        with writing(self.folder):
            path.parent.mkdir(parents=True, exist_ok=True)
            nc = len(self.summary.classes)
            write_winner(path, self.space.skeleton, architecture, nc, record=record, summary=self.summary)
            weights = path.with_suffix(".pt")
            return [path, weights] if TrialFolders(self.folder).export(record.trial, weights) else [path]

    @cached_property
    def sensitivity(self) -> list[Sensitivity]:
        """Of every option of every slot that has imitated the run's teacher; empty where none has."""
        library = self.store.fact("library")
        return [] if library is None else sensitivity_of(self.space, Library(Path(library)), self.entries)

    def report(self) -> None:
        """Write all result files anew from the store. Raises InputError where the folder cannot be written."""
        with writing(self.folder):
            trials = TrialFolders(self.folder)
            write_report(self.folder, self.records, self.summary, self.space, self.entries, trials, self.sensitivity)


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns a failure to write into an InputError that names the folder."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror or error}", "make room, or make it writable") from error
