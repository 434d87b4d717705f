"""How much of a table's own front a search has found."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from nas.simulate.table import Floats, Table


class Share:
    """Hypervolume of rows as a share of the whole table's.

    Accuracy and log latency, each scaled to [0, 1] over the table; the reference is the smallest accuracy and the largest
    latency, or the limit, where there is one: what is slower does not count.
    """

    def __init__(self, table: Table, limit_ms: float | None = None) -> None:
        x = np.log(table.latency)
        self._end = 1.0 if limit_ms is None else min(1.0, (math.log(limit_ms) - x.min()) / max(np.ptp(x), 1e-12))
        self._x = (x - x.min()) / max(np.ptp(x), 1e-12)
        self._y = (table.accuracy - table.accuracy.min()) / max(np.ptp(table.accuracy), 1e-12)
        self._whole = self._area(np.arange(len(x)))

    def _area(self, rows: np.ndarray) -> float:
        rows = rows[self._x[rows] <= self._end + 1e-9]
        order = rows[np.lexsort((-self._y[rows], self._x[rows]))]
        widths: Floats = np.diff(np.append(self._x[order], self._end))
        return float(np.sum(np.maximum.accumulate(self._y[order]) * widths)) if order.size else 0.0

    def of(self, rows: Sequence[int]) -> float:
        """1 where they hold the whole front; also where the front has no area."""
        return self._area(np.unique(np.asarray(rows, dtype=np.intp))) / self._whole if self._whole > 0 else 1.0

    def reached(self, rows: Sequence[int], goals: Sequence[float]) -> tuple[float, tuple[int | None, ...]]:
        """The share of rows that came one after another, and how many of them each goal took (None: not reached)."""
        front: list[int] = []
        share = 0.0
        counts: dict[float, int | None] = dict.fromkeys(goals)
        for number, row in enumerate(rows, start=1):
            if self._adds(front, row):
                front = [own for own in front if not self._dominates(row, own)] + [row]
                share = self.of(front)
            for goal in goals:
                if counts[goal] is None and share >= goal:
                    counts[goal] = number
        return share, tuple(counts.values())

    def _adds(self, front: Sequence[int], row: int) -> bool:
        return not any(self._dominates(own, row) for own in front)

    def _dominates(self, one: int, other: int) -> bool:
        return bool(self._x[one] <= self._x[other] and self._y[one] >= self._y[other])
