"""Groups of alternatives that learn together, while there is time: as jobs for the executor. No torch."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nas.errands import Ended, Job, Jobs
from nas.errors import StoppedError
from nas.execution.executor import Failed, Lost, Result
from nas.execution.imitate import IMITATE, ImitateJob
from nas.imitation.alternatives import Alternative
from nas.imitation.library import Library
from nas.pace import OVER, Pace
from nas.post_mortem import class_of
from nas.runs.folder import resume_command
from nas.runs.ledger import Ledger
from nas.runs.store import Store

log = logging.getLogger("nas")

SAME_FAILURES = 3  # alternatives that fail alike, each on its own, before one has learned: going on is of no use


class Groups(Jobs):
    """A group is made when it is to begin: first what an earlier session was about, whose learning lies on disk, then as many
    alternatives as the phase has time for by then.

    Args:
        todo: who is to learn, in this order.
        pace: how many at a time, and for how long.
        common: the fields of a `TeacherJob`.
        library: where they come to lie.
        untried: whether nobody has learned from this teacher yet.
        wall: seconds of the wall clock that the phase may take: one slow group must not have all others wait for it.
    """

    def __init__(
        self,
        todo: Sequence[Alternative],
        pace: Pace,
        common: Mapping[str, Any],
        library: Library,
        store: Store,
        ledger: Ledger,
        folder: Path,
        *,
        untried: bool,
        wall: float = math.inf,
    ) -> None:
        by_key = {each.key: each for each in todo}
        begun = [[by_key.pop(key) for key in keys if key in by_key] for keys in store.fact("learning") or []]
        super().__init__([])
        self._begun, self._rest = deque(group for group in begun if group), deque(by_key.values())
        self._pace, self._common, self._library = pace, common, library
        self._store, self._ledger, self._folder = store, ledger, folder
        self._failures: dict[str, str] | None = {} if untried else None  # key -> how it failed; None once one has learned
        self._wall, self._began, self._before = wall, ledger.wall_seconds, float(store.fact("imitation_wall") or 0.0)

    @property
    def over(self) -> bool:
        return self._pace.over or self._waited >= self._wall

    @property
    def _waited(self) -> float:
        """Seconds of the wall clock that the phase has taken, in all sessions."""
        return self._before + self._ledger.wall_seconds - self._began

    def next(self) -> Job | None:
        if self.over:
            return None
        if self._begun:
            group = self._begun.popleft()
        else:
            group = [self._rest.popleft() for _ in range(min(self._pace.group(), len(self._rest)))]
        return self._job(group) if group else None

    def begins(self, job: Job) -> None:
        self._pace.begun(len(job[1]["alternatives"]))

    def running(self, jobs: Sequence[Job]) -> None:
        """After a kill the same groups go on, since what they have learned is known by the group."""
        self._store.put_fact("learning", [[Alternative.of(plain).key for plain in job[1]["alternatives"]] for job in jobs])

    def too_long(self, own: float, all_: float) -> bool:  # noqa: ARG002  (they have one share together)
        return self._pace.overrun(self._ledger.cost(all_)) or self._waited > (1 + OVER) * self._wall

    def ended(self, job: Job, seconds: float, event: Ended | None) -> None:
        count = len(job[1]["alternatives"])
        if event is None:
            log.warning("imitate: its share of the budget is used up: %d alternatives were stopped", count)
        # who was stopped tells how much one takes at least; who failed tells nothing
        cost = self._ledger.cost(seconds)
        more = event is None and cost > count * self._pace.each
        self._pace.ended(count, cost, learned=more or isinstance(event, Result))
        self._store.put_fact("alternative_seconds", self._pace.each)
        self._store.put_fact("imitation_wall", self._waited)
        self._failures = None if isinstance(event, Result) else self._failures

    def instead(self, job: Job, event: Failed | Lost) -> list[Job]:
        """What is left of a group whose work failed, in two parts; an alternative that fails alone is dropped."""
        group = [Alternative.of(plain) for plain in job[1]["alternatives"]]
        left = self._library.missing(group)
        if len(left) < len(group):
            self._failures = None
        if len(left) == 1:
            self._count_failure(left[0].key, event)
            self._store.put_fact("dropped", {**(self._store.fact("dropped") or {}), left[0].key: event.reason})
            log.warning("layer %d: %s was dropped: %s", left[0].layer, left[0].module, event.reason)
            return []
        log.warning("imitate: %s: %d alternatives are tried in two parts", event.reason, len(left))
        parts = left[: len(left) // 2], left[len(left) // 2 :]
        return [self._job(part) for part in parts if part]

    def _job(self, group: Sequence[Alternative]) -> Job:
        plain = [each.plain() for each in group]
        return IMITATE, asdict(ImitateJob(**self._common, alternatives=plain, library=str(self._library.folder)))

    def _count_failure(self, key: str, event: Failed | Lost) -> None:
        """Whose fault is it? Where all that learn fail alike, not theirs: then none of them is dropped. Raises StoppedError."""
        if self._failures is None:
            return
        kind = class_of(event)
        self._failures[key] = event.reason if kind == "failed" else kind
        if len(self._failures) >= SAME_FAILURES and len(set(self._failures.values())) == 1:
            dropped = self._store.fact("dropped") or {}
            self._store.put_fact("dropped", {k: why for k, why in dropped.items() if k not in self._failures})
            what = f"the first {len(self._failures)} alternatives that were to learn failed alike: {event.reason}"
            raise StoppedError(what, f"see {self._folder / 'workers'}; then: {resume_command(self._folder)}")
