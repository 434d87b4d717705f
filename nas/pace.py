"""How many alternatives learn together next, and when they are stopped, so that imitation keeps to its share of the budget.
No torch."""

from __future__ import annotations

import math

GROUP, FIRST_GROUP = 24, 4  # alternatives that learn together, at most, and before it is known what one costs
OVER = 0.25  # of its time that imitation may take more than that, for what has begun to end well


class Pace:
    """How many alternatives learn together next, so that the phase keeps to its time: a group that is stopped loses what its
    round had learned.

    Args:
        seconds: device seconds that the phase may take.
        workers: who learn side by side.
        used: what an earlier session has taken of them.
        each: what an alternative has taken there, if one has learned.
    """

    def __init__(self, seconds: float, workers: int, used: float, each: float = 0.0) -> None:
        self._left, self._workers, self._before = seconds - used, workers, each
        self._most = (1 + OVER) * seconds - used
        self._under_way = self._learned = 0
        self._cost = 0.0

    @property
    def each(self) -> float:
        """Device seconds that an alternative takes; 0 before one has learned."""
        return self._cost / self._learned if self._learned else self._before

    @property
    def over(self) -> bool:
        """Whether the time is used up."""
        return self._left <= 0

    def overrun(self, under_way: float) -> bool:
        """Whether those that learn now, for so many device seconds together, are to be stopped."""
        return under_way > self._most

    def group(self) -> int:
        """How many may begin now; 0 where there is no time for one, as far as is known by now. The first ones show what one
        costs."""
        if math.isinf(self._left):
            return GROUP
        if self.over:
            return 0
        if not self.each:
            return FIRST_GROUP
        room = self._left / self.each - self._under_way
        return min(GROUP, math.ceil(room / self._workers)) if room >= 1 else 0

    def begun(self, count: int) -> None:
        """So many begin to learn."""
        self._under_way += count

    def ended(self, count: int, cost: float, learned: bool) -> None:
        """So many have learned, or failed, at that many device seconds."""
        self._under_way -= count
        self._left -= cost
        self._most -= cost
        if learned:
            self._learned += count
            self._cost += cost
