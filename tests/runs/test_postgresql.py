"""Runs whose study lies in a PostgreSQL database, on a real server: shared, held, broken off, and what nobody may read."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.parse import quote

import optuna
import pytest
import sqlalchemy
import yaml

from nas import api, session
from nas.cli import main
from nas.dataset.builtin import builtin_dataset
from nas.dataset.description import read_dataset
from nas.errors import InputError, StartError, UnreachableError
from nas.execution.simulate import Faults
from nas.runs.folder import read_config, write_config
from nas.runs.place import place_of
from nas.runs.store import STORE_ERRORS, VERSION, Store
from nas.search.sampler import make_sampler
from nas.simulate.play import Play
from tests.postgresql import PASSWORD, Server, reader
from tests.runs.conftest import SPACE, config_in
from tests.simulate.tables import small
from tests.test_session import Instant, good

PRICE = {"ms": 2.0, "spread": 0.01}
CLI = [sys.executable, "-c", "from nas.cli import main; main()"]


@pytest.fixture(scope="module")
def shared(server: Server) -> str:
    """A database for all tests that may share one."""
    server.make_database("shared")
    return server.url("shared")


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A folder to search in, and an executor that answers at once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(session, "open_executor", lambda config, folder: Instant(good))
    (tmp_path / "space.yaml").write_text(SPACE)
    return tmp_path


def search(url: str, **options):
    asked = {"space": "space.yaml", "imgsz": 64, "budget": "4trials", "sampler": "random", "confirm": 0, "workers": 1}
    return api.search(storage=url, target="cpu:onnxruntime", allow_noisy=True, **asked | options)


def study_of(server: Server, run: api.Run) -> optuna.Study:
    """As anybody reads it, without nas."""
    url = server.url(run.config.storage.rpartition("/")[2]).replace("postgresql:", "postgresql+psycopg:")
    return optuna.load_study(study_name=run.config.study, storage=reader(url))


def secrets_in(folder: Path) -> list[Path]:
    """Files that hold the password."""
    forms = [PASSWORD.encode(), quote(PASSWORD, safe="").encode(), json.dumps(PASSWORD).encode()]
    return [path for path in folder.rglob("*") if path.is_file() and any(form in path.read_bytes() for form in forms)]


def test_runs_share_a_database(server, shared, home, capsys):
    first, second = search(shared), search(shared.replace("postgresql://", "postgres://"), seed=1)
    assert first.config.study != second.config.study
    assert first.config.storage == second.config.storage == f"postgresql://nas@127.0.0.1:{server.port}/shared"
    for run in (first, second):
        assert not (run.folder / "study.db").exists()
        assert [t.user_attrs["architecture"]["id"] for t in study_of(server, run).trials] == [r.id for r in run.records]
        assert api.load(run.folder).front == run.front
    again = api.resume(first.folder, add_budget="2trials")
    assert again.store.counts["done"] == 6 and len(study_of(server, again).trials) == len(again.records)
    assert len(api.load(second.folder).records) == len(second.records)
    assert secrets_in(home) == []


def test_equal_searches_in_either_database(make_postgres_store, tmp_path):
    """The same table, seed and faults: the same trials, also after a restart in the middle."""
    space, found = small(tmp_path), []
    (tmp_path / "file").mkdir()
    for folder, store in (make_postgres_store(exclusive=True), (tmp_path / "file", Store(tmp_path / "file", create=True))):
        for trials in (12, 24):
            config = replace(config_in("postgresql://h/d", "s", workers=3, rungs=2, seed=4), budget=f"{trials}trials")
            Play(space, config, store, tau=0.7, faults=Faults(0.1, 0.2), folder=folder).run()
            store.close()
            store = Store(folder, create=False, exclusive=True)  # noqa: PLW2901
        found.append(store.entries)
        store.close()
    assert found[0] == found[1]
    assert {entry.state for entry in found[0]} >= {"done", "paused", "failed"}


def test_a_server_that_goes_away_loses_nothing(server, shared, home, monkeypatch, capsys):
    """The search ends in a line, and goes on when the server is back."""

    def end(count, attempt):
        if count == 5:
            server.stop()
        return good(count, attempt)

    monkeypatch.setattr(session, "open_executor", lambda config, folder: Instant(end))
    try:
        with pytest.raises(UnreachableError) as error:
            search(shared, budget="9trials")
        began = time.monotonic()
        with pytest.raises(UnreachableError, match="refused"):
            api.load("search").records  # noqa: B018
        with pytest.raises(UnreachableError, match="refused"):
            api.resume("search")
        assert time.monotonic() - began < 30
    finally:
        server.start()
    assert "\n" not in error.value.message and error.value.message.startswith("postgresql://nas@127.0.0.1:")
    assert error.value.hint == "nothing is lost; once that is put right: nas search --resume results/search"
    broken = api.load("search")
    assert [e.state for e in broken.entries if e.state != "rejected"] == ["done"] * 5 + ["running"]
    monkeypatch.setattr(session, "open_executor", lambda config, folder: Instant(good))
    whole = api.resume("search")
    assert [e.state for e in whole.entries if e.state != "rejected"] == ["done"] * 9
    assert whole.entries[:5] == broken.entries[:5]
    assert secrets_in(home) == []


def test_a_study_is_made_whole_or_not_at_all(server, tmp_path):
    """`kill -9` at every commit: tables, their version, the study."""
    server.make_database("whole")
    write_config(tmp_path, config_in(server.url("whole"), "one"), "nas search")

    def make(commit):
        count = 0

        def about_to_commit(connection):
            nonlocal count
            count += 1
            if count == commit:
                os.kill(os.getpid(), signal.SIGKILL)

        sqlalchemy.event.listen(sqlalchemy.Engine, "commit", about_to_commit)
        Store(tmp_path, create=True)

    kills = 0
    while ended(fork(partial(make, kills + 1))) == -signal.SIGKILL:
        kills += 1
        if place_of(tmp_path).exists():
            assert Store(tmp_path, create=False).entries == []
            break
        with pytest.raises(InputError, match="holds no study 'one'"):
            Store(tmp_path, create=False)
    assert kills >= 2
    if not place_of(tmp_path).exists():
        Store(tmp_path, create=True)
    facts = server.execute("whole", "SELECT key, value_json FROM study_user_attributes")
    assert facts == [("version", str(VERSION))]


def test_searches_that_begin_at_once(server, tmp_path):
    """In a database without any table yet."""
    server.make_database("busy")
    children = []
    for name in "abcd":
        (folder := tmp_path / name).mkdir()
        write_config(folder, config_in(server.url("busy"), name), "nas search")
        children.append(fork(partial(Store, folder, create=True)))
    assert [ended(child) for child in children] == [0] * 4
    assert {name for (name,) in server.execute("busy", "SELECT study_name FROM studies")} == {*"abcd"}


def test_a_study_is_written_by_one_search_at_once(server, make_postgres_store, space):
    folder, store = make_postgres_store(exclusive=True)
    store.put_fact("x", 1)
    me = rf"is in use by process {os.getpid()} on {platform.node()} \(127\.0\.0\.1\)"
    with pytest.raises(InputError, match=me) as error:
        Store(folder, create=False, exclusive=True)
    assert error.value.hint == "wait for it to end, or stop it"
    assert Store(folder, create=False).fact("x") == 1  # readers may
    # whoever loses the lock cannot write either
    database = read_config(folder)[0].storage.rpartition("/")[2]
    server.execute(database, "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'")
    with closing(opened(folder)):
        for _ in range(2):
            with pytest.raises(STORE_ERRORS):
                store.put_fact("x", 2)
    assert Store(folder, create=False).fact("x") == 1

    def hold_and_die():
        opened(folder)
        os.kill(os.getpid(), signal.SIGKILL)

    assert ended(fork(hold_and_die)) == -signal.SIGKILL
    again = opened(folder)
    again.queue(again.propose(space, make_sampler("random", 0, 0), space.baseline).number, PRICE, {})
    again.close()
    assert len(Store(folder, create=False)) == 1


@pytest.mark.parametrize(
    ("change", "error", "says", "hint"),
    [
        (lambda url: url.replace("shared", "nowhere"), UnreachableError, '"nowhere" does not exist', "createdb nowhere"),
        (lambda url: url.replace("%40", "x"), UnreachableError, "password authentication failed", "PGPASSWORD"),
        (
            lambda url: url.partition("//nas")[0] + "//nas@127" + url.partition("@127")[2],
            UnreachableError,
            "password",
            "pgpass",
        ),
        (lambda url: "postgresql://nas@127.0.0.1:1/shared", UnreachableError, "refused", "running"),
        (lambda url: "postgresql://no.such.host.invalid/shared", UnreachableError, "host", "running"),
        (lambda url: f"{url}?sslmood=off", InputError, "sslmood", "correct"),
        (lambda url: url.replace("postgresql", "mysql"), InputError, "mysql://", "postgresql://"),
        (lambda url: url.replace("://", ":"), InputError, "no address", "postgresql://"),
        (lambda url: url.removesuffix("/shared"), InputError, "names no database", "postgresql://"),
        (lambda url: url.replace("%40", "#"), InputError, "--storage: ", "PGPASSWORD"),
        (lambda url: f"{url}?password=x", InputError, "behind the '?'", "PGPASSWORD"),
        (lambda url: url.replace("nas:", "guest:"), InputError, "permission denied", "allowed to make"),
    ],
)
def test_a_database_that_cannot_be_used(server, shared, home, monkeypatch, change, error, says, hint):
    with suppress(Exception):
        server.execute("postgres", f"CREATE ROLE guest LOGIN PASSWORD '{PASSWORD}'")
    monkeypatch.setattr("nas.storage._remembered", {})
    began = time.monotonic()
    with pytest.raises(error) as found:
        search(change(shared.replace("/shared", "/postgres") if "denied" in says else shared))
    assert time.monotonic() - began < 15
    assert says in found.value.message and hint in found.value.hint
    assert "\n" not in found.value.message
    assert PASSWORD not in str(found.value) and quote(PASSWORD, safe="") not in str(found.value)
    assert not list(home.glob("results/*"))


def test_without_a_driver(shared, home, monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(InputError, match="needs psycopg") as error:
        search(shared)
    assert error.value.hint == "pip install 'psycopg[binary]'"
    assert not list(home.glob("results/*"))


def test_a_search_that_cannot_start_leaves_no_study(server, shared, home, monkeypatch):
    def refuse(config, folder):
        raise StartError("no such weights")

    monkeypatch.setattr(session, "open_executor", refuse)
    before = server.execute("shared", "SELECT study_name FROM studies")
    with pytest.raises(StartError):
        search(shared)
    assert server.execute("shared", "SELECT study_name FROM studies") == before
    assert not list(home.glob("results/*"))


def test_a_database_that_has_moved(server, shared, home):
    run = search(shared)
    found = len(run.records)
    server.make_database("other")
    before = (run.folder / "run.yaml").read_text()
    with pytest.raises(InputError, match="/other holds no study 'search-"):
        api.resume(run.folder, storage=server.url("other"))
    with pytest.raises(UnreachableError):
        api.resume(run.folder, storage="postgresql://nas@127.0.0.1:1/shared")
    assert (run.folder / "run.yaml").read_text() == before
    server.make_database("moved", "shared")
    api.resume(run.folder, storage=server.url("moved"), add_budget="1trials")
    assert api.load(run.folder).config.storage.endswith("/moved")
    assert len(study_of(server, api.load(run.folder)).trials) == found + 1
    plain = search(None, name="plain")
    with pytest.raises(InputError, match="keeps its study in its own folder"):
        api.resume(plain.folder, storage=shared)


@pytest.fixture
def nas(home, monkeypatch, capsys):
    """The command line in this process, which knows no password from before: returns what it prints."""

    def command(*words: str, code: int = 0, **variables: str) -> str:
        with monkeypatch.context() as patched, pytest.raises(SystemExit) as end:
            patched.setattr(sys, "argv", ["nas", *words])
            patched.setattr("nas.storage._remembered", {})
            for name, value in variables.items():
                patched.setenv(name, value)
            main()
        printed = capsys.readouterr()
        told = printed.out + printed.err
        assert end.value.code == code, told
        assert PASSWORD not in told and quote(PASSWORD, safe="") not in told
        return told

    return command


def test_from_the_command_line(server, shared, home, nas):
    """What is typed and printed, and how a run is read and gone on with."""
    few = ["--imgsz", "64", "--budget", "2trials", "--sampler", "random", "--confirm", "0", "--target", "cpu:onnxruntime"]
    nas("search", "--space", "space.yaml", "--storage", shared, *few)
    text = (home / "results" / "search" / "run.yaml").read_text()
    assert f"--storage 'postgresql://nas:***@127.0.0.1:{server.port}/shared'" in text
    told = nas("front", code=5)
    assert "no password supplied" in told and "PGPASSWORD" in told
    assert "password authentication failed" in nas("front", code=5, PGPASSWORD="wrong")
    assert "baseline" in nas("front", PGPASSWORD=PASSWORD)
    passes = home.parent / "passes"
    passes.write_text(f"127.0.0.1:{server.port}:*:nas:{PASSWORD.replace(':', chr(92) + ':')}\n")
    passes.chmod(0o600)
    assert "results/search/export/" in nas("export", "--pick", "best", PGPASSFILE=str(passes))
    assert "not an option; did you mean --storage postgresql://nas:***@" in nas("search", f"storage={shared}", code=2)
    assert "postgresql://nas:***@" in nas("search", shared, code=2)
    assert "--storage means nothing with --simulate" in nas("search", "--simulate", "x", "--storage", shared, code=2)
    assert "no password supplied" in nas("search", "--resume", "search", code=5)
    nas("search", "--resume", "search", "--storage", shared, "--add-budget", "1trials")
    nas("search", "--resume", "search", "--add-budget", "1trials", PGPASSWORD=PASSWORD)
    found = server.execute(
        "shared", "SELECT count(*) FROM trials JOIN studies USING (study_id) WHERE study_name = " + name_in(text)
    )
    assert found == [(4,)]
    assert secrets_in(home) == []


@pytest.mark.slow
def test_a_real_search(server, shared, home):
    """Two trials trained and timed, in a process of its own, by workers that know nothing of the database."""
    full = read_dataset(builtin_dataset())
    (home / "train.txt").write_text("\n".join(map(str, full.train[:40])))
    (home / "val.txt").write_text("\n".join(map(str, full.val[:10])))
    (home / "small.yaml").write_text(f"path: {home}\ntrain: train.txt\nval: val.txt\nnames: {json.dumps(list(full.names))}\n")
    words = ["--space", "space.yaml", "--data", "small.yaml", "--imgsz", "32", "--epochs", "1", "--budget", "2trials"]
    words += ["--workers", "1", "--allow-noisy", "--confirm", "0", "--storage", shared]
    done = subprocess.run([*CLI, "search", *words], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    run = api.load("search")
    assert [t.state.name for t in study_of(server, run).trials].count("COMPLETE") == 2
    assert (run.folder / "winner.pt").is_file()
    assert secrets_in(home) == []


def name_in(text: str) -> str:
    """The name of the study in a run.yaml, quoted for SQL."""
    return f"'{yaml.safe_load(text)['study']}'"


def opened(folder: Path) -> Store:
    """The store, exclusively: the server may take a moment to notice that its last holder has died."""
    for _ in range(100):
        with suppress(InputError):
            return Store(folder, create=False, exclusive=True)
        time.sleep(0.1)
    return Store(folder, create=False, exclusive=True)


def fork(work) -> int:
    """A child that does some work."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException as error:
            sys.stderr.write(f"{error!r}\n")
            os._exit(1)
        os._exit(0)
    return child


def ended(child: int) -> int:
    """How a child ended: 0, 1 or the negative number of the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
