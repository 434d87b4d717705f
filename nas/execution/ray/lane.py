"""The lane of a search on a cluster: on this host, or on a node that declares the custom resource `latency`.

Either way a child process of its own measures (`LocalExecutor`), and while it times, the actors of that host stand still.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from nas.cache import cache_root
from nas.errors import UnreachableError
from nas.execution.executor import Attempt, Event, Failed, Lost, Progress
from nas.execution.local import MAX_STILLBORN, LocalExecutor
from nas.execution.mirror import Parcel, Receiver, Sender, Tail, append
from nas.execution.process import as_message, last_lines
from nas.execution.ray.address import OFFER
from nas.execution.ray.cluster import LATENCY, Cluster, done, offering
from nas.execution.ray.place import Place, settled, this_host
from nas.execution.still import Pids, Still, resume
from nas.hardware import gpus

TAKEN_SECONDS = 180.0  # others have the resource, or the host that had it may come back
BEAT_SECONDS = 0.1
LOG = "lane.log"

log = logging.getLogger("nas")


class Lane(Protocol):
    """Where a search on a cluster measures; in all else as `Executor`."""

    @property
    def up(self) -> bool: ...
    @property
    def lane_free(self) -> bool: ...
    @property
    def pending(self) -> list[Any]: ...
    def mind(self, places: Iterable[Place]) -> None: ...
    def start(self, attempt: Attempt) -> None: ...
    def poll(self, timeout: float) -> list[Event]: ...
    def stop(self, key: str) -> float: ...
    def close(self) -> None: ...


class LaneHere:
    """The lane on the host of this process.

    Args:
        environment: variables of its process.
        logs: folder for its output.
    """

    def __init__(self, environment: Mapping[str, str], logs: Path) -> None:
        self._still = Still()
        self._executor = LocalExecutor((), environment, logs, on_quiet=self._still.hold)
        self.start, self.poll, self.stop = self._executor.start, self._executor.poll, self._executor.stop

    @property
    def up(self) -> bool:
        return True

    @property
    def lane_free(self) -> bool:
        return self._executor.lane_free

    @property
    def pending(self) -> list[Any]:
        return []

    def mind(self, places: Iterable[Place]) -> None:
        """Who is to stand still while it times: all of them that are on this host."""
        host = this_host()
        self.hold({place.pid: place.born for place in places if place.host == host})

    def hold(self, processes: Pids) -> None:
        self._still.mind(processes)

    def close(self) -> None:
        self._executor.close()
        self._still.close()


@dataclass(frozen=True)
class Setup:
    """What the lane on a node is told once: its variables, the folder for its output, a file that only who sees the driver's
    files can read, and whether it times on a GPU: that is the first of its node."""

    environment: Mapping[str, str]
    logs: Path
    token: Path | None
    gpu: bool


@dataclass(frozen=True)
class Told:
    """An event of the attempt that was started as the `number`th, with what a host that does not see the driver's files has
    printed and written since the last one."""

    number: int
    event: Event
    printed: str = ""
    files: Mapping[str, bytes | None] | None = None


@dataclass(frozen=True)
class Fault:
    """Why there will be no measuring there at all."""

    message: str
    hint: str


@ray.remote(num_cpus=0, concurrency_groups={"news": 1})
class LaneActor:
    """The lane on its node. Orders come in one thread, in their order; `news` waits in another, and a third one obeys: to the
    kernel that is the parent of the process that measures, which ends with it."""

    def __init__(self) -> None:
        self._orders: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._told: queue.SimpleQueue[Told | Fault] = queue.SimpleQueue()
        self._number = 0
        self._parcel: Parcel | None = None
        self._printed: Tail | None = None

    def where(self, setup: Setup) -> Place:
        """Begin."""
        place = settled(setup.token)
        self._receiver = Receiver(cache_root() / "elsewhere", ray.get)
        self._logs = setup.logs if place.sees else cache_root() / "elsewhere" / "lane"
        mask = next(iter(gpus()), "") if setup.gpu else ""
        self._lane = LaneHere({"CUDA_VISIBLE_DEVICES": mask}, self._logs)
        threading.Thread(target=self._serve, daemon=True).start()
        return place

    def order(self, what: str, of: Any) -> None:
        self._orders.put((what, of))

    @ray.method(concurrency_group="news")  # type: ignore[untyped-decorator]
    def news(self) -> list[Told | Fault]:
        """What has happened since the last call; waits for the first of it."""
        return [self._told.get(), *(self._told.get_nowait() for _ in range(self._told.qsize()))]

    def leave(self) -> None:
        """End at once: needs no head. Its child ends with it, and who stands still goes on."""
        os._exit(0)

    def _serve(self) -> None:
        try:
            while True:
                self._obey()
                for event in self._lane.poll(0):
                    self._told.put(self._tale(event))
        except UnreachableError as error:
            self._told.put(Fault(error.message, str(error.hint)))
        except BaseException:
            traceback.print_exc()
            os._exit(1)  # as if it had been killed: another one takes its place

    def _obey(self) -> None:
        """Wait for an order, while the lane measures not for long."""
        try:
            what, of = self._orders.get(timeout=None if self._lane.lane_free else BEAT_SECONDS)
        except queue.Empty:
            return
        if what == "mind":
            self._lane.hold(of)
        elif what == "stop":
            self._lane.stop(of)
        else:
            self._start(*of)

    def _start(self, number: int, work: dict[str, Any] | Parcel) -> None:
        self._lane.poll(0)  # its process may have died while it had nothing to do
        self._number, self._parcel, self._printed = number, None, None
        if isinstance(work, Parcel):
            self._parcel = work
            try:
                message = self._receiver.accept(work)
            except OSError as error:
                self._told.put(Told(number, Failed(work.attempt["key"], f"OSError: {error}", 0.0)))
                return
            self._printed = Tail(Path(message["log"] or self._logs / LOG))
        else:
            message = work
        self._lane.start(Attempt(**message))

    def _tale(self, event: Event) -> Told:
        """An event as the driver's host would have seen it."""
        if self._parcel is None:
            return Told(self._number, event)
        fields = {name: value for name, value in vars(event).items() if name in {"data", "reason", "detail"}}
        event = replace(event, **self._receiver.restored(fields))
        files = None if isinstance(event, Progress) else self._receiver.returned(self._parcel.attempt["payload"])
        return Told(self._number, event, self._printed.more() if self._printed else "", files)


class LaneThere:
    """The lane on a node that offers `latency`, as the driver sees it: one actor that takes it, and another when that is lost.

    An attempt that begins while none is up waits for it.

    Args:
        environment: variables of the process that measures.
        logs: folder for its output.
        gpu: whether it times on a GPU.
        token: a file that only who sees the files of this host can read.
        patience: seconds until it is an error that there is no lane.
    """

    def __init__(
        self,
        cluster: Cluster,
        environment: Mapping[str, str],
        logs: Path,
        gpu: bool,
        token: Path | None,
        sender: Sender,
        patience: float = TAKEN_SECONDS,
    ) -> None:
        # Ray would hide the GPUs from an actor that takes none of them.
        variables = {k: v for k, v in environment.items() if k != "CUDA_VISIBLE_DEVICES"}
        self._options = {
            "resources": {LATENCY: 1},
            "runtime_env": {"env_vars": variables | {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}},
        }
        self._cluster, self._sender, self._patience = cluster, sender, patience
        self._setup = Setup(variables, logs.absolute(), token, gpu)
        self._places: list[Place] = []
        self._place: Place | None = None
        self._minded: Pids = {}
        self._attempt: Attempt | None = None
        self._number = self._stillborn = 0
        self._began = 0.0
        self._last = ""  # node that it was on
        self._make()

    @property
    def up(self) -> bool:
        return self._place is not None

    @property
    def lane_free(self) -> bool:
        return self._attempt is None

    @property
    def pending(self) -> list[Any]:
        """What the driver may wait for."""
        return [call for call in (self._where, self._news) if call is not None]

    def mind(self, places: Iterable[Place]) -> None:
        """Who is to stand still while it times: all of them that are on its host."""
        self._places = list(places)
        here = self._here()
        if self._place is not None and here != self._minded:
            self._minded = here
            self._handle.order.remote("mind", here)

    def start(self, attempt: Attempt) -> None:
        """Raises RuntimeError where another one runs."""
        if self._attempt is not None:
            raise RuntimeError("the measuring lane is taken")
        self._attempt = attempt
        self._number += 1
        if self.up:
            self._send(attempt)

    def poll(self, timeout: float) -> list[Event]:  # noqa: ARG002  (who waits, waits for what is pending)
        """Raises UnreachableError where there has been no lane for too long."""
        try:
            if not self.up:
                self._rise()
            return self._events() if self.up else []
        except RayError as error:
            return self._lose(error)

    def stop(self, key: str) -> float:
        if self._attempt is None or self._attempt.key != key:
            return 0.0
        seconds, self._attempt = self._seconds, None
        if self.up:
            self._handle.order.remote("stop", key)
        return seconds

    def close(self) -> None:
        if not self._cluster.answers:
            self._handle.leave.remote()
        ray.kill(self._handle)

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._began if self._attempt and self._began else 0.0

    def _here(self) -> Pids:
        return {p.pid: p.born for p in self._places if self._place is not None and p.host == self._place.host}

    def _make(self) -> None:
        actor: Any = LaneActor
        self._handle = actor.options(**self._options).remote()
        self._where: Any = self._handle.where.remote(self._setup)
        self._news: Any = None
        self._place, self._minded, self._began = None, {}, 0.0
        self._since = time.monotonic()

    def _rise(self) -> None:
        if self._where is None:
            self._make()
        if not done(self._where):
            if time.monotonic() - self._since > self._patience:
                raise self._missing()
            return
        self._place, self._where, self._stillborn = ray.get(self._where), None, 0
        self._news = self._handle.news.remote()
        if self._last not in {"", self._place.node}:
            log.warning("latency is measured on %s now", self._cluster.host(self._place.node))
        self._last = self._place.node
        self.mind(self._places)
        if self._attempt is not None:
            self._send(self._attempt)

    def _missing(self) -> UnreachableError:
        waited = f"{self._patience:.0f} s"
        if offering(self._cluster.nodes):
            what = f"the host of the Ray cluster at {self._cluster.address} that offers `latency` has been taken for {waited}"
            return UnreachableError(what, "another search measures there: wait for it to end; or that host is very slow")
        what = f"no host of the Ray cluster at {self._cluster.address} has offered `latency` for {waited}"
        return UnreachableError(what, f"nothing is lost: on that host, {OFFER}; then nas search --resume RUN")

    def _send(self, attempt: Attempt) -> None:
        place = self._place
        if place is None:
            return
        work: Any = as_message(attempt) if place.sees else self._sender.parcel(attempt, place.node)
        self._handle.order.remote("start", (self._number, work))
        self._began = time.monotonic()

    def _events(self) -> list[Event]:
        if not done(self._news):
            return []
        told: Sequence[Told | Fault] = ray.get(self._news)
        self._news = self._handle.news.remote()
        events: list[Event] = []
        for each in told:
            if isinstance(each, Fault):
                raise UnreachableError(each.message, each.hint)
            if self._attempt is None or each.number != self._number:
                continue  # of one that was stopped
            self._bring(self._attempt, each)
            events.append(each.event)
            if not isinstance(each.event, Progress):
                self._attempt = None
        return events

    def _bring(self, attempt: Attempt, told: Told) -> None:
        """What comes with an event from a host that does not see this one's files."""
        if told.printed:
            append(Path(attempt.log) if attempt.log else self._setup.logs / LOG, told.printed)
        if self._place and told.files:
            self._sender.deliver(attempt, self._place.node, told.files)

    def _lose(self, error: RayError) -> list[Event]:
        """The lane is no more: another one comes."""
        self._stillborn += not self.up
        if self._stillborn >= MAX_STILLBORN:
            last = str(error).strip().splitlines()[-1]
            raise UnreachableError(f"{MAX_STILLBORN} Ray actors in a row ended before they could measure", last) from error
        attempt, seconds, place = self._attempt, self._seconds, self._place
        if place is not None and self._minded and self._cluster.answers and not self._cluster.left(place.node):
            # it and its helper may have been killed both
            there = NodeAffinitySchedulingStrategy(place.node, soft=False)
            ray.remote(num_cpus=0, max_retries=0)(resume).options(scheduling_strategy=there).remote(self._minded)
        ray.kill(self._handle)
        self._attempt = self._place = self._where = self._news = None
        self._cluster.look()
        self._since = time.monotonic()
        if attempt is None:
            return []
        left = "node has died" in str(error) or (place is not None and self._cluster.left(place.node))
        host = self._cluster.host(place.node if place else None)
        reason = f"its host {host} has left the cluster" if left else f"the lane on {host} died"
        return [Lost(attempt.key, reason, seconds, last_lines(attempt.log))]
