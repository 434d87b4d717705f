"""A Ray cluster of several nodes on the loopback addresses of this host, and what is left of it afterwards."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
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
        self._strangers: list[subprocess.Popen[bytes]] = []
        settings = {"num_cpus": 0, "include_dashboard": False, "node_ip_address": "127.0.0.2", **head}
        self._cluster = Cluster(initialize_head=True, head_node_args=settings)
        self.address = str(self._cluster.address)
        self.others = [self.add() for _ in range(others)]

    def add(self, **settings: Any) -> Any:
        """One more node with one CPU."""
        node = self._cluster.add_node(num_cpus=1, node_ip_address=f"127.0.0.{self._next}", **settings)
        self._next += 1
        return node

    def add_stranger(
        self, cache: Path, *hidden: Path, name: str = "stranger", latency: int = 0, cpuinfo: Path | None = None
    ) -> subprocess.Popen[bytes]:
        """One more node with one CPU: a host of its own to all that can be seen, with its own name and process numbers, a cache
        of its own and nothing in some folders of this host; it may offer to measure latency, and have another processor. It
        ends with the process returned.
        """
        made = [f"mount -t tmpfs tmpfs {shlex.quote(str(folder))}" for folder in hidden]
        made += [f"mount --bind {shlex.quote(str(cpuinfo))} /proc/cpuinfo"] if cpuinfo else []
        mounts = " && ".join(made)
        words = ["start", f"--address={self.address}", f"--node-ip-address=127.0.0.{self._next}", "--num-cpus=1", "--block"]
        words += [f"--resources={json.dumps({'latency': latency})}"] if latency else []
        start = [sys.executable, "-c", "from ray.scripts.scripts import cli; cli()", *words]
        shell = ["sh", "-c", f"hostname {name} && {mounts or 'true'} && exec {shlex.join(start)}"]
        line = ["unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc", *shell]
        environment, nowhere = os.environ | {"NAS_CACHE": str(cache)}, subprocess.DEVNULL
        self._strangers.append(subprocess.Popen(line, env=environment, stdout=nowhere, stderr=nowhere))
        self._next += 1
        return self._strangers[-1]

    def kill_head(self) -> None:
        """kill -9 of the process that knows the cluster."""
        _kill(self._cluster.head_node, "gcs_server")
        self.headless = True

    def end(self) -> None:
        for stranger in self._strangers:
            stranger.kill()
            stranger.wait()
        self._cluster.shutdown()


def kill_raylet(node: Any) -> None:
    """kill -9 of what makes a host a node."""
    _kill(node, "raylet")


def _kill(node: Any, process: str) -> None:
    os.kill(node.all_processes[process][0].process.pid, signal.SIGKILL)


def can_hide() -> bool:
    """Whether this process may give another one a view of its own of the file system."""
    return subprocess.run(["unshare", "--mount", "--uts", "--pid", "--fork", "true"], capture_output=True).returncode == 0


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
        actors = b"ray::Actor", b"ray::LaneActor"
        wait_until(lambda: not any(alive(pid) for each in actors for pid in ray_processes(each) - before), "no actor is left")
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
