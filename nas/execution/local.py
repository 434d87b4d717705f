"""The executor of one host: warm child processes, and a lane in which latency is measured while the others stand still."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from nas.errors import UnreachableError
from nas.execution.executor import Attempt, Event
from nas.execution.process import Inbox, WorkerProcess

MAX_STILLBORN = 3


class LocalExecutor:
    """Runs attempts in child processes of this host; see `nas.execution.executor.Executor`.

    Args:
        environments: environment variables of each worker, so as many workers; `lane_environment` those of the lane.
        logs: folder for the workers' output.
        on_quiet: told True when this host must be still because the lane times something, and False afterwards.
    """

    def __init__(
        self,
        environments: Sequence[Mapping[str, str]],
        lane_environment: Mapping[str, str],
        logs: Path,
        on_quiet: Callable[[bool], None] | None = None,
    ) -> None:
        self._inbox: Inbox = queue.SimpleQueue()
        self._environments, self._lane_environment, self._logs = environments, lane_environment, logs
        self._workers: list[WorkerProcess | None] = [None] * len(environments)
        self._lane: WorkerProcess | None = None
        self._pausing = threading.Lock()
        self.quiet = False
        self._on_quiet = on_quiet
        self._stillborn = 0

    @property
    def free(self) -> int:
        return sum(worker is None or worker.attempt is None for worker in self._workers)

    @property
    def lane_free(self) -> bool:
        return self._lane is None or self._lane.attempt is None

    def start(self, attempt: Attempt) -> None:
        if attempt.quiet:
            if not self.lane_free:
                raise RuntimeError("the measuring lane is taken")
            self._lane = self._lane or WorkerProcess(
                self._inbox, self._lane_environment, self._logs / "lane.log", on_quiet=lambda: self._set_quiet(True)
            )
            self._lane.send(attempt)
            return
        index = next((i for i, w in enumerate(self._workers) if w is None or w.attempt is None), None)
        if index is None:
            raise RuntimeError("no worker is free")
        worker = self._workers[index] or WorkerProcess(
            self._inbox, self._environments[index], self._logs / f"worker{index}.log"
        )
        self._workers[index] = worker
        with self._pausing:
            worker.resume()  # who stands still does not read, and a large attempt would never be sent
            worker.send(attempt)
            if self.quiet:
                worker.pause()

    def poll(self, timeout: float) -> list[Event]:
        """Raises UnreachableError when workers die before they are ready, again and again."""
        events: list[Event] = []
        with contextlib.suppress(queue.Empty):
            message = self._inbox.get(timeout=timeout)
            while True:
                event = self._take(*message)
                events += [event] if event else []
                message = self._inbox.get_nowait()
        return events

    def stop(self, key: str) -> float:
        for worker in (*self._workers, self._lane):
            if worker and worker.attempt and worker.attempt.key == key:
                seconds = worker.seconds
                worker.kill()
                self._forget(worker)
                return seconds
        return 0.0

    def close(self) -> None:
        for worker in (*self._workers, self._lane):
            if worker:
                worker.kill()
        self._workers = [None] * len(self._workers)
        self._lane = None
        self._set_quiet(False)

    def _take(self, worker: WorkerProcess, message: Mapping[str, object]) -> Event | None:
        if worker.stopped:
            return None
        event = worker.event(message)
        if message["event"] == "ready":
            self._stillborn = 0
            with self._pausing:
                if self.quiet and worker is not self._lane:
                    worker.pause()
        if message["event"] == "end":
            self._stillborn += not worker.ready
            self._forget(worker)
            if self._stillborn >= MAX_STILLBORN:
                raise UnreachableError(
                    f"{MAX_STILLBORN} workers in a row ended before they were ready", f"read the logs in {self._logs}"
                )
        elif worker is self._lane and worker.attempt is None:
            self._set_quiet(False)
        return event

    def _forget(self, worker: WorkerProcess) -> None:
        """Drop a dead worker; the next start makes a new one."""
        if worker is self._lane:
            self._lane = None
            self._set_quiet(False)
        self._workers = [None if w is worker else w for w in self._workers]

    def _set_quiet(self, quiet: bool) -> None:
        with self._pausing:
            if quiet == self.quiet:
                return
            self.quiet = quiet
            for worker in self._workers:
                if worker:
                    (worker.pause if quiet else worker.resume)()
            if self._on_quiet:
                self._on_quiet(quiet)
