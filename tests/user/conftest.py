"""A block file, and a catalog that is after each test what it was before."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from block_file import BLOCKS

import nas.user
from nas.blocks import user
from nas.blocks.catalog import CATALOG, ROWS
from nas.space.skeleton import read_skeleton


@pytest.fixture
def blocks(tmp_path: Path) -> Path:
    """A file with one sound block, `my_block`."""
    path = tmp_path / "my_blocks.py"
    path.write_text(BLOCKS)
    return path


@pytest.fixture(autouse=True)
def catalog_as_before() -> Iterator[None]:
    known = [(table, dict(table)) for table in (CATALOG, ROWS, nas.user.FILES, user._loaded)]
    yield
    for table, before in known:
        table.clear()
        table.update(before)
    for name in [name for name in sys.modules if name.startswith("nas.user.")]:
        del sys.modules[name]
    read_skeleton.cache_clear()
