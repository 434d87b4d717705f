"""Watching executors and their workers from outside."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from nas.execution.executor import Attempt, Event, Executor, Progress

# so that workers find `attempts.py`, beside what this process was told to find
_PATHS = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
WORKER = {"PYTHONPATH": os.pathsep.join(_PATHS), "OMP_NUM_THREADS": "1"}
PATIENCE = 120  # seconds; only ends tests that would hang


def wait_until(true: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        if time.monotonic() > deadline:
            pytest.fail(f"waited in vain: {what}")
        time.sleep(0.01)


def heard(executor: Executor, timeout: float) -> list[Event]:
    """The events of a poll, without those that only say that an attempt lives: when they come depends on the time."""
    return [event for event in executor.poll(timeout) if not (isinstance(event, Progress) and not event.data)]


def events_of(executor: Executor, *keys: str) -> dict[str, list[Event]]:
    """All events until each key has ended, by key; nothing else may come."""
    events: dict[str, list[Event]] = {key: [] for key in keys}
    deadline = time.monotonic() + PATIENCE
    while any(not seen or isinstance(seen[-1], Progress) for seen in events.values()):
        if time.monotonic() > deadline:
            pytest.fail(f"no end of {keys}: {events}")
        for event in heard(executor, 0.5):
            events[event.key].append(event)
    return events


def room(executor: Executor, free: int = 1) -> None:
    """Wait until so many attempts can start: the place of a worker that has ended may need a while. Nothing else happens."""

    def there() -> bool:
        return executor.free >= free or (heard(executor, 0.02) == [] and executor.free >= free)

    wait_until(there, f"{free} workers are free")


def end_of(executor: Executor, attempt: Attempt) -> Event:
    """Start an attempt as soon as it can and wait for its only event."""
    if not attempt.quiet:
        room(executor)
    executor.start(attempt)
    (event,) = events_of(executor, attempt.key)[attempt.key]
    return event


def alive(pid: int) -> bool:
    """Whether a process runs or stands still; a dead one that nobody has collected does not count."""
    try:
        os.kill(pid, 0)
        status = Path(f"/proc/{pid}/stat")
        return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


@dataclass(frozen=True)
class Ticker:
    """An attempt that counts in its folder, seen from outside."""

    folder: Path
    attempt: Attempt

    @property
    def count(self) -> int:
        path = self.folder / "count"
        return int(path.read_text()) if path.exists() else -1

    @property
    def pid(self) -> int:
        return int((self.folder / "pid").read_text())

    @property
    def host(self) -> str:
        """The address of its Ray node."""
        return (self.folder / "node").read_text()

    def wait(self) -> None:
        """Until it counts further than now."""
        before = self.count
        wait_until(lambda: self.count > before, f"{self.attempt.key} counts")

    def still(self) -> bool:
        """Whether it does not count during a while."""
        time.sleep(0.05)
        before = self.count
        time.sleep(0.2)
        return self.count == before

    def end(self) -> None:
        (self.folder / "end").touch()
