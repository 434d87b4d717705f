"""Nobody's place on the front is predicted: what a prediction has brought there is measured, what was confirmed once more."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from nas.pricing import Prices
from nas.runs.store import Store
from nas.runs.trials import TrialFolders

log = logging.getLogger("nas")


class Settling:
    """Trained architectures whose latency is to be measured, when the lane is free.

    Args:
        store: the trials.
        folders: who is on the front.
        pricing: whose lane measures.
        settled: called with a trial and the price that is known now.
    """

    def __init__(
        self, store: Store, folders: TrialFolders, pricing: Prices, settled: Callable[[int, Mapping[str, Any]], None]
    ) -> None:
        self._store, self._folders, self._pricing, self._settled = store, folders, pricing, settled
        self._open: set[int] = set()
        self._again: deque[int] = deque()

    def __len__(self) -> int:
        """How many are predicted to be on the front."""
        return len(self._open)

    def __contains__(self, number: object) -> bool:
        return number in self._open

    @property
    def seconds(self) -> float:
        """What measuring them is expected to take."""
        return len(self._open) * self._pricing.typical_seconds

    def add(self, number: int) -> None:
        """A trial that is done has a latency that is predicted, and would be on the front."""
        self._open.add(number)

    def add_again(self, number: int) -> None:
        """A measured trial was confirmed: it is measured once more if nobody else has been before."""
        if self._pricing.measures and (self._store[number].price or {}).get("times", 1) < 2:
            self._again.append(number)

    def measure(self) -> bool:
        """Measure the best of those that are predicted; whether one is being measured.

        What a measured trial dominates even at its best needs no measurement.
        """
        while self._open:
            entry = max((self._store[number] for number in self._open), key=lambda e: (e.map, -e.number))
            price = entry.price or {}
            if self._folders.dominated(entry.map, price["low"]):
                self._open.remove(entry.number)
                self._folders.ended(entry, feasible=True)
                continue
            known = self._pricing.ask(entry.number, entry.architecture, measured=True)
            if known is None:
                return True
            self.take(entry.number, known)
        return False

    def measure_again(self) -> bool:
        """Measure a confirmed trial once more; whether one is being measured."""
        if not self._again:
            return False
        number = self._again.popleft()
        self._pricing.again(number, self._store[number].architecture)
        return True

    def take(self, number: int, price: Mapping[str, Any]) -> None:
        """A trained architecture is measured now, or measured again."""
        self._open.discard(number)
        self._settled(number, price)

    def give_up(self, number: int, reason: str) -> None:
        """It cannot be measured."""
        self._open.discard(number)
        log.warning("trial %d: its latency stays as it is: %s", number, reason)

    def leave(self) -> None:
        """No more can be measured: who was predicted to be on the front is, and a larger budget measures it first."""
        for number in sorted(self._open):
            log.warning("trial %d: its latency stays predicted: the budget has ended", number)
            self._folders.ended(self._store[number], feasible=True)
        self._open.clear()
