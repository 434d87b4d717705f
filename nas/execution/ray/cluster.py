"""A Ray cluster as the study sees it: how it is reached and left, what it has, and whether it is still there."""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nas.errors import InputError, NasError, UnreachableError
from nas.execution.ray.address import AUTO, CLIENT, Door, asked_of_environment, door_of, require
from nas.execution.security import CURE, exposed
from nas.latency.site import Site, as_sent, differences, site

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

QUIET: Mapping[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
LOOK_SECONDS = 2.0
SLOW_SECONDS = 5.0  # an answer of the head that takes longer does not come
REFUSED_SECONDS, SILENT_SECONDS = 5.0, 30.0  # after so long a head is gone: its host answers for it, or nobody does
LOOPBACK = {"localhost", "127.0.0.1", "::1"}
ASK_SECONDS = 60.0
LATENCY = "latency"  # the custom resource of nodes on which latency is measured


@dataclass(frozen=True)
class Needs:
    """What an actor takes of its node. More than one GPU is whole GPUs; a share is of one."""

    cores: float
    gpus: float

    def __str__(self) -> str:
        wanted = [f"{self.gpus:g} GPU" + "s" * (self.gpus > 1)] if self.gpus else []
        return " and ".join([*wanted, f"{self.cores:g} CPU" + "s" * (self.cores != 1)])

    def fit(self, has: Mapping[str, float]) -> float:
        """How many fit into what a node has."""
        of_cores = (has.get("CPU", 0.0) + 1e-6) // self.cores if self.cores else math.inf
        if not self.gpus:
            return of_cores
        gpus = int(has.get("GPU", 0.0) + 1e-6)
        of_gpus = gpus // self.gpus if self.gpus >= 1 else gpus * int(1 / self.gpus + 1e-6)
        return min(of_cores, of_gpus)


@dataclass(frozen=True)
class Node:
    """A living node."""

    id: str
    host: str
    has: Mapping[str, float]


def fit(nodes: Sequence[Node], needs: Needs) -> float:
    """How many actors the nodes hold together, if nobody else uses them."""
    return sum(needs.fit(node.has) for node in nodes)


def described(nodes: Sequence[Node]) -> str:
    """What nodes have, in words."""
    cores, gpus = (sum(node.has.get(what, 0.0) for node in nodes) for what in ("CPU", "GPU"))
    return f"{len(nodes)} node{'s' * (len(nodes) != 1)} with {cores:g} CPUs and {gpus:g} GPUs"


class Cluster:
    """A connection to a cluster: to the one that this process is connected to, the one at `address`, or one of its own.

    Args:
        address: see `nas.execution.ray.address`; None for one of our own, with so many `cores`.

    Raises:
        InputError: it is no address, or other hosts can reach the cluster there and no token guards it.
        UnreachableError: nothing answers there.
    """

    def __init__(self, address: str | None, cores: int) -> None:
        self._owned, self.shared = not ray.is_initialized(), address is not None
        door = door_of(address) if address is not None else None
        if self._owned:
            with _explained(address), _own_sigterm():
                _connect(address, door, cores)
        _hush()
        if door is None or not str(address).startswith(CLIENT):
            door = door_of(ray.get_runtime_context().gcs_address)
        self.address = address if address not in {None, AUTO} else str(door)
        self._client = self.address.startswith(CLIENT)
        self._lapses = (Exception,) if self._client else (RayError, RuntimeError, OSError, AttributeError)
        self._door: Door = door or Door("127.0.0.1", 0)
        self.nodes = _living()
        self._hosts = {node.id: node.host for node in self.nodes}
        self._failing: float | None = None
        self._asked: float | None = None
        self._silent = False
        self._ended, self._wake = threading.Event(), threading.Event()
        # Whoever asks Ray for the nodes when the head dies never returns: a thread of its own, and another one that knocks.
        for each in (self._knock, self._count):
            threading.Thread(target=each, daemon=True, name=f"nas-cluster-{each.__name__}").start()

    @property
    def gone(self) -> bool:
        """Whether its head has not answered for so long that it will not."""
        patience = SILENT_SECONDS if self._silent else REFUSED_SECONDS
        return self._failing is not None and time.monotonic() - self._failing >= patience

    @property
    def answers(self) -> bool:
        """Whether its head did at the last look."""
        return self._failing is None

    def host(self, node: str | None) -> str:
        """The address of a node, also of one that is no more."""
        return self._hosts.get(node or "", "")

    def left(self, node: str | None) -> bool:
        """Whether a node is no more."""
        return node in self._hosts and node not in {living.id for living in self.nodes}

    def look(self) -> None:
        """Something has changed: look at the nodes soon."""
        self._wake.set()

    @contextlib.contextmanager
    def reached(self) -> Iterator[None]:
        """Around what asks the cluster: a connection that has broken off is one of our errors. Raises UnreachableError."""
        try:
            yield
        except NasError:
            raise
        except Exception as error:
            if self._client and _cut_off(error):
                raise self.lost() from error
            raise

    def lost(self) -> UnreachableError:
        """That it is gone, to be raised."""
        what = f"the Ray cluster at {self.address} is gone"
        return UnreachableError(
            what, "nothing is lost: start it again, then nas search --resume RUN (--address for another one)"
        )

    def leave(self) -> None:
        """Disconnect, and end a cluster of our own."""
        self._ended.set()
        self._wake.set()
        if self._owned:
            ray.shutdown()

    def _knock(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            problem = self._door.knock()
            asked = self._asked
            if problem is None and asked is not None and time.monotonic() - asked > SLOW_SECONDS:
                problem = TimeoutError()  # behind the port of Ray Client there is nobody any more
            self._silent = isinstance(problem, TimeoutError)
            if problem is None:
                self._failing = None
            elif self._failing is None:
                self._failing = time.monotonic()

    def _count(self) -> None:
        while not self._ended.is_set():
            self._wake.wait(LOOK_SECONDS)
            self._wake.clear()
            if self.answers and not self._ended.is_set():
                self._asked = time.monotonic()
                # the head ends, or we do in the middle of it: who knocks will tell
                with contextlib.suppress(*self._lapses):
                    self.nodes = _living()
                    self._hosts |= {node.id: node.host for node in self.nodes}
                self._asked = None


@dataclass(frozen=True)
class Offer:
    """What a cluster has now: nodes, and the one that offers to measure latency, if one does."""

    nodes: Sequence[Node]
    site: Site | None = None

    @property
    def gpus(self) -> int:
        return int(sum(node.has.get("GPU", 0.0) for node in self.nodes))

    @property
    def most_gpus(self) -> int:
        """That one node has."""
        return int(max((node.has.get("GPU", 0.0) for node in self.nodes), default=0))

    def workers(self, cores: float, gpus: float) -> int:
        """How many trials it trains at once; at least one: nodes may be on their way."""
        return max(1, int(fit(self.nodes, Needs(cores, gpus))))


def offer(address: str, target: str | None = None) -> Offer:
    """What a cluster has.

    Args:
        target: what latency is to be measured on, where it may be on a node that declares the resource `latency`.

    Raises:
        InputError: as `Cluster`; also where there is no such target, or where nodes offer to measure that are not alike.
        UnreachableError: as `Cluster`; also where the target is not there.
    """
    cluster = Cluster(address, 1)
    try:
        return Offer(cluster.nodes, None if target is None else _site(cluster, target))
    finally:
        cluster.leave()


def _site(cluster: Cluster, target: str) -> Site | None:
    """The target on the first of the nodes that offer to measure; all of them must be alike."""
    found: list[Site] = []
    for node in offering(cluster.nodes):
        there = NodeAffinitySchedulingStrategy(node.id, soft=False)
        # Ray would hide the GPUs from what takes none of them.
        options = {"scheduling_strategy": there, "runtime_env": {"env_vars": {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}}}
        asked = ray.remote(num_cpus=0, max_retries=1)(_look_around).options(**options).remote(target)
        try:
            told: Site | tuple[type[NasError], str, str | None] = ray.get(asked, timeout=ASK_SECONDS)
        except (RayError, TimeoutError) as error:
            last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise UnreachableError(f"{node.host} offers `{LATENCY}` and does not answer: {last}", "see to it") from error
        if isinstance(told, tuple):
            kind, message, hint = told
            raise kind(f"{message}, on {node.host}, which offers `{LATENCY}`", hint)
        found.append(replace(told, stamp=as_sent(told.stamp), host=node.host))
    for other in found[1:]:
        if unlike := differences(found[0].stamp, other.stamp, but_for_host=True):
            what = f"{found[0].host} and {other.host} both offer `{LATENCY}` and are not alike: {'; '.join(unlike)}"
            raise InputError(what.replace(", now ", " and "), "offer it on one of them, or on hosts that are alike")
    return found[0] if found else None


def _look_around(target: str) -> Site | tuple[type[NasError], str, str | None]:
    """The target on this node, or what is wrong with it: an error of ours would arrive as one of Ray's."""
    try:
        return site(target)
    except NasError as error:
        return type(error), error.message, error.hint


def offering(nodes: Sequence[Node]) -> list[Node]:
    """The nodes that offer to measure latency."""
    return [node for node in nodes if node.has.get(LATENCY, 0.0) >= 1]


def done(call: Any) -> bool:
    """Whether a call to an actor has ended, one way or the other."""
    return bool(ray.wait([call], timeout=0)[0])


def _cut_off(error: Exception) -> bool:
    """Whether Ray Client has raised this for a connection that has broken off; for that it also has bare exceptions."""
    broken: Any = ConnectionError, importlib.import_module("grpc").RpcError
    return isinstance(error, broken) or not ray.util.client.ray.is_connected()


def _living() -> list[Node]:
    return [Node(n["NodeID"], n["NodeManagerAddress"], n["Resources"]) for n in ray.nodes() if n["Alive"]]


def _connect(address: str | None, door: Door | None, cores: int) -> None:
    if address is None:
        ray.init(address="local", num_cpus=cores, **QUIET)
        return
    if address == AUTO:
        door = _found()
    elif door and door.host in LOOPBACK and not address.startswith(CLIENT):
        door = Door(ray.util.get_node_ip_address(), door.port)  # as Ray does; a head may listen on this one alone
    if door is not None:
        require(door, address)
    found = address == AUTO and asked_of_environment() is None
    _refuse_exposed(str(door or address), door or address, found=found)
    ray.init(address=address, runtime_env={"py_modules": _code(), "excludes": ["__pycache__"]}, **QUIET)
    if address.startswith(CLIENT):  # its port may be on loopback alone, and the head itself on all interfaces
        try:
            _refuse_exposed(ray.get_runtime_context().gcs_address, address)
        except InputError:
            ray.shutdown()
            raise


def _refuse_exposed(address: str, named: object, *, found: bool = False) -> None:
    if why := exposed(address, found=found):
        raise InputError(f"the Ray cluster at {named} is open to other hosts: {why}", CURE)


def _found() -> Door | None:
    """The cluster that `auto` means: where several are found, the one that was started last."""
    named = asked_of_environment()
    if named is not None:
        return door_of(named)
    services: Any = importlib.import_module("ray._private.services")
    services.logger.setLevel(QUIET["logging_level"])  # it would warn of the others
    found = services.canonicalize_bootstrap_address(AUTO)
    return door_of(found) if found else None


def _code() -> list[str]:
    """Our own code, for hosts that have none or another version of it."""
    package = Path(__file__).parents[2]
    return [str(package), str(package.parent / "_yolo_placement_search.py")]


def _hush() -> None:
    """Ray prints what happens to its nodes on our stdout, whatever it is told; we say it ourselves."""
    worker: Any = importlib.import_module("ray._private.worker")
    worker._worker_logs_enabled = False


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Ray has SIGTERM end the process at once, without a word: what it did before is kept."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _explained(address: str | None) -> Iterator[None]:
    try:
        yield
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, RayError) as error:
        what = "Ray cannot be started" if address is None else f"no Ray cluster can be reached at {address}"
        cure = (
            "use --executor local"
            if address is None
            else "see `ray status` there; if its head asks for a token: RAY_AUTH_MODE=token"
        )
        lines = str(error).strip().splitlines() or [type(error).__name__]
        why = f"{lines[0]} {lines[-1].strip()}" if lines[0].endswith(":") else lines[0]  # Ray Client sends a traceback along
        raise UnreachableError(f"{what}: {why}", cure) from error
