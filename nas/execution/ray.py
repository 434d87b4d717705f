"""The executor over Ray actors: one warm actor per worker. The only file that imports ray.

Latency is still measured by this host's own lane; while it times, the actors of this host stand still.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nas.errors import UnreachableError
from nas.execution.executor import Attempt, Event, Failed, Lost, Progress, Result
from nas.execution.local import MAX_STILLBORN, LocalExecutor
from nas.execution.process import as_message

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray.exceptions import RayError

POLL_SECONDS = 0.2


@ray.remote(max_concurrency=2)
class _Actor:
    """A worker: `run` in one thread, `news` in another."""

    def __init__(self) -> None:
        from nas.execution.worker import run_attempt  # noqa: PLC0415  (in the actor's process)

        self._run_attempt = run_attempt
        self._messages: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def where(self) -> tuple[int, str]:
        return os.getpid(), ray.get_runtime_context().get_node_id()

    def run(self, attempt: dict[str, Any]) -> None:
        self._run_attempt(attempt, self._messages.put, lambda: None)

    def news(self) -> list[dict[str, Any]]:
        """The messages since the last call; waits for the first."""
        return [self._messages.get(), *(self._messages.get_nowait() for _ in range(self._messages.qsize()))]


class _Slot:
    """One actor as the driver sees it."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.where = handle.where.remote()
        self.pid: int | None = None
        self.attempt: Attempt | None = None
        self.run: Any = None
        self.news: Any = None
        self.began = 0.0

    @property
    def pending(self) -> list[Any]:
        """What the driver may wait for."""
        return [call for call in (None if self.pid else self.where, self.run, self.news) if call is not None]

    @property
    def seconds(self) -> float:
        """How long the present attempt has run."""
        return time.monotonic() - self.began if self.began else 0.0

    def signal(self, number: int) -> None:
        """Send a signal to an actor of this host."""
        if self.pid and self.pid > 0:
            with contextlib.suppress(ProcessLookupError):  # it has just died: the next poll reports that
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGCONT)  # who stands still would not hear it
        ray.kill(self.handle)


class RayExecutor:
    """Runs attempts in Ray actors; see `nas.execution.executor.Executor`.

    Args:
        environments, lane_environment, logs: as `LocalExecutor`.
        cores, gpus: what each actor takes of the cluster.
    """

    def __init__(
        self,
        environments: Sequence[Mapping[str, str]],
        lane_environment: Mapping[str, str],
        logs: Path,
        *,
        cores: float = 1,
        gpus: float = 0,
    ) -> None:
        self._owns_ray = not ray.is_initialized()
        if self._owns_ray:
            cluster = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": max(1, int(len(environments) * cores))}
            try:
                ray.init(**cluster, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
            except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
                raise UnreachableError(
                    f"Ray cannot be reached: {str(error).splitlines()[0]}", "check RAY_ADDRESS, or use --executor local"
                ) from error
        self._node = ray.get_runtime_context().get_node_id()
        self._environments, self._resources = environments, {"num_cpus": cores, "num_gpus": gpus}
        self._slots = [self._new_slot(index) for index in range(len(environments))]
        self._lane = LocalExecutor((), lane_environment, logs, on_quiet=self._set_quiet)
        self._stillborn = 0

    @property
    def free(self) -> int:
        return sum(slot.attempt is None for slot in self._slots)

    @property
    def lane_free(self) -> bool:
        return self._lane.lane_free

    def start(self, attempt: Attempt) -> None:
        if attempt.quiet:
            self._lane.start(attempt)
            return
        slot = next((s for s in self._slots if s.attempt is None), None)
        if slot is None:
            raise RuntimeError("no actor is free")
        slot.attempt = attempt
        slot.began = time.monotonic() if slot.pid else 0.0
        slot.run, slot.news = slot.handle.run.remote(as_message(attempt)), slot.handle.news.remote()

    def poll(self, timeout: float) -> list[Event]:
        deadline = time.monotonic() + timeout
        while True:
            events = self._lane.poll(0 if self.lane_free else min(POLL_SECONDS, max(0.0, deadline - time.monotonic())))
            for index, slot in enumerate(self._slots):
                events += self._events_of(index, slot)
            left = deadline - time.monotonic()
            if events or left <= 0:
                return events
            if pending := [call for slot in self._slots for call in slot.pending]:
                ray.wait(pending, timeout=min(left, POLL_SECONDS))
            else:
                time.sleep(min(left, POLL_SECONDS))

    def stop(self, key: str) -> float:
        for index, slot in enumerate(self._slots):
            if slot.attempt and slot.attempt.key == key:
                seconds = slot.seconds
                slot.kill()
                self._slots[index] = self._new_slot(index)
                return seconds
        return self._lane.stop(key)

    def close(self) -> None:
        self._lane.close()
        for slot in self._slots:
            slot.kill()
        self._slots = []
        if self._owns_ray:
            ray.shutdown()

    def _new_slot(self, index: int) -> _Slot:
        # Ray itself shows each actor its own GPUs.
        variables = {k: v for k, v in self._environments[index].items() if k != "CUDA_VISIBLE_DEVICES"}
        actor: Any = _Actor
        return _Slot(actor.options(**self._resources, runtime_env={"env_vars": variables}).remote())

    def _events_of(self, index: int, slot: _Slot) -> list[Event]:
        try:
            if slot.pid is None:
                if not _done(slot.where):
                    return []
                pid, node = ray.get(slot.where)
                slot.pid = pid if node == self._node else -1
                slot.began = time.monotonic() if slot.attempt else 0.0
                self._stillborn = 0
                if self._lane.quiet:
                    slot.signal(signal.SIGSTOP)
            if slot.attempt is None:
                return []
            if not _done(slot.news):
                if _done(slot.run):
                    ray.get(slot.run)  # raises if it ended without a last message
                return []
            messages = ray.get(slot.news)
        except RayError as error:
            return self._replace(index, slot, error)
        events = [event for message in messages if (event := _as_event(slot.attempt, message))]
        if messages[-1]["event"] in {"result", "failed"}:
            slot.attempt = slot.run = slot.news = None
        else:
            slot.news = slot.handle.news.remote()
        return events

    def _replace(self, index: int, slot: _Slot, error: RayError) -> list[Event]:
        """A new actor for a dead one, unless they die before they are ready, again and again."""
        self._stillborn += slot.pid is None
        if self._stillborn >= MAX_STILLBORN:
            last = str(error).strip().splitlines()[-1]
            raise UnreachableError(f"{MAX_STILLBORN} Ray actors in a row ended before they were ready", last) from error
        slot.kill()
        self._slots[index] = self._new_slot(index)
        return [Lost(slot.attempt.key, "its Ray actor died", slot.seconds)] if slot.attempt else []

    def _set_quiet(self, quiet: bool) -> None:
        """Stop or continue the actors of this host."""
        for slot in self._slots:
            slot.signal(signal.SIGSTOP if quiet else signal.SIGCONT)


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
