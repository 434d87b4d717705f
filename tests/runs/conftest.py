"""A small space, and an empty store that is made once and copied."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import sqlalchemy

from nas.runs.store import Store
from nas.space.reader import read_space
from nas.space.search_space import SearchSpace

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
