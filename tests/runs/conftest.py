"""A small space, and an empty store that is made once and copied."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
import sqlalchemy

from nas.config import RunConfig
from nas.runs.folder import write_config
from nas.runs.store import Store
from nas.space.reader import read_space
from nas.space.search_space import SearchSpace
from nas.storage import parse_storage
from tests.postgresql import Server, running_server

NUMBERS = count()
SPACE = """
skeleton: yolo11n.yaml
slots:
  backbone.P4: {block: [keep, repvit, irmb], width: [0.5, 1.0]}
  backbone.P5: {block: [keep, repvit], width: [0.5, 1.0]}
"""


@pytest.fixture(scope="session", autouse=True)
def fast_sqlite():
    """Nothing here pulls the plug of the machine, so no commit need wait for the disk."""

    def relax(connection, _):
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA synchronous=OFF")

    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", relax)
    yield
    sqlalchemy.event.remove(sqlalchemy.Engine, "connect", relax)


@pytest.fixture(scope="session")
def space(tmp_path_factory) -> SearchSpace:
    path = tmp_path_factory.mktemp("space") / "space.yaml"
    path.write_text(SPACE)
    return read_space(path)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("empty")
    Store(folder, create=True)
    return folder / "study.db"


@pytest.fixture
def make_store(empty_store, tmp_path):
    """A function that makes a fresh run folder with an empty store, and opens it."""

    def make(name: str = "run") -> tuple[Path, Store]:
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(empty_store, folder)
        return folder, Store(folder, create=False)

    return make


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with running_server() as server:
        server.make_database("nas_empty")
        yield server


@pytest.fixture
def make_postgres_store(server, tmp_path):
    """As `make_store`, each with a database of its own."""

    def make(name: str = "run", **options) -> tuple[Path, Store]:
        folder, database = tmp_path / name, f"{name}_{next(NUMBERS)}"
        folder.mkdir()
        server.make_database(database, "nas_empty")
        write_config(folder, config_in(server.url(database), name), "nas search")
        return folder, Store(folder, create=True, **options)

    return make


@pytest.fixture(params=["sqlite", "postgresql"])
def make_any_store(request):
    """`make_store`, in either kind of database."""
    return request.getfixturevalue("make_store" if request.param == "sqlite" else "make_postgres_store")


def config_in(url: str, study: str, **options) -> RunConfig:
    """A configuration whose study lies in a PostgreSQL database."""
    return RunConfig("d.yaml", "s", "9trials", "cpu:onnxruntime", storage=parse_storage(url), study=study, **options)
