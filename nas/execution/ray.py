"""The executor over Ray actors: one warm actor per worker. The only file that imports ray.

Latency is still measured by this host's own lane; while it times, the actors of this host stand still.
"""

from __future__ import annotations

import os
import queue
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nas.execution.executor import Attempt, Event, Failed, Lost, Progress, Result
from nas.execution.local import LocalExecutor

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray.exceptions import RayActorError

POLL_SECONDS = 0.2


@ray.remote(max_concurrency=2)
class _Actor:
    """A worker: `run` in one thread, `drain` answers from another."""

    def __init__(self) -> None:
        self._events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def where(self) -> tuple[int, str]:
        return os.getpid(), ray.get_runtime_context().get_node_id()

    def run(self, attempt: dict[str, Any]) -> None:
        from nas.execution.worker import run_attempt  # noqa: PLC0415  (in the actor's process)

        run_attempt(attempt, self._events.put, lambda: None)

    def drain(self) -> list[dict[str, Any]]:
        return [self._events.get_nowait() for _ in range(self._events.qsize())]


class _Slot:
    """One actor as the driver sees it."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.where = handle.where.remote()
        self.pid: int | None = None
        self.attempt: Attempt | None = None
        self.call: Any = None
        self.began = 0.0


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
            ray.init(
                num_cpus=max(1, int(len(environments) * cores)),
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
            )
        self._node = ray.get_runtime_context().get_node_id()
        self._environments, self._resources = environments, {"num_cpus": cores, "num_gpus": gpus}
        self._slots = [self._new_slot(index) for index in range(len(environments))]
        self._lane = LocalExecutor((), lane_environment, logs, on_quiet=self._set_quiet)

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
        data = {"key": attempt.key, "kind": attempt.kind, "payload": dict(attempt.payload), "seed": attempt.seed}
        slot.call = slot.handle.run.remote(data)

    def poll(self, timeout: float) -> list[Event]:
        deadline = time.monotonic() + timeout
        while True:
            events = self._lane.poll(0 if self.lane_free else min(POLL_SECONDS, max(0.0, deadline - time.monotonic())))
            for index, slot in enumerate(self._slots):
                events += self._events_of(index, slot)
            left = deadline - time.monotonic()
            if events or left <= 0:
                return events
            calls = [s.call for s in self._slots if s.call is not None] + [s.where for s in self._slots if s.pid is None]
            if calls:
                ray.wait(calls, timeout=min(left, POLL_SECONDS))
            else:
                time.sleep(min(left, POLL_SECONDS))

    def stop(self, key: str) -> float:
        for index, slot in enumerate(self._slots):
            if slot.attempt and slot.attempt.key == key:
                seconds = time.monotonic() - slot.began if slot.began else 0.0
                ray.kill(slot.handle)
                self._slots[index] = self._new_slot(index)
                return seconds
        return self._lane.stop(key)

    def close(self) -> None:
        self._lane.close()
        for slot in self._slots:
            ray.kill(slot.handle)
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
                if not ray.wait([slot.where], timeout=0)[0]:
                    return []
                pid, node = ray.get(slot.where)
                slot.pid = pid if node == self._node else -1
                slot.began = time.monotonic() if slot.attempt else 0.0
            if slot.attempt is None:
                return []
            finished = bool(ray.wait([slot.call], timeout=0)[0])
            if finished:
                ray.get(slot.call)
            messages = ray.get(slot.handle.drain.remote(), timeout=10) if finished or not self._lane.quiet else []
        except RayActorError:
            lost = slot.attempt
            seconds = time.monotonic() - slot.began if slot.began else 0.0
            self._slots[index] = self._new_slot(index)
            return [Lost(lost.key, "its Ray actor died", seconds)] if lost else []
        events = [_as_event(slot.attempt, message) for message in messages]
        if finished:
            slot.attempt = slot.call = None
        return events

    def _set_quiet(self, quiet: bool) -> None:
        """Stop or continue the actors of this host."""
        number = signal.SIGSTOP if quiet else signal.SIGCONT
        for slot in self._slots:
            if slot.pid and slot.pid > 0:
                try:
                    os.kill(slot.pid, number)
                except ProcessLookupError:
                    continue  # it has just died: the next poll reports that


def _as_event(attempt: Attempt, message: Mapping[str, Any]) -> Event:
    if message["event"] == "progress":
        return Progress(attempt.key, message["data"], message["seconds"])
    if message["event"] == "result":
        return Result(attempt.key, message["data"], message["seconds"])
    return Failed(attempt.key, message["reason"], message["seconds"], message["detail"])
