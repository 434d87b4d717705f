"""The ledger: what a run has used of its budget, and whether one more trial still fits."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

from nas.config import Budget
from nas.runs.store import Store

ROUNDING = 1e-6  # seconds: who waits until the budget ends may wake a rounding error before
CLOCKS = ("lane", "teach", "imitate")  # device seconds of no single trial: measuring, the teacher, the library


class Ledger:
    """Reads what the store has charged; keeps the wall clock of this session and adds it to the store's.

    Device time counts every attempt of every trial, also failed and lost ones, and the measuring lane: GPUs times seconds, a
    quarter of a GPU for 40 s as 10, two GPUs for 40 s as 80. Without a GPU a worker's cores are its device. Wall-clock time
    counts from the first attempt, over all sessions.

    Args:
        held: GPUs that each running attempt of a trial holds.
        clock: seconds, of which only differences count.
    """

    def __init__(self, budget: Budget, store: Store, held: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.budget = budget
        self._held = held
        self._store, self._clock = store, clock
        self._written = 0.0
        self._began: float | None = None
        self.measuring: Callable[[], float] = lambda: 0.0  # device seconds of the lane that are not charged yet

    def cost(self, seconds: float) -> float:
        """Device seconds of an attempt that runs, or ran, so long in this session."""
        return self._held * seconds

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
        tally = self._store.tally
        charged = tally.charged + sum(self._store.seconds(clock) for clock in CLOCKS)
        return charged if running is None else charged + self.cost(sum(running)) - tally.under_way + self.measuring()

    def used(self, running: Sequence[float] | None = None) -> float:
        """In the budget's own unit: seconds, or trials that have passed the lowest rung."""
        if self.budget.kind == "trials":
            return self._store.tally.ranked
        return self.wall_seconds if self.budget.kind == "wall" else self.device_seconds(running)

    def fits(
        self,
        running: Sequence[float],
        waiting: int,
        *,
        fresh: int | None = None,
        seconds: float | None = None,
        reserve: float = 0.0,
    ) -> bool:
        """Whether one more trial fits beside the running ones (seconds each) and `waiting` that are yet to start.

        A trial is expected to cost the median of those done, in device seconds; before the first is done, one fits if any
        budget is left.

        Args:
            fresh: how many of the running ones have not passed the lowest rung; all where None.
            seconds: device seconds that it is expected to cost, where it is no new trial; such are not counted in a budget
                of trials.
            reserve: seconds of the budget that are to stay.
        """
        if self.budget.kind == "trials":
            return (
                seconds is not None or self.used() + (len(running) if fresh is None else fresh) + waiting < self.budget.amount
            )
        if self.exhausted(running):
            return False
        typical = self._store.tally.typical_seconds()
        own = typical if seconds is None else seconds
        if self.budget.kind == "wall":
            return self.wall_seconds + own / self._held + reserve <= self.budget.amount
        ahead = sum(max(0.0, typical - self.cost(elapsed)) for elapsed in running) + typical * waiting + own
        return self.device_seconds(running) + ahead + reserve <= self.budget.amount

    def exhausted(self, running: Sequence[float], share: float = 1.0) -> bool:
        """Whether the budget, or a `share` of it, is used up, so that running attempts must end too."""
        return self.budget.kind != "trials" and self.used(running) >= share * self.budget.amount - ROUNDING

    def time_left(self, attempts: int, running: Sequence[float], share: float = 1.0) -> float:
        """Seconds until a `share` of the budget is used up, if nothing but so many running attempts (seconds each so far) use
        it."""
        rate = self.cost(attempts) + bool(self.measuring()) if self.budget.kind == "device" else 1
        if self.budget.kind == "trials" or not rate:
            return math.inf
        return (share * self.budget.amount - self.used(running)) / rate

    def ends_in(self, workers: int, running: Sequence[float]) -> float | None:
        """Seconds until the budget is used up, if it goes on as it has gone; None as long as nobody can tell."""
        if self.budget.kind == "trials":
            typical = self._store.tally.typical_seconds()
            return (self.budget.amount - self.used()) * typical / self.cost(workers) if typical else None
        left = self.time_left(len(running), running)
        return None if math.isinf(left) else left

    def save(self) -> None:
        """Add this session's wall clock to the store, as far as it is not there yet."""
        if self._began is not None:
            elapsed = self._clock() - self._began
            self._store.add_seconds(wall=elapsed - self._written)
            self._written = elapsed
