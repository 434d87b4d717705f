"""Small tables for searches that tests play."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nas.simulate.space import TableSpace
from nas.simulate.table import Table, read_table


def small(folder: Path, rows: int = 60, seed: int = 0) -> TableSpace:
    """A table of made-up networks with two features, and with the seconds that each takes to train."""
    return TableSpace(table(folder, rows, seed))


def table(folder: Path, rows: int, seed: int) -> Table:
    rng = np.random.default_rng(seed)
    lines = [
        f"m{row},{'abc'[row % 3]},{row // 3},{0.3 + 0.4 * a:.5f},{1 + 4 * ms:.4f},{10 + 500 * s:.2f}"
        for row, (a, ms, s) in enumerate(rng.uniform(0, 1, (rows, 3)))
    ]
    path = folder / "small.csv"
    path.write_text("\n".join(["name,block,width,acc,lat,seconds", *lines]) + "\n")
    return read_table(path, "acc", "lat")
