"""An executor that ends what hangs: an attempt that has given no sign of life for too long is lost.

Work reports its epochs, and beats meanwhile (`nas.alive`). What has been silent for ten minutes, or for five times the median
epoch of all attempts so far where that is longer, is stopped with everything it has started.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left, insort
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

from nas.execution.executor import Attempt, Event, Executor, Lost, Progress

SILENT_SECONDS, SILENT_EPOCHS = 600.0, 5
ASLEEP_SECONDS = 60.0  # of which nobody has polled: this process stood still, and could not have heard
EPOCHS = 1000  # the latest of so many count
ROUNDING = 1e-6  # of a clock that is told to leap to a moment
HUNG = "no sign of life for"


@dataclass
class _Heard:
    """Of one attempt: when it was heard last, and when it had ended which epoch."""

    last: float
    epoch: int = 0
    at: float | None = None


class Watched:
    """Runs attempts in another executor; see `nas.execution.executor.Executor`.

    Args:
        executor: who runs.
        clock: seconds, of which only differences count.
        silent: how long an attempt may be silent whatever an epoch takes.
    """

    def __init__(self, executor: Executor, clock: Callable[[], float] = time.monotonic, silent: float = SILENT_SECONDS) -> None:
        self._executor, self._clock, self._silent = executor, clock, silent
        self._heard: OrderedDict[str, _Heard] = OrderedDict()  # who has been silent for longest comes first
        self._epochs: list[float] = []  # sorted
        self._latest: deque[float] = deque()
        self._polled = clock()

    @property
    def free(self) -> int:
        return self._executor.free

    @property
    def lane_free(self) -> bool:
        return self._executor.lane_free

    @property
    def limit(self) -> float:
        """Seconds of silence that nobody survives."""
        median = self._epochs[len(self._epochs) // 2] if self._epochs else 0.0
        return max(self._silent, SILENT_EPOCHS * median)

    def start(self, attempt: Attempt) -> None:
        self._executor.start(attempt)
        self._heard[attempt.key] = _Heard(self._clock())

    def poll(self, timeout: float) -> list[Event]:
        self._forgive()
        events = self._executor.poll(min(timeout, self._left))
        self._polled = now = self._clock()
        for event in events:
            self._hear(event, now)
        return [*events, *self._ended(now)]

    def stop(self, key: str) -> float:
        self._heard.pop(key, None)
        return self._executor.stop(key)

    def close(self) -> None:
        self._heard.clear()
        self._executor.close()

    @property
    def _left(self) -> float:
        """Seconds until the next attempt may have to be ended."""
        if not self._heard:
            return math.inf
        longest = next(iter(self._heard.values()))
        return max(0.0, longest.last + self.limit - self._clock())

    def _forgive(self) -> None:
        """Whoever was not heard because nobody listened, for this process or the whole machine stood still, is not to blame."""
        missed = self._clock() - self._polled
        if missed > ASLEEP_SECONDS:
            for heard in self._heard.values():
                heard.last += missed

    def _hear(self, event: Event, now: float) -> None:
        if not isinstance(event, Progress):
            self._heard.pop(event.key, None)
            return
        heard = self._heard.get(event.key)
        if heard is None:
            return
        heard.last = now
        self._heard.move_to_end(event.key)
        epoch = int(event.data.get("epoch", 0))
        if epoch > heard.epoch:
            if heard.at is not None:
                self._took((event.seconds - heard.at) / (epoch - heard.epoch))
            heard.epoch, heard.at = epoch, event.seconds

    def _took(self, seconds: float) -> None:
        """An epoch took so long."""
        if len(self._latest) == EPOCHS:
            self._epochs.pop(bisect_left(self._epochs, self._latest.popleft()))
        self._latest.append(seconds)
        insort(self._epochs, seconds)

    def _ended(self, now: float) -> list[Event]:
        """Who has been silent for too long is ended, and is lost."""
        found: list[Event] = []
        while self._heard and next(iter(self._heard.values())).last + self.limit <= now + ROUNDING:
            key, heard = self._heard.popitem(last=False)
            seconds = self._executor.stop(key)
            found.append(Lost(key, f"{HUNG} {(now - heard.last) / 60:.0f} min: it was ended", seconds))
        return found
