"""Where the study of a run lies: `study.db` in its folder, or a PostgreSQL database that its run.yaml names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy

from nas.config import RunConfig
from nas.errors import InputError
from nas.runs.database import Database, add_study, open_storage
from nas.runs.folder import read_config
from nas.runs.postgresql import PostgresStudy

RUNG = "rung0"


class Place(Protocol):
    """The study of one run, there or not yet. `str` of it names it for readers; it raises no error of its own.

    Raises, in every method, NasError where that can say what is wrong, else what SQLAlchemy, the driver and Optuna raise.
    """

    @property
    def missing(self) -> InputError:
        """To be raised where the study is not there."""

    @property
    def cure(self) -> str:
        """What to do about a study that cannot be used."""

    def exists(self) -> bool: ...

    def create(self, facts: Mapping[str, Any]) -> None:
        """Make the study, empty and with these facts, whole or not at all."""

    def open(self, *, exclusive: bool) -> Database:
        """The study that is there. While an exclusive one is open, no other can be opened; readers can."""

    def remove(self) -> None:
        """Remove the study with all its trials."""

    def failure(self, error: Exception) -> Exception:
        """What to raise for an error that came up while the study was in use."""


def place_of(folder: Path, config: RunConfig | None = None) -> Place:
    """Where the study of a run folder lies, by its configuration; by its run.yaml where None. Raises InputError."""
    if config is None and (folder / "run.yaml").is_file():
        config, _ = read_config(folder)
    if config is None or config.storage is None:
        return SqliteFile(folder / "study.db")
    if config.study is None:
        raise InputError(f"{folder / 'run.yaml'}: no 'study'", "restore the file, or start a new run")
    return PostgresStudy(config.storage, config.study, folder)


@dataclass(frozen=True)
class SqliteFile:
    """A study in a file of its own. That no two searches write it, the lock of the run folder sees to."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def missing(self) -> InputError:
        what = f"{self.path.parent}: holds no {self.path.name}"
        return InputError(what, "give the folder of a run, for example results/search")

    @property
    def cure(self) -> str:
        return "restore the file, or start a new run"

    def exists(self) -> bool:
        return self.path.is_file()

    def create(self, facts: Mapping[str, Any]) -> None:
        if self.path.exists():
            raise FileExistsError("it is there already")
        for left in self.path.parent.glob(f".{self.path.name}.*.tmp*"):  # by one that was killed at this
            left.unlink(missing_ok=True)
        beside = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        try:
            storage = open_storage(f"sqlite:///{beside}", make_tables=True)
            add_study(storage, RUNG, facts)
            storage.engine.dispose()
            beside.replace(self.path)
        finally:
            beside.unlink(missing_ok=True)

    def open(self, *, exclusive: bool) -> Database:  # noqa: ARG002
        storage = open_storage(f"sqlite:///{self.path}", make_tables=False, connect_args={"timeout": 60})
        sqlalchemy.event.listen(storage.engine, "connect", _keep_journal)
        return Database(storage, RUNG)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)

    def failure(self, error: Exception) -> Exception:
        return OSError(f"the store: {str(error).splitlines()[0]}")


def _keep_journal(connection: Any, _record: Any) -> None:
    """Begin SQLite's journal anew for every transaction, and do not make a file and remove it: a third less time.

    A write-ahead log would take less still, but needs memory that is shared: a reader on another host would be lost.
    """
    connection.execute("PRAGMA journal_mode = PERSIST")
