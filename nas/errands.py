"""Work that is no trial's: jobs side by side on the executor, charged as they run, done again where they are lost. No torch."""

from __future__ import annotations

import itertools
import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nas.errors import StartError, StoppedError
from nas.execution.executor import Attempt, Executor, Failed, Lost, Progress, Result
from nas.post_mortem import disk_full
from nas.pricing import POLL_SECONDS
from nas.runs.folder import resume_command
from nas.runs.ledger import Ledger
from nas.runs.store import Store
from nas.seeds import derive

log = logging.getLogger("nas")

TRIES = 3
Job = tuple[str, Mapping[str, Any]]  # the kind of work and its payload
Ended = Result | Failed | Lost


class Jobs:
    """What is to be done, one after the other.

    Args:
        jobs: the work.
        most: seconds after which one of them is stopped; it has no result then.
        vital: whether all of it is to end well; what fails has no result otherwise.
    """

    def __init__(self, jobs: Iterable[Job], most: float = math.inf, *, vital: bool = True) -> None:
        self._left, self._most, self._vital = deque(jobs), most, vital

    @property
    def over(self) -> bool:
        """Whether the time for them is over: what is lost is not done again then."""
        return False

    def next(self) -> Job | None:
        """What begins now that a worker is free; None where nothing is left, or there is no time for it beside what runs."""
        return self._left.popleft() if self._left else None

    def begins(self, job: Job) -> None:
        """One begins, or begins again."""

    def running(self, jobs: Sequence[Job]) -> None:
        """These run now."""

    def too_long(self, own: float, all_: float) -> bool:  # noqa: ARG002  (a group's share is that of all)
        """Whether one is to be stopped that runs for `own` seconds, all that run together for `all_`."""
        return own > self._most

    def ended(self, job: Job, seconds: float, event: Ended | None) -> None:
        """One has ended after so many seconds; None: it was stopped."""

    def instead(self, job: Job, event: Failed | Lost) -> list[Job] | None:
        """What is done instead of one that failed; None where nothing can be. Raises StoppedError."""
        if self._vital:
            return None
        log.warning("%s failed, and is left out: %s", job[0], event.reason)
        return []


class Errands:
    """Runs jobs for a search.

    Attributes:
        wait: called with the phase, at least twice a second.
        stopping: whether somebody asked to stop.
    """

    def __init__(self, store: Store, ledger: Ledger, executor: Executor, folder: Path, seed: int) -> None:
        self._store, self._ledger, self._executor, self._folder, self._seed = store, ledger, executor, folder, seed
        self._charged: dict[str, float] = {}
        self._keys = itertools.count()
        self.wait: Callable[[str], None] = lambda _: None
        self.stopping: Callable[[], bool] = lambda: False

    def done(self, phase: str, jobs: Jobs) -> list[dict[str, Any]] | None:
        """Run jobs side by side and return their results; None where somebody asked to stop.

        Raises:
            StartError: a result says what is wrong with what was asked.
            StoppedError: the budget has ended, the disk is full, or a job fails.
        """
        again: list[tuple[Job, int]] = []
        running: dict[str, tuple[Job, int]] = {}
        results: list[dict[str, Any]] = []
        while True:
            if jobs.over:
                again.clear()
            while self._executor.free > 0 and not self.stopping():
                job, count = again.pop(0) if again else (jobs.next(), 1)
                if job is None:
                    break
                attempt = Attempt(f"{phase}{next(self._keys)}", job[0], job[1], derive(self._seed, 0, phase))
                running[attempt.key] = job, count
                jobs.begins(job)
                jobs.running([each for each, _ in running.values()])
                self._executor.start(attempt)
            if not running and (self._executor.free or self.stopping()):
                return None if self.stopping() else results
            self.wait(phase)
            if self._ledger.exhausted(()):
                for key in running:
                    self._charge(phase, key, self._executor.stop(key))
                more = f"{resume_command(self._folder)} --add-budget {'1h' if self._ledger.budget.kind == 'wall' else '1gpu-h'}"
                hint = f"give more, for example: {more}; or search anew --from-scratch"
                raise StoppedError(f"the budget ended in the phase '{phase}'", hint)
            events = self._executor.poll(POLL_SECONDS)
            over = {event.key for event in events if not isinstance(event, Progress)}
            for event in events:
                if event.key not in running:
                    continue
                self._charge(phase, event.key, event.seconds)
                if isinstance(event, Progress):
                    together = sum(self._charged.get(key, 0.0) for key in running)
                    if event.key not in over and jobs.too_long(event.seconds, together):
                        seconds = max(event.seconds, self._executor.stop(event.key))
                        self._charge(phase, event.key, seconds)
                        jobs.ended(running.pop(event.key)[0], seconds, None)
                        jobs.running([each for each, _ in running.values()])
                    continue
                job, count = running.pop(event.key)
                jobs.ended(job, event.seconds, event)
                jobs.running([each for each, _ in running.values()])
                if isinstance(event, Result):
                    results.append(_sound(event))
                else:
                    again[:0] = self._again(phase, jobs, job, count, event)

    def _again(self, phase: str, jobs: Jobs, job: Job, count: int, event: Failed | Lost) -> list[tuple[Job, int]]:
        """What is done about one that was lost or failed."""
        if disk_full(event):
            what = f"the phase '{phase}' found no room on the disk: {event.reason}"
            raise StoppedError(what, f"make room, then: {resume_command(self._folder)}")
        if isinstance(event, Lost) and count < TRIES:
            log.warning("%s: lost (%s): tried again", phase, event.reason)
            return [(job, count + 1)]
        if (instead := jobs.instead(job, event)) is None:
            raise StoppedError(f"the phase '{phase}' failed: {event.reason}", f"see {self._folder / 'workers'}")
        return [(each, 1) for each in instead]

    def _charge(self, phase: str, key: str, seconds: float) -> None:
        """What an attempt has used since the last time."""
        self._store.add_seconds(**{phase: self._ledger.cost(max(0.0, seconds - self._charged.get(key, 0.0)))})
        self._charged[key] = seconds


def _sound(event: Result) -> dict[str, Any]:
    if "fault" in event.data:
        raise StartError(event.data["fault"], event.data["cure"])
    return dict(event.data)
