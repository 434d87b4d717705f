"""The contract between the study, which decides, and the executors, which run. The study never learns how or where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Attempt:
    """One execution of something, as plain JSON-able data.

    `kind` is the function that does it, "module:function", called as `function(payload, seed, progress)` in a worker.
    `quiet` asks for the measuring lane: one at a time, and while it times, no other attempt of this host runs.
    `log` is a file of this host that what it prints is appended to; without one it goes to the log of its worker.
    """

    key: str
    kind: str
    payload: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    quiet: bool = False
    log: str | None = None


@dataclass(frozen=True)
class Progress:
    """An attempt is alive; `seconds` since it began to run."""

    key: str
    data: Mapping[str, Any]
    seconds: float


@dataclass(frozen=True)
class Result:
    """An attempt ended well with plain data."""

    key: str
    data: Mapping[str, Any]
    seconds: float


@dataclass(frozen=True)
class Failed:
    """An attempt raised. `reason` is one line, `detail` its last lines for the post-mortem."""

    key: str
    reason: str
    seconds: float
    detail: str = ""


@dataclass(frozen=True)
class Lost:
    """A worker died under an attempt; nothing says that the attempt itself is at fault. `detail`: the last that it printed."""

    key: str
    reason: str
    seconds: float
    detail: str = ""


Event = Progress | Result | Failed | Lost


class Executor(Protocol):
    """Runs attempts.

    Life of an attempt: `start` while `free` (or `lane_free` for a quiet one) is above 0; `poll` then yields any number of
    Progress and exactly one of Result, Failed or Lost, unless `stop` was called, after which nothing more comes.
    Seconds count from the moment when a ready worker begins.
    """

    @property
    def free(self) -> int:
        """How many more attempts can start now; 0 also while no worker is there, of which `poll` knows more later."""
        ...

    @property
    def lane_free(self) -> bool:
        """Whether a quiet attempt can start now."""
        ...

    def start(self, attempt: Attempt) -> None:
        """Begin an attempt. Raises RuntimeError when there is no room."""
        ...

    def poll(self, timeout: float) -> list[Event]:
        """What happened since the last call; waits up to `timeout` seconds for the first event."""
        ...

    def stop(self, key: str) -> float:
        """End an attempt at once and return the seconds it ran. Unknown keys return 0."""
        ...

    def close(self) -> None:
        """End everything; no process stays behind."""
        ...
