"""Which proposals of a search by imitation are not worth an evaluation: the additive estimate, as far as it has proved right.

The rule is that of `nas.search.prune`: an architecture is left out where even its best case, by the sum of its rises and all
that was scored so far, is below what was measured to be no slower than it can be. Samplers are told that it failed, as of
whatever else was not trained.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nas.pricing import Pricing
from nas.rises import Rises
from nas.runs.store import Store
from nas.search.prune import LEAST, Floats, best_case
from nas.space.architecture import Architecture

GROWTH = 1.05  # so many times the scored trials say something new


@dataclass(frozen=True)
class Scored:
    """The assembled networks of a search: sums of rises, mAP, and the latencies that they do not exceed."""

    rises: Floats
    maps: Floats
    ms: Floats
    numbers: list[int]


class Pruning:
    """Says why a proposal is not evaluated.

    Args:
        store: the trials so far.
        rises: what the library says of an architecture.
        pricing: what latencies are guessed by.
        limit_ms: who is slower is no rival.
    """

    def __init__(self, store: Store, rises: Rises, pricing: Pricing, limit_ms: float | None) -> None:
        self._store, self._rises, self._pricing = store, rises, pricing
        self._limit = np.inf if limit_ms is None else limit_ms
        self._known, self._counted = Scored(np.empty(0), np.empty(0), np.empty(0), []), 0

    def __call__(self, architecture: Architecture) -> str | None:
        """The trial that is better, in words; None where the architecture may be worth its evaluation."""
        total = None if architecture.is_skeleton else self._rises.total(architecture)
        if total is None:
            return None
        ranked = self._store.tally.ranked
        if ranked >= max(LEAST, GROWTH * self._counted):
            self._known, self._counted = self._scored(), ranked
        known = self._known
        best = best_case(known.rises, known.maps, np.array([total]))
        guessed = self._pricing.guess([architecture]) if best is not None else None
        if best is None or guessed is None:
            return None
        better = np.flatnonzero((known.maps > best[0]) & (known.ms <= min(guessed.low[0], self._limit)))
        if not better.size:
            return None
        rival = better[np.argmax(known.maps[better])]
        return f"at best mAP {best[0]:.3f} untrained; trial {known.numbers[rival]}, no slower, has {known.maps[rival]:.3f}"

    def _scored(self) -> Scored:
        rows = []
        for entry in self._store.entries:
            total = self._rises.total(entry.architecture) if entry.results else None
            price = entry.price or {}
            if total is not None and "ms" in price:
                rows.append((total, float(entry.results[0]["map"]), float(price.get("high", price["ms"])), entry.number))
        table = np.array([row[:3] for row in rows]).reshape(-1, 3)
        return Scored(table[:, 0], table[:, 1], table[:, 2], [row[3] for row in rows])
