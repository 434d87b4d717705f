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

    def column(self, codes: SpaceCodes, rows: NDArray[np.int32]) -> Floats:
        """Of codes (rows, slots), in [-1/2, 1/2]: the root of the sum of rises, as a share of the largest sum that is possible.

        An option that has not learned yet counts as the mean of its slot.
        """
        tables = [self._table(options) for options in codes.listed]
        total: Floats = np.zeros(len(rows))
        for slot, table in enumerate(tables):
            total += table[rows[:, slot]]
        most = sum(float(table.max()) for table in tables)
        return np.asarray(np.sqrt(total / most) - 0.5 if most > 0 else total)

    def total(self, architecture: Architecture) -> float | None:
        """The sum of an architecture's rises; None where one of its blocks has not learned yet, or was dropped."""
        rises = [self._rise(placement) for placement in architecture.placements]
        return None if any(map(np.isnan, rises)) else float(sum(rises))

    def _table(self, options: list[Placement | None]) -> Floats:
        """The rise of each option of a slot; the skeleton's own row has none."""
        rises = np.array([0.0 if option is None else self._rise(option) for option in options])
        known = rises[np.isfinite(rises)]
        return np.where(np.isfinite(rises), rises, float(known.mean()) if known.size else 0.0)

    def _rise(self, placement: Placement) -> float:
        if placement not in self._known:
            if placement not in self._alternatives:
                self._alternatives[placement] = alternative_of(self._space, placement)
            entry = self._library().get(self._alternatives[placement])
            if entry is None or entry.dropped:
                return np.nan
            self._known[placement] = max(0.0, entry.rise)
        return self._known[placement]
