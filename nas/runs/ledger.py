"""The ledger: what a run has used of its budget, and whether one more trial still fits."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

from nas.config import Budget
from nas.runs.store import Store


class Ledger:
    """Reads what the store has charged; keeps the wall clock of this session and adds it to the store's.

    Device time counts every attempt of every trial, also failed and lost ones, and the measuring lane. Without a GPU a
    worker's cores are its device. Wall-clock time counts from the first attempt, over all sessions.
    """

    def __init__(self, budget: Budget, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self.budget = budget
        self._store, self._clock = store, clock
        self._written = 0.0
        self._began: float | None = None

    def begin(self) -> None:
        """The first attempt of this session starts."""
        self._began = self._began if self._began is not None else self._clock()

    @property
    def wall_seconds(self) -> float:
        """Over all sessions so far."""
        elapsed = self._clock() - self._began if self._began is not None else 0.0
        return self._store.seconds("wall") + elapsed - self._written

    def device_seconds(self, running: Sequence[float] | None = None) -> float:
        """Charged so far; where `running` says what the running attempts have used (seconds each), that counts for them."""
        charged = sum(entry.seconds for entry in self._store.entries) + self._store.seconds("lane")
        if running is None:
            return charged
        under_way = (e.attempts[-1]["seconds"] for e in self._store.entries if e.state == "running" and e.attempts)
        return charged + sum(running) - sum(map(float, under_way))

    def used(self, running: Sequence[float] | None = None) -> float:
        """In the budget's own unit: seconds, or finished trials."""
        if self.budget.kind == "trials":
            return self._store.counts["done"]
        return self.wall_seconds if self.budget.kind == "wall" else self.device_seconds(running)

    def fits(self, running: Sequence[float], waiting: int) -> bool:
        """Whether one more trial fits beside the running ones (seconds each) and `waiting` that are yet to start.

        A trial is expected to cost the median of those done; before the first is done, one fits if any budget is left.
        """
        if self.budget.kind == "trials":
            return self.used() + len(running) + waiting < self.budget.amount
        if self.exhausted(running):
            return False
        typical = self.typical_seconds()
        if self.budget.kind == "wall":
            return self.wall_seconds + typical <= self.budget.amount
        ahead = sum(max(0.0, typical - seconds) for seconds in running) + typical * (waiting + 1)
        return self.device_seconds(running) + ahead <= self.budget.amount

    def exhausted(self, running: Sequence[float]) -> bool:
        """Whether the budget is used up, so that running attempts must end too."""
        return self.budget.kind != "trials" and self.used(running) >= self.budget.amount

    def typical_seconds(self) -> float:
        """Median device seconds of a finished attempt; 0 before the first."""
        done = [entry.attempts[-1]["seconds"] for entry in self._store.entries if entry.state == "done" and entry.attempts]
        return float(statistics.median(done)) if done else 0.0

    def save(self) -> None:
        """Add this session's wall clock to the store, as far as it is not there yet."""
        if self._began is not None:
            elapsed = self._clock() - self._began
            self._store.add_seconds(wall=elapsed - self._written)
            self._written = elapsed
