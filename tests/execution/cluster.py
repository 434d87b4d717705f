"""A Ray cluster of several nodes on the loopback addresses of this host, and what is left of it afterwards."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness import alive, wait_until

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import ray
from ray.cluster_utils import Cluster


class Nodes:
    """The head on 127.0.0.2, which has no CPU for actors unless told, other nodes on 127.0.0.3 and up."""

    def __init__(self, others: int, **head: Any) -> None:
        self._next, self.headless = 3, False
        settings = {"num_cpus": 0, "include_dashboard": False, "node_ip_address": "127.0.0.2", **head}
        self._cluster = Cluster(initialize_head=True, head_node_args=settings)
        self.address = str(self._cluster.address)
        self.others = [self.add() for _ in range(others)]

    def add(self, **settings: Any) -> Any:
        """One more node with one CPU."""
        node = self._cluster.add_node(num_cpus=1, node_ip_address=f"127.0.0.{self._next}", **settings)
        self._next += 1
        return node

    def kill_head(self) -> None:
        """kill -9 of the process that knows the cluster."""
        _kill(self._cluster.head_node, "gcs_server")
        self.headless = True

    def end(self) -> None:
        self._cluster.shutdown()


def kill_raylet(node: Any) -> None:
    """kill -9 of what makes a host a node."""
    _kill(node, "raylet")


def _kill(node: Any, process: str) -> None:
    os.kill(node.all_processes[process][0].process.pid, signal.SIGKILL)


@contextmanager
def nodes(others: int, **head: Any) -> Iterator[Nodes]:
    """A cluster; afterwards none of its processes is left."""
    before = ray_processes()
    found = Nodes(others, **head)
    try:
        yield found
    finally:
        ray.shutdown()
        found.end()
        wait_until(lambda: not any(map(alive, ray_processes(b"ray::Actor") - before)), "no actor is left")
        if found.headless:  # what Ray itself leaves behind takes a minute to notice
            for pid in ray_processes() - before:
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not any(map(alive, ray_processes() - before)), "no process of the cluster is left")


def ray_processes(begin: bytes = b"") -> set[int]:
    """Processes of Ray on this host, servers and actors, whose command line begins so."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            of_ray = b"ray/core/src/ray" in line or line.startswith(b"ray::") or b"ray/_private/workers" in line
            if of_ray and line.startswith(begin):
                found.add(int(entry.name))
    return found
