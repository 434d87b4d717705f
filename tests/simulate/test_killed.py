"""kill -9 of a search at every write to its store, and the search that goes on from there."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from sqlalchemy.engine import Engine

from nas.config import RunConfig
from nas.execution.simulate import Faults
from nas.runs.store import Store
from nas.search.front import front_indices
from nas.simulate.play import Play
from nas.simulate.space import TableSpace
from tests.simulate.tables import small

TRIALS = 6
REPORTING = Faults(hang=1e-12)  # nobody hangs, and so everybody gives signs of life, which are charged
SEARCHES = {
    "one rung, three workers": {"sampler": "random", "workers": 3, "confirm": 0},
    "rungs, confirmed": {"sampler": "random", "workers": 1, "rungs": 2, "confirm": 1, "epochs": 9},
    "front, rungs, confirmed": {"sampler": "front", "workers": 1, "rungs": 2, "confirm": 1, "epochs": 9},
}
CASES = [pytest.param(SEARCHES[name], id=name) for name in SEARCHES]


@dataclass(frozen=True)
class End:
    """What came of a search."""

    finished: frozenset[tuple[int, str, tuple[float, ...], tuple[float, ...]]]
    front: frozenset[str]
    seconds: float
    interrupted: float
    twice: int


def search(space: TableSpace, folder: Path, options: dict) -> None:
    """A session that begins, or goes on, in a folder."""
    config = RunConfig("t", "t", f"{TRIALS}trials", "lat", max_latency_ms=4.0, seed=3, **options)
    store = Store(folder, create=not (folder / "study.db").exists())
    Play(space, config, store, tau=0.7, faults=REPORTING, folder=folder).run()


def end_of(folder: Path) -> End:
    entries = Store(folder, create=False).entries
    done = [e for e in entries if e.state == "done"]
    front = [done[index] for index in front_indices([e.map for e in done], [e.price["ms"] for e in done])]
    assert {e.state for e in entries} <= {"done", "paused", "rejected"}
    attempts = [attempt for e in entries for attempt in e.attempts]
    assert {attempt["outcome"] for attempt in attempts} <= {"done", "interrupted"}
    return End(
        frozenset((e.number, e.architecture.id, tuple(r["map"] for r in e.results), e.maps) for e in entries if e.results),
        frozenset(e.architecture.id for e in front),
        sum(attempt["seconds"] for attempt in attempts),
        sum(attempt["seconds"] for attempt in attempts if attempt["outcome"] == "interrupted"),
        len([e for e in entries if e.results]) - len({e.architecture.id for e in entries if e.results}),
    )


def killed_at(write: int, space: TableSpace, folder: Path, options: dict) -> bool:
    """Search in a child that kills itself in the middle of its `write`-th transaction; whether it came to that."""
    child = os.fork()
    if not child:
        count = 0

        def commit(_: object) -> None:
            nonlocal count
            count += 1
            if count == write:
                os.kill(os.getpid(), signal.SIGKILL)

        sqlalchemy.event.listen(Engine, "commit", commit)
        try:
            search(space, folder, options)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """In memory where possible. Optuna's storage reads all its migrations at every opening: here, once."""
    versions, scripts = optuna.storages._rdb.storage._VersionManager, []
    read = versions._create_alembic_script

    def once(manager: object) -> object:
        if not scripts:
            scripts.append(read(manager))
        return scripts[0]

    monkeypatch.setattr(versions, "_create_alembic_script", once)
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        yield Path(name)


@pytest.mark.slow  # half a minute and more
@pytest.mark.parametrize("options", CASES)
def test_every_write(folder: Path, options: dict) -> None:
    """The same finished trials and front as undisturbed, none twice, and no second more than what was lost."""
    tmp_path, space = folder, small(folder)
    (tmp_path / "undisturbed").mkdir()
    search(space, tmp_path / "undisturbed", options)
    undisturbed = end_of(tmp_path / "undisturbed")
    assert len(undisturbed.finished) == TRIALS and undisturbed.interrupted == 0
    write, lost = 1, 0.0
    while True:
        folder = tmp_path / str(write)
        folder.mkdir()
        if not killed_at(write, space, folder, options):
            break
        search(space, folder, options)
        found = end_of(folder)
        assert (found.finished, found.front) == (undisturbed.finished, undisturbed.front), f"killed at write {write}"
        assert found.twice == 0
        assert found.seconds == pytest.approx(undisturbed.seconds + found.interrupted)
        assert not list(folder.glob(".*.tmp*"))
        lost += found.interrupted
        write += 1
    assert write > 40 and lost > 0
