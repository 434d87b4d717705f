"""What all trials of a run add up to, kept up to date trial by trial: the loop asks for it many times a second."""

from __future__ import annotations

from bisect import insort
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nas.runs.store import Entry


class Tally:
    """Sums over the trials.

    Attributes:
        counts: how many are in each state.
        ranked: how many have passed the lowest rung.
        charged: device seconds of all attempts.
        under_way: those of attempts that still run.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.ranked = 0
        self.charged = 0.0
        self.under_way = 0.0
        self._seconds: dict[int, list[float]] = defaultdict(list)
        self._validations: list[float] = []

    def change(self, before: Entry | None, after: Entry) -> None:
        """A trial is no longer `before` (None: it is new) but `after`."""
        if before is not None:
            self._count(before, -1)
        self._count(after, 1)
        ended = [attempt["seconds"] for attempt in after.attempts if attempt["outcome"] == "done"]
        known = 0 if before is None else len(before.results) + len(before.repeats)
        for place in range(known, min(len(ended), len(after.results) + len(after.repeats))):
            insort(self._seconds[min(place, len(after.results) - 1)], ended[place])
        if after.val is not None and (before is None or before.val is None):
            for attempt in after.attempts:
                if attempt["outcome"] == "validated":
                    insort(self._validations, attempt["seconds"])

    def typical_seconds(self, rung: int = 0) -> float:
        """Median device seconds of the attempts that have led to a rung; 0 before the first."""
        return _median(self._seconds.get(rung, []))

    @property
    def typical_validation(self) -> float:
        """Median device seconds of scoring kept weights on `val`; 0 before the first."""
        return _median(self._validations)

    def _count(self, entry: Entry, sign: int) -> None:
        self.counts[entry.state] += sign
        self.ranked += sign * bool(entry.results)
        self.charged += sign * entry.seconds
        if entry.attempts and entry.attempts[-1]["outcome"] == "running":
            self.under_way += sign * entry.attempts[-1]["seconds"]


def _median(known: Sequence[float]) -> float:
    """Of sorted numbers; 0 of none."""
    if not known:
        return 0.0
    middle = len(known) // 2
    return known[middle] if len(known) % 2 else (known[middle - 1] + known[middle]) / 2
