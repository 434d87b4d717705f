"""The additive estimate as a feature: how much the loss rises, slot by slot, where blocks that imitated the teacher stand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from nas.imitation.alternatives import Alternative, alternative_of
from nas.imitation.library import Library
from nas.space.architecture import Architecture, Placement
from nas.space.features import Floats, SpaceCodes
from nas.space.search_space import SearchSpace


class Rises:
    """Sums of replace-one rises, for `nas.proposals.SpaceKnowledge`.

    Args:
        space: whose placements are summed over.
        library: what they have learned; asked for once there is a teacher.
    """

    def __init__(self, space: SearchSpace, library: Callable[[], Library]) -> None:
        self._space, self._library = space, library
        self._alternatives: dict[Placement, Alternative] = {}
        self._known: dict[Placement, float] = {}
        self._listed: list[Floats] = []
        self._listed_at = -1

    def column(self, codes: SpaceCodes, rows: NDArray[np.int32]) -> Floats:
        """Of codes (rows, slots), in [-1/2, 1/2]: the root of the sum of rises, as a share of the largest sum that is possible.

        An option that has not learned yet counts as the mean of its slot.
        """
        tables = [np.where(np.isnan(table), _mean(table), table) for table in self._tables(codes)]
        total: Floats = np.zeros(len(rows))
        for slot, table in enumerate(tables):
            total += table[rows[:, slot]]
        most = sum(float(table.max()) for table in tables)
        return np.asarray(np.sqrt(total / most) - 0.5 if most > 0 else total)

    def unlearned(self, codes: SpaceCodes, rows: NDArray[np.int32]) -> Floats:
        """Of codes (rows, slots): how many of their blocks have yet to learn, or were dropped."""
        tables = [np.isnan(table) for table in self._tables(codes)]
        return np.asarray(np.sum([table[rows[:, slot]] for slot, table in enumerate(tables)], axis=0, dtype=np.float64))

    def total(self, architecture: Architecture) -> float | None:
        """The sum of an architecture's rises; None where one of its blocks has not learned yet, or was dropped."""
        rises = [self._rise(placement) for placement in architecture.placements]
        return None if any(map(np.isnan, rises)) else float(sum(rises))

    def _tables(self, codes: SpaceCodes) -> list[Floats]:
        """The rise of each option of each slot; 0 of the skeleton's own row, NaN where it is not known. A library is read again
        when something has come to lie in its folder."""
        folder = self._library().folder
        state = folder.stat().st_mtime_ns if folder.is_dir() else 0
        if state != self._listed_at:
            read = [np.array([0.0 if o is None else self._rise(o) for o in options]) for options in codes.listed]
            self._listed, self._listed_at = read, state
        return self._listed

    def _rise(self, placement: Placement) -> float:
        if placement not in self._known:
            if placement not in self._alternatives:
                self._alternatives[placement] = alternative_of(self._space, placement)
            entry = self._library().get(self._alternatives[placement])
            if entry is None or entry.dropped:
                return np.nan
            self._known[placement] = max(0.0, entry.rise)
        return self._known[placement]


def _mean(table: Floats) -> float:
    """Of what is known."""
    known = table[np.isfinite(table)]
    return float(known.mean()) if known.size else 0.0
