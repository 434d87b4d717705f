"""The store: what Optuna sees of it, and that `kill -9` at any commit loses and doubles nothing."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import sys
import time
import warnings
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from urllib.parse import quote

import optuna
import pytest
import sqlalchemy
from optuna.trial import TrialState
from sqlalchemy.pool import NullPool

from nas.errors import InputError
from nas.review.record import STATES
from nas.runs.database import DIRECTIONS
from nas.runs.folder import read_config
from nas.runs.store import VERSION, Store
from nas.search.sampler import make_sampler
from nas.space.architecture import Architecture, Placement
from nas.storage import password_of
from tests.postgresql import reader

PRICE = {"ms": 2.0, "spread": 0.01}
RESULT = {"map": 0.25, "map50": 0.5}


def test_what_optuna_sees_of_a_trial(make_any_store, space):
    folder, store = make_any_store()
    assert store.propose(space, draws(store), space.baseline).architecture.is_skeleton
    store.queue(0, PRICE, {"latency": 0.5, "params": -1.0})
    store.start(0)
    store.charge(0, 3.25)
    store.charge(0, 4.0, "lost")
    store.start(0)
    store.finish(0, 10.0, RESULT)
    drawn = store.propose(space, draws(store))
    store.reject(1, "over-latency", {"ms": 9.0})
    store.propose(space, draws(store))
    store.queue(2, PRICE, {"latency": -1.0, "params": -1.0})
    store.start(2)
    store.fail(2, 1.0, "diverged")
    store.propose(space, draws(store))
    store.queue(3, PRICE, {"latency": -1.0, "params": -1.0})
    assert len(read(folder).trials) == 3
    store.add_seconds(wall=1.0)  # what is queued is written with whatever comes next

    done, rejected, failed, _ = trials = read(folder).trials
    assert read(folder).directions == [optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE]
    assert read(folder).metric_names == ["mAP50-95", "latency ms"]
    assert [t.state for t in trials] == [TrialState.COMPLETE, TrialState.FAIL, TrialState.FAIL, TrialState.RUNNING]
    assert done.values == [0.25, 2.0]
    assert done.constraints == {"latency": 0.5, "params": -1.0}
    assert failed.constraints == {"latency": -1.0, "params": -1.0}
    assert done.user_attrs["results"] == [RESULT]
    assert done.user_attrs["attempts"] == [{"seconds": 4.0, "outcome": "lost"}, {"seconds": 10.0, "outcome": "done"}]
    assert rejected.user_attrs["end"] == {"state": "rejected", "reason": "over-latency"}
    assert rejected.user_attrs["price"] == {"ms": 9.0}
    assert failed.user_attrs["end"] == {"state": "failed", "reason": "diverged"}
    for trial, entry in zip(trials, store.entries, strict=True):
        if trial is rejected:
            assert not trial.params  # nobody learns from them
        else:  # in the space, so it has parameters, and these draw the same architecture again
            assert space.draw(lambda name, _, trial=trial: trial.params[name]) == entry.architecture
        assert Architecture.from_dict(trial.user_attrs["architecture"]) == entry.architecture
        assert trial.user_attrs["architecture"]["id"] == entry.architecture.id
    assert Architecture.from_dict(rejected.user_attrs["architecture"]) == drawn.architecture
    assert store[0].seconds == 14.0
    assert Store(folder, create=False).entries == store.entries


def test_a_latency_that_was_predicted_is_corrected_everywhere(make_any_store, space):
    """Optuna and the samplers of this and a later session learn the measured one."""
    folder, store = make_any_store()
    for number, excess in enumerate(({"latency": 0.5}, {"latency": -1.0})):
        store.propose(space, draws(store), space.baseline if number == 0 else None)
        store.queue(number, {"ms": 2.0, "source": "predicted"}, excess)
        store.start(number)
        store.finish(number, 1.0, RESULT)
    store.reprice(1, {"ms": 3.5, "source": "measured"}, {"latency": 0.25})
    untouched, corrected = read(folder).trials
    assert (untouched.values, untouched.constraints) == ([0.25, 2.0], {"latency": 0.5})
    assert (corrected.values, corrected.constraints) == ([0.25, 3.5], {"latency": 0.25})
    assert corrected.user_attrs["price"] == {"ms": 3.5, "source": "measured"}
    assert corrected.params and corrected.user_attrs["results"] == [RESULT]
    remembered = store._memory.get_trials(deepcopy=False)[1]
    assert (remembered.values, remembered.constraints) == (corrected.values, corrected.constraints)
    assert Store(folder, create=False).entries == store.entries
    store.propose(space, make_sampler("tpe", 0, len(store)))


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_the_rows_are_those_that_optuna_writes(make_any_store, space, tmp_path, monkeypatch, sampler):
    """Its own storage, given the same trials, puts the same into every table; in any time zone."""
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    time.tzset()
    try:
        folder, store = make_any_store()
        store.propose(space, make_sampler(sampler, 0, len(store)), space.baseline)
        store.queue(0, PRICE, {"latency": 0.5, "params": -1.0})
        for number in range(1, 20):
            store.propose(space, make_sampler(sampler, 0, len(store)))
            if number % 4 == 3:
                store.reject(number, "repeat")
                continue
            store.queue(number, PRICE, {"latency": -1.0, "params": -1.0})
            if number % 4 == 2:
                store.start(number)
                store.finish(number, 1.0, RESULT | {"map": number / 100})
            elif number % 8 == 1:
                store.start(number)
                store.fail(number, 1.0, "diverged")
        now, trials = datetime.now(), read(folder).trials
        other = optuna.create_study(study_name=read(folder).study_name, storage=reader(beside(folder)), directions=DIRECTIONS)
        with pytest.warns(optuna.exceptions.ExperimentalWarning):
            other.set_metric_names(["mAP50-95", "latency ms"])
        other.set_user_attr("version", VERSION)
        other.add_trials(trials)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert {t.state for t in trials} == {TrialState.COMPLETE, TrialState.FAIL, TrialState.RUNNING}
    for moment in [t.datetime_start for t in trials] + [t.datetime_complete for t in trials if t.state.is_finished()]:
        assert timedelta(0) <= now - moment < timedelta(minutes=5)
    for table, columns in {
        "studies": "*",
        "study_directions": "*",
        "study_user_attributes": "*",
        "study_system_attributes": "*",
        "trials": "trial_id, number, study_id, state, datetime_start, datetime_complete",
        "trial_params": "trial_id, param_name, param_value, distribution_json",
        "trial_values": "trial_id, objective, value, value_type",
        "trial_user_attributes": "trial_id, key, value_json",
        "trial_system_attributes": "trial_id, key, value_json",
        "trial_intermediate_values": "*",
        "trial_heartbeats": "*",
    }.items():
        query = f"SELECT {columns} FROM {table} ORDER BY 1, 2"
        assert rows(url(folder), query) == rows(beside(folder), query), table


def test_a_baseline_that_the_space_cannot_express(make_any_store, space):
    folder, store = make_any_store()
    placement = Placement("neck.topdown.P3", 16, "keep", 32, 1)
    foreign = Architecture(space.skeleton.name, (placement,))
    assert space.params(foreign) is None
    assert store.propose(space, make_sampler("tpe", 0, len(store)), foreign).architecture == foreign
    store.queue(0, PRICE, {})
    store.start(0)
    store.finish(0, 1.0, RESULT)
    trial = read(folder).trials[0]
    assert (trial.params, trial.values, trial.constraints) == ({}, [0.25, 2.0], {})
    assert Store(folder, create=False)[0].architecture == foreign


def test_equal_seeds_propose_alike(make_any_store, space):
    def proposals(name, seed):
        _, store = make_any_store(name)
        drawn = []
        for number in range(12):
            drawn.append(store.propose(space, make_sampler("tpe", seed, len(store))).architecture.id)
            store.queue(number, PRICE, {})
        return drawn

    assert proposals("a", 1) == proposals("b", 1) != proposals("c", 2)


def test_facts_and_clocks(make_any_store):
    folder, store = make_any_store()
    store.put_fact("stopped_because", "budget spent")
    store.add_seconds(wall=1.5, lane=0.25)
    store.add_seconds(wall=2.0)
    again = Store(folder, create=False)
    assert (again.seconds("wall"), again.seconds("lane"), again.seconds("x")) == (3.5, 0.25, 0.0)
    assert again.fact("stopped_because") == "budget spent"
    assert again.fact("x") is None


def test_making_a_store_warns_of_nothing(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Store(tmp_path, create=True)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.unlink(), "holds no study.db"),
        (lambda path: path.write_bytes(b""), "cannot be used"),
        (lambda path: path.write_bytes(b"not a database at all" * 1000), "cannot be used"),
        (lambda path: path.write_bytes(path.read_bytes()[:20_000]), "cannot be used"),
        (lambda path: path.write_bytes(path.read_bytes()[:100] + os.urandom(50_000)), "cannot be used"),
        (lambda path: execute(path, "UPDATE alembic_version SET version_num = 'v99'"), "cannot be used"),
        (lambda path: execute(path, "DROP TABLE studies"), "cannot be used"),
        (lambda path: execute(path, "UPDATE studies SET study_name = 'other'"), "cannot be used"),
        (lambda path: execute(path, "UPDATE study_user_attributes SET value_json = '7' WHERE key = 'version'"), "version 7"),
        (lambda path: execute(path, "DELETE FROM study_user_attributes"), "cannot be used"),
        (lambda path: execute(path, "UPDATE trial_user_attributes SET value_json = '{' WHERE key = 'price'"), "cannot be used"),
        (
            lambda path: execute(path, "UPDATE trial_user_attributes SET value_json = '[]' WHERE key = 'architecture'"),
            "cannot be used",
        ),
    ],
)
def test_a_store_that_cannot_be_used_stays_untouched(make_store, space, damage, says):
    folder, store = make_store()
    store.propose(space, draws(store))
    store.queue(0, PRICE, {})
    store.close()
    path = folder / "study.db"
    damage(path)
    before = path.read_bytes() if path.exists() else None
    with pytest.raises(InputError, match=says) as error:
        Store(folder, create=False)
    assert error.value.hint
    assert (path.read_bytes() if path.exists() else None) == before


def test_a_store_is_not_made_over_another(make_store):
    folder, _ = make_store()
    before = (folder / "study.db").read_bytes()
    with pytest.raises(InputError, match="cannot be used"):
        Store(folder, create=True)
    assert (folder / "study.db").read_bytes() == before


# One search's writes, each of which must happen whole or not at all. Trials end in each of the three ways.
SCRIPT = [
    lambda store, space: store.put_fact("stopped_because", "x"),
    lambda store, space: (
        store.propose(space, draws(store), space.baseline),
        store.queue(0, PRICE, {"latency": 0.5, "params": -1.0}),
        store.close(),  # what was queued is written with what comes next, or by this
    ),
    lambda store, space: store.start(0),
    lambda store, space: store.add_seconds(wall=2.0, lane=0.0),
    lambda store, space: store.charge(0, 3.5),
    lambda store, space: store.finish(0, 7.0, RESULT),
    lambda store, space: (
        store.propose(space, draws(store)),
        store.reject(1, "over-latency", {"ms": 9.0}),
    ),
    lambda store, space: (
        store.propose(space, draws(store), next(space.neighbours(space.baseline))),
        store.queue(2, PRICE, {"latency": -0.5, "params": -1.0}),
        store.close(),
    ),
    lambda store, space: store.start(2),
    lambda store, space: store.charge(2, 1.0, "lost"),
    lambda store, space: store.start(2),
    lambda store, space: store.fail(2, 2.0, "diverged"),
    lambda store, space: (
        store.propose(space, draws(store)),
        store.queue(3, PRICE, {"latency": -0.5, "params": -1.0}),
        store.close(),
    ),
    lambda store, space: store.reject(3, "over-latency", PRICE),
]


def test_kill_9_at_any_commit_loses_nothing_and_doubles_nothing(make_store, space, tmp_path):
    """For every write of the script: children do it and kill themselves, the n-th at its n-th commit.

    What is then found must be what was there before the write, or after it.
    """
    whole, store = make_store("whole")
    copies = [copy(whole, tmp_path / "0")]
    for number, write in enumerate(SCRIPT, start=1):
        write(store, space)
        copies.append(copy(whole, tmp_path / str(number)))
    states = [view(reopened(copy(folder, tmp_path / f"{folder.name} reopened"))) for folder in copies]

    def once(folder, write, commit):
        store = Store(folder, create=False)
        kill_at(commit)
        write(store, space)

    kills = 0
    for number, write in enumerate(SCRIPT):
        for commit in range(1, 100):
            folder = copy(copies[number], tmp_path / f"{number} killed at {commit}")
            if not killed(partial(once, folder, write, commit)):
                assert view(reopened(folder)) == states[number + 1]
                break
            kills += 1
            store = Store(folder, create=False)
            assert {entry.state for entry in store.entries} <= set(STATES)  # for readers, before any resume
            store.reopen()
            assert view(store) in states[number : number + 2], folder.name
            again = reopened(folder)
            assert view(again) == view(store)
            check_goes_on(again, space)
            check_optuna(folder, again)
    assert kills == len(SCRIPT)  # each is one transaction


def test_kill_9_while_a_store_is_made_leaves_all_or_none_of_it(tmp_path):
    def make(folder, commit):
        kill_at(commit)
        Store(folder, create=True)

    there = []
    for commit in range(1, 100):
        folder = tmp_path / str(commit)
        folder.mkdir()
        if not killed(partial(make, folder, commit)):
            break
        there.append((folder / "study.db").exists())
        assert len(Store(folder, create=not there[-1])) == 0
    assert there.count(False) > 3
    assert [path.name for path in folder.iterdir()] == ["study.db"]


def copy(folder: Path, to: Path) -> Path:
    to.mkdir()
    shutil.copy(folder / "study.db", to)
    return to


def reopened(folder: Path) -> Store:
    store = Store(folder, create=False)
    store.reopen()
    return store


def killed(write) -> bool:
    """Whether a child that does one write died of its own `kill -9`."""
    child = os.fork()
    if child == 0:
        try:
            write()
        except BaseException as error:
            sys.stderr.write(f"{error!r}\n")
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in {0, signal.SIGKILL}
    return status == signal.SIGKILL


def kill_at(commit: int) -> None:
    """`kill -9` this process right before its `commit`-th commit that writes something reaches the database."""
    count = before = 0

    def about_to_commit(connection):
        nonlocal count, before
        now = connection.connection.dbapi_connection.total_changes
        count, before = count + (now != before), now
        if count == commit:
            os.kill(os.getpid(), signal.SIGKILL)

    sqlalchemy.event.listen(sqlalchemy.Engine, "commit", about_to_commit)


def view(store: Store):
    """Everything of a store that must survive."""
    trials = [(e.architecture and e.architecture.id, e.state, e.reason, e.result, e.seconds, e.attempts) for e in store.entries]
    return trials, (store.seconds("wall"), store.fact("stopped_because"))


def check_optuna(folder: Path, store: Store) -> None:
    """Optuna's states are those of the store."""
    ends = {"done": "COMPLETE", "failed": "FAIL", "rejected": "FAIL"}
    found = execute(folder / "study.db", "SELECT state FROM trials ORDER BY number")
    assert found == [(ends.get(entry.state, "RUNNING"),) for entry in store.entries]


def check_goes_on(store: Store, space) -> None:
    """Open trials can be taken to their end, and more can be proposed."""
    if not store.entries:
        assert store.propose(space, draws(store), space.baseline).number == 0
        store.queue(0, PRICE, {"latency": 0.5, "params": -1.0})
    assert store[0].architecture.is_skeleton
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for entry in store.entries:
            if store[entry.number].state == "queued":
                store.start(entry.number)
                store.finish(entry.number, 1.0, RESULT)
        store.queue(store.propose(space, make_sampler("tpe", 0, len(store))).number, PRICE, {"latency": 0.5, "params": -1.0})
    store.close()
    assert {e.state for e in store.entries[:-1]} <= {"done", "failed", "rejected"}


def draws(store):
    """A sampler for the next trial."""
    return make_sampler("random", 0, len(store))


def url(folder: Path) -> str:
    """Of the database, as anybody who reads it types it."""
    config = read_config(folder)[0] if (folder / "run.yaml").exists() else None
    if config is None:
        return f"sqlite:///{folder / 'study.db'}"
    secret = quote(password_of(config.storage), safe="")
    return config.storage.replace("postgresql://nas@", f"postgresql+psycopg://nas:{secret}@")


def beside(folder: Path) -> str:
    """Of a second database like the first, for what Optuna itself writes."""
    if not (folder / "run.yaml").exists():
        return f"sqlite:///{folder / 'other.db'}"
    first, _, name = url(folder).rpartition("/")
    if not rows(f"{first}/postgres", f"SELECT 1 FROM pg_database WHERE datname = 'beside_{name}'"):
        engine = sqlalchemy.create_engine(f"{first}/postgres", isolation_level="AUTOCOMMIT", poolclass=NullPool)
        with contextlib.closing(engine.connect()) as connection:
            connection.execute(sqlalchemy.text(f"CREATE DATABASE beside_{name}"))
    return f"{first}/beside_{name}"


def read(folder: Path) -> optuna.Study:
    """The study as anybody reads it, without nas."""
    (study,) = optuna.get_all_study_names(storage := reader(url(folder)))
    return optuna.load_study(study_name=study, storage=storage)


def rows(url: str, sql: str) -> list[tuple]:
    with contextlib.closing(sqlalchemy.create_engine(url, poolclass=NullPool).connect()) as connection:
        return [tuple(row) for row in connection.execute(sqlalchemy.text(sql))]


def execute(path: Path, sql: str) -> list[tuple]:
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        return connection.execute(sql).fetchall()
