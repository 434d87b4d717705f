"""The executor over Ray actors: one warm actor per slot, as many slots as the cluster holds. Nodes may come and go.

Latency is measured on a node that offers it, or else on this host; while the lane times, the actors of its host stand still.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

import ray
from ray.exceptions import RayError

from nas.errors import UnreachableError
from nas.execution.executor import Attempt, Event, Lost
from nas.execution.local import MAX_STILLBORN
from nas.execution.mirror import Sender
from nas.execution.process import last_lines
from nas.execution.ray.actor import Slot
from nas.execution.ray.cluster import Cluster, Needs, described, fit
from nas.execution.ray.lane import TAKEN_SECONDS, Lane, LaneHere, LaneThere
from nas.execution.security import token_mode

POLL_SECONDS = 0.2
NO_PLACE_SECONDS = 30.0


class RayExecutor:
    """Runs attempts in Ray actors; see `nas.execution.executor.Executor`.

    It begins once the first actor and the lane are up. An actor that is not up yet is not free: no attempt waits in one.

    Args:
        environment: variables of each actor, `lane_environment` those of the lane.
        logs: folder for the lane's output.
        workers: actors at most; as many as the cluster holds where None.
        cores, gpus: what each actor takes of the cluster.
        address: of the cluster; one of our own where None and this process is not connected to any.
        patience: seconds until it is an error that there is nowhere to place an actor.
        offered: whether latency is measured on a node that offers it, on a GPU where `lane_gpu` says so; else on this host.
        lane_patience: seconds until it is an error that none does.

    Raises:
        InputError: `address` is none.
        UnreachableError: no cluster there, or it has no place for an actor.
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        lane_environment: Mapping[str, str],
        logs: Path,
        *,
        workers: int | None = None,
        cores: float = 1,
        gpus: float = 0,
        address: str | None = None,
        patience: float = NO_PLACE_SECONDS,
        offered: bool = False,
        lane_gpu: bool = False,
        lane_patience: float = TAKEN_SECONDS,
    ) -> None:
        self._environment, self._needs, self._patience = environment, Needs(cores, gpus), patience
        self._most = math.inf if workers is None else workers
        self._slots: list[Slot] = []
        self._stillborn = 0
        self._cluster = Cluster(address, max(1, math.ceil((workers or 1) * cores)))
        self._sender = Sender(ray.put)
        # who can read it sees all files of this host
        self._token = (logs / f".seen-{uuid.uuid4().hex}").absolute() if self._cluster.shared else None
        self._up = time.monotonic()
        try:
            if self._token:
                logs.mkdir(parents=True, exist_ok=True)
                self._token.touch()
        except OSError:
            self._cluster.leave()
            raise
        there = self._cluster, lane_environment, logs, lane_gpu, self._token, self._sender, lane_patience
        self._lane: Lane = LaneThere(*there) if offered else LaneHere(lane_environment, logs)
        try:
            while not (self.free and self._lane.up):
                self.poll(POLL_SECONDS)
        except BaseException:
            self.close()
            raise

    @property
    def free(self) -> int:
        return sum(slot.up and slot.attempt is None for slot in self._slots)

    @property
    def lane_free(self) -> bool:
        return self._lane.lane_free

    def start(self, attempt: Attempt) -> None:
        with self._cluster.reached():
            if attempt.quiet:
                self._lane.start(attempt)
                return
            slot = next((s for s in self._slots if s.up and s.attempt is None), None)
            if slot is None:
                raise RuntimeError("no actor is free")
            slot.start(attempt)

    def poll(self, timeout: float) -> list[Event]:
        """Returns early when an actor has come up. Raises UnreachableError when the cluster is gone or has no place for any
        actor, and when actors die before they are up, again and again."""
        with self._cluster.reached():
            return self._polled(timeout)

    def stop(self, key: str) -> float:
        with self._cluster.reached():
            for slot in self._slots:
                if slot.attempt and slot.attempt.key == key:
                    seconds = slot.seconds
                    self._drop(slot)
                    return seconds
            return self._lane.stop(key)

    def close(self) -> None:
        with contextlib.suppress(UnreachableError), self._cluster.reached():
            self._lane.close()
            for slot in self._slots:
                slot.kill(headless=not self._cluster.answers)
        self._slots = []
        if self._token:
            self._token.unlink(missing_ok=True)
        self._cluster.leave()

    def _polled(self, timeout: float) -> list[Event]:
        deadline = time.monotonic() + timeout
        while True:
            self._look()
            free = self.free
            events = self._lane.poll(0 if self.lane_free else min(POLL_SECONDS, max(0.0, deadline - time.monotonic())))
            for slot in list(self._slots):
                events += self._events_of(slot)
            left = deadline - time.monotonic()
            if events or left <= 0 or self.free > free:
                return events
            if pending := [*self._lane.pending, *(call for slot in self._slots for call in slot.pending)]:
                ray.wait(pending, timeout=min(left, POLL_SECONDS))
            else:
                time.sleep(min(left, POLL_SECONDS))

    def _look(self) -> None:
        """As many slots as the cluster holds now."""
        if self._cluster.gone:
            raise self._cluster.lost()
        place = fit(self._cluster.nodes, self._needs)
        wanted = min(self._most, place)
        while len(self._slots) < wanted < math.inf:
            self._slots.append(Slot(self._needs, self._environment, self._token, self._sender))
        for slot in [slot for slot in self._slots if not slot.up]:
            if len(self._slots) > wanted:
                self._drop(slot)
        now = time.monotonic()
        if any(slot.up for slot in self._slots):
            self._up = now
        elif now - self._up > (max(self._patience, TAKEN_SECONDS) if place >= 1 else self._patience):
            has = described(self._cluster.nodes)
            raise UnreachableError(
                f"no place for a worker, which takes {self._needs}: the Ray cluster at {self._cluster.address} has {has}",
                "others use it all: wait for them, or add nodes" if place >= 1 else "add nodes, or lower what a trial takes",
            )

    def _events_of(self, slot: Slot) -> list[Event]:
        try:
            if slot.rises():
                self._stillborn = 0
                self._mind()
            return slot.events()
        except RayError as error:
            return self._lose(slot, error)

    def _lose(self, slot: Slot, error: RayError) -> list[Event]:
        """An actor has died: another comes, unless they die before they are up, again and again."""
        self._stillborn += not slot.up
        if self._stillborn >= MAX_STILLBORN:
            last = str(error).strip().splitlines()[-1]
            asked = "its nodes' logs (/tmp/ray/session_latest/logs on each) say why"
            if token_mode(os.environ):
                asked = f"RAY_AUTH_MODE=token is set here: the head and all nodes must have been started so too; else {asked}"
            raise UnreachableError(
                f"{MAX_STILLBORN} Ray actors in a row ended before they were ready: {last}", asked
            ) from error
        attempt, seconds = slot.attempt, slot.seconds
        self._drop(slot)
        if attempt is None:
            return []
        left = "node has died" in str(error) or self._cluster.left(slot.node)
        reason = f"its host {self._cluster.host(slot.node)} has left the cluster" if left else "its Ray actor died"
        return [Lost(attempt.key, reason, seconds, last_lines(attempt.log))]

    def _drop(self, slot: Slot) -> None:
        self._slots.remove(slot)
        self._mind()  # who stands still would not hear that it is to end
        slot.kill(headless=not self._cluster.answers)
        self._cluster.look()

    def _mind(self) -> None:
        self._lane.mind(slot.place for slot in self._slots if slot.place)
