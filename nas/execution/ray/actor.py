"""A worker that is a Ray actor, and its driver's view of it."""

from __future__ import annotations

import contextlib
import os
import platform
import queue
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray

from nas.execution.executor import Attempt, Event, Failed, Progress, Result
from nas.execution.process import as_message
from nas.execution.ray.cluster import Needs


def this_host() -> str:
    """What tells hosts, and containers of one host, apart: where this is equal, process ids mean the same."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}-{Path('/proc/self/ns/pid').stat().st_ino}"
    return platform.node()


@ray.remote(max_concurrency=3)
class Actor:
    """A worker: `run` in one thread, `news` in another, `leave` in a third."""

    def __init__(self) -> None:
        from nas.execution.worker import run_attempt  # noqa: PLC0415  (in the actor's process)

        self._run_attempt = run_attempt
        self._messages: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def where(self) -> tuple[int, str, str]:
        """Its process, node and host."""
        return os.getpid(), ray.get_runtime_context().get_node_id(), this_host()

    def run(self, attempt: dict[str, Any]) -> None:
        self._run_attempt(attempt, self._messages.put, lambda: None)

    def news(self) -> list[dict[str, Any]]:
        """The messages since the last call; waits for the first."""
        return [self._messages.get(), *(self._messages.get_nowait() for _ in range(self._messages.qsize()))]

    def leave(self) -> None:
        """End at once, whatever runs: needs no head."""
        os._exit(0)


class Slot:
    """One actor as the driver sees it. It has a `node` once it is up."""

    def __init__(self, needs: Needs, environment: Mapping[str, str]) -> None:
        # Ray itself shows each actor its own GPUs.
        variables = {k: v for k, v in environment.items() if k != "CUDA_VISIBLE_DEVICES"}
        actor: Any = Actor
        options = {"num_cpus": needs.cores, "num_gpus": needs.gpus, "runtime_env": {"env_vars": variables}}
        self.handle = actor.options(**options).remote()
        self._where: Any = self.handle.where.remote()
        self.node: str | None = None
        self._pid: int | None = None  # only of one on this host
        self.attempt: Attempt | None = None
        self._run: Any = None
        self._news: Any = None
        self._began = 0.0

    @property
    def up(self) -> bool:
        return self.node is not None

    @property
    def pending(self) -> list[Any]:
        """What the driver may wait for."""
        return [call for call in (self._where, self._run, self._news) if call is not None]

    @property
    def seconds(self) -> float:
        """How long the present attempt has run."""
        return time.monotonic() - self._began if self.attempt else 0.0

    def start(self, attempt: Attempt) -> None:
        self.attempt, self._began = attempt, time.monotonic()
        self._run, self._news = self.handle.run.remote(as_message(attempt)), self.handle.news.remote()

    def rises(self) -> bool:
        """Whether it has just come up. Raises RayError when it never will."""
        if self.up or not _done(self._where):
            return False
        pid, self.node, host = ray.get(self._where)
        self._pid = pid if host == this_host() else None
        self._where = None
        return True

    def events(self) -> list[Event]:
        """What its attempt has told since the last call. Raises RayError when it has died."""
        if self.attempt is None:
            return []
        if not _done(self._news):
            if _done(self._run):
                ray.get(self._run)  # raises if it ended without a last message
            return []
        messages = ray.get(self._news)
        events = [event for message in messages if (event := _as_event(self.attempt, message))]
        if messages[-1]["event"] in {"result", "failed"}:
            self.attempt = self._run = self._news = None
        else:
            self._news = self.handle.news.remote()
        return events

    def signal(self, number: int) -> None:
        """Send a signal to an actor of this host."""
        if self._pid is not None:
            with contextlib.suppress(ProcessLookupError):  # it has just died: the next poll reports that
                os.kill(self._pid, number)

    def kill(self, headless: bool = False) -> None:
        """End it; `headless` where the cluster has nobody left who would."""
        self.signal(signal.SIGCONT)  # who stands still would not hear it
        if headless:
            self.handle.leave.remote()
        ray.kill(self.handle)


def _done(call: Any) -> bool:
    return bool(ray.wait([call], timeout=0)[0])


def _as_event(attempt: Attempt, message: Mapping[str, Any]) -> Event | None:
    if message["event"] == "progress":
        return Progress(attempt.key, message["data"], message["seconds"])
    if message["event"] == "result":
        return Result(attempt.key, message["data"], message["seconds"])
    if message["event"] == "failed":
        return Failed(attempt.key, message["reason"], message["seconds"], message["detail"])
    return None  # it asked for quiet, which only the lane gives
