"""Signs of life from long work, so that whoever waits for it can tell what is slow from what hangs.

Loops that may run for minutes call `beat` in every round; a worker listens and passes one on every few seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

EVERY_SECONDS = 5.0


class _Heart:
    """Whom to tell, and when he was told last."""

    listener: Callable[[], None] | None = None
    told = 0.0


def beat() -> None:
    """The work goes on. Costs next to nothing where nobody listens."""
    if _Heart.listener is None or time.monotonic() - _Heart.told < EVERY_SECONDS:
        return
    _Heart.told = time.monotonic()
    _Heart.listener()


@contextmanager
def locked(path: str | Path, waiting: Callable[[], None] = beat) -> Iterator[None]:
    """Hold the lock file of `path`, `PATH.lock`. Who waits for it beats: whoever has it may be about something long."""
    from filelock import FileLock, Timeout  # noqa: PLC0415  (workers only)

    lock = FileLock(f"{path}.lock")
    while True:
        try:
            lock.acquire(timeout=EVERY_SECONDS)
            break
        except Timeout:
            waiting()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def listening(listener: Callable[[], None]) -> Iterator[None]:
    """Have `listener` called at a beat of this process, at most every few seconds. What it raises ends the work."""
    before, _Heart.listener, _Heart.told = _Heart.listener, listener, time.monotonic()
    try:
        yield
    finally:
        _Heart.listener = before
