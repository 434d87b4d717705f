"""Runs attempts in virtual time: nothing is computed, the clock leaps to whatever happens next.

An attempt's payload says how it ends: `seconds` that it takes, and the `data` of its result. Faults are added to that, each
drawn from (seed, attempt).
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from nas.errors import UnreachableError
from nas.execution.executor import Attempt, Event, Failed, Lost, Progress, Result
from nas.seeds import derive

SIMULATE = "simulate"  # the kind of an attempt that nobody runs
REPORT_SECONDS = 60.0
ENDED = "ended"  # what every result says beside its data: when it came, in virtual seconds


@dataclass
class Clock:
    """Virtual time in seconds, from 0."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Leave:
    """So many workers go away at `at` seconds, and as many come back at `back`; never where None."""

    at: float
    workers: int
    back: float | None = None


@dataclass(frozen=True)
class Faults:
    """Shares of attempts that fail, lose their worker, or hang, and workers that leave."""

    fail: float = 0.0
    lose: float = 0.0
    hang: float = 0.0
    leave: tuple[Leave, ...] = ()


class SimulatedExecutor:
    """`nas.execution.executor.Executor` over a clock.

    Args:
        clock: that `poll` moves on.
        workers: attempts at once.
        faults: what goes wrong.
        seed: of what goes wrong with which attempt.
    """

    def __init__(self, clock: Clock, workers: int, faults: Faults, seed: int) -> None:
        self._clock, self._faults, self._seed = clock, faults, seed
        self._workers = workers
        self._began: dict[str, float] = {}  # by attempt, in the order of their starts
        self._ends: dict[str, int] = {}  # the order of what is to come of each
        self._order = itertools.count()
        # (when, order, what): an event, or by how many the workers change
        self._coming: list[tuple[float, int, Event | int]] = []
        self._busy = self._offered = 0.0
        self._counted = clock.now
        for leave in faults.leave:
            self._plan(leave.at, -leave.workers)
            if leave.back is not None:
                self._plan(leave.back, leave.workers)

    @property
    def free(self) -> int:
        return max(0, self._workers - len(self._began))

    @property
    def lane_free(self) -> bool:
        return True

    @property
    def busy(self) -> float:
        """The share of the workers' time that they have worked, up to now."""
        return self.worked / self._offered if self._offered else 0.0

    @property
    def worked(self) -> float:
        """Seconds that all workers together have worked, up to now."""
        self._count()
        return self._busy

    def start(self, attempt: Attempt) -> None:
        if attempt.kind != SIMULATE or not self.free:
            raise RuntimeError("no room" if attempt.kind == SIMULATE else f"{attempt.kind} cannot be simulated")
        self._count()
        self._began[attempt.key] = self._clock.now
        seconds, event = self._fate(attempt)
        if event is None:
            return  # it hangs
        self._ends[attempt.key] = self._plan(self._clock.now + seconds, event)
        if self._faults.hang:  # signs of life, where some give none
            self._plan(self._clock.now + REPORT_SECONDS, Progress(attempt.key, {}, self._clock.now))

    def poll(self, timeout: float) -> list[Event]:
        """What happens next, within `timeout` seconds of virtual time; without limit, whatever comes first."""
        until = self._clock.now + timeout
        events: list[Event] = []
        while self._coming and self._coming[0][0] <= until:
            when, order, what = heapq.heappop(self._coming)
            if not self._still_to_come(what, order):
                continue  # it was stopped, or has lost its worker
            self._clock.now = max(self._clock.now, when)
            self._count()
            events += self._happen(what)
            if events or isinstance(what, int):  # workers that come back are to be used
                until = self._clock.now
        if not events and math.isinf(until):  # none but those that hang, with nobody to end them
            raise UnreachableError("all workers have left and none will come back", "see leave in the faults file")
        self._clock.now = self._clock.now if events else until
        return events

    def stop(self, key: str) -> float:
        self._count()
        return self._forget(key)

    def close(self) -> None:
        self._began.clear()
        self._ends.clear()
        self._coming.clear()

    def _plan(self, when: float, what: Event | int) -> int:
        order = next(self._order)
        heapq.heappush(self._coming, (when, order, what))
        return order

    def _forget(self, key: str) -> float:
        """An attempt runs no more; the seconds that it ran, 0 for an unknown one."""
        self._ends.pop(key, None)
        return self._clock.now - self._began.pop(key, self._clock.now)

    def _fate(self, attempt: Attempt) -> tuple[float, Event | None]:
        """After how many seconds an attempt ends, and how; None where it never does."""
        seconds = float(attempt.payload["seconds"])
        if self._faults.fail or self._faults.lose or self._faults.hang:
            rng = random.Random(derive(self._seed, attempt.seed, attempt.key))
            drawn, part = rng.random(), rng.random() * seconds
            if drawn < self._faults.fail:
                return part, Failed(attempt.key, "simulated failure", part)
            if drawn < self._faults.fail + self._faults.lose:
                return part, Lost(attempt.key, "simulated loss of its worker", part)
            if drawn < self._faults.fail + self._faults.lose + self._faults.hang:
                return math.inf, None
        return seconds, Result(attempt.key, attempt.payload["data"], seconds)

    def _still_to_come(self, what: Event | int, order: int) -> bool:
        """Whether what was planned still happens. What is planned of a sign of life says when its attempt began."""
        if isinstance(what, Progress):
            return self._began.get(what.key) == what.seconds
        return isinstance(what, int) or self._ends.get(what.key) == order

    def _happen(self, what: Event | int) -> list[Event]:
        if isinstance(what, int):
            return self._change(what)
        if isinstance(what, Progress):
            self._plan(self._clock.now + REPORT_SECONDS, what)
            return [replace(what, seconds=self._clock.now - what.seconds)]
        return [self._end(what)]

    def _end(self, event: Event) -> Event:
        self._forget(event.key)
        return replace(event, data={**event.data, ENDED: self._clock.now}) if isinstance(event, Result) else event

    def _change(self, workers: int) -> list[Event]:
        """Workers come, or go: of those that go, the ones that began last lose what they do."""
        self._workers += workers  # below 0 where more leave than there are: so many fewer come back
        lost: Sequence[str] = list(self._began)[max(0, self._workers) :]
        return [Lost(key, "simulated loss of its host", self._forget(key)) for key in lost]

    def _count(self) -> None:
        """Add up the workers' time since the last change."""
        passed = self._clock.now - self._counted
        self._busy += passed * len(self._began)
        self._offered += passed * max(0, self._workers, len(self._began))
        self._counted = self._clock.now
