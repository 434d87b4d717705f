"""The database of a run as SQLite sees it: damaged, busy, or with a write that was cut off."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from nas.doctor.finding import Finding, Repair

BUSY_SECONDS = 5.0
RESCUE = "restore the file from a copy; what can still be read of it: sqlite3 {file} .recover | sqlite3 rescued.db"


def is_cut_off(path: Path) -> bool:
    """Whether a write to this database was cut off and is not rolled back yet (or is under way).

    The journal stays between writes, with zeros where a header was: SQLite looks at its first byte too.
    """
    journal = path.with_name(f"{path.name}-journal")
    if not journal.is_file():
        return False
    with journal.open("rb") as file:
        return file.read(1) not in {b"", b"\0"}


def cut_off(path: Path) -> Finding:
    """Says so. Nobody may hold the run."""
    seen = f"{path.name}-journal: a write was cut off; whatever opens the run next rolls it back, and nothing else is lost"
    return Finding("store", "note", seen, repair=Repair("rolled back, by opening the file", lambda: _roll_back(path)))


def integrity(path: Path) -> Iterator[Finding]:
    """What SQLite's own check of the file says. Changes nothing."""
    try:
        with contextlib.closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_SECONDS)
        ) as database:
            found = [str(row[0]) for row in database.execute("PRAGMA integrity_check(3)")]
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", None) in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
            yield Finding("store", "note", f"{path} is being written: not checked", "ask again later")
            return
        found = [str(error)]
    if found == ["ok"]:
        yield Finding("store", "ok", f"{path}: SQLite's integrity check finds nothing")
    else:
        words = " ".join(" ".join(found).split())[:200]
        yield Finding("store", "fault", f"{path} is damaged: {words}", RESCUE.format(file=path))


def _roll_back(path: Path) -> None:
    """Raises sqlite3.Error."""
    with contextlib.closing(sqlite3.connect(path, timeout=BUSY_SECONDS)) as database:
        database.execute("SELECT count(*) FROM sqlite_master").fetchone()
