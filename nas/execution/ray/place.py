"""Where an actor is, and whether process ids and files mean the same there as at its driver."""

from __future__ import annotations

import contextlib
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import ray

from nas.cache import cache_root
from nas.execution.still import born


def this_host() -> str:
    """What tells hosts, and containers of one host, apart: where this is equal, process ids mean the same."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}-{Path('/proc/self/ns/pid').stat().st_ino}"
    return platform.node()


@dataclass(frozen=True)
class Place:
    """Where an actor is: its process and when that began, its node and host, and whether it sees the files of its driver."""

    pid: int
    born: int
    node: str
    host: str
    sees: bool


def settled(token: Path | None) -> Place:
    """Where this actor is; it sees the files of its driver where it can read the file `token`, or where there is none. Where
    it does not, Ultralytics' folder is one of this host."""
    sees = token is None or token.is_file()
    if not sees:
        os.environ["YOLO_CONFIG_DIR"] = str(cache_root() / "ultralytics")
    return Place(os.getpid(), born(os.getpid()), ray.get_runtime_context().get_node_id(), this_host(), sees)
