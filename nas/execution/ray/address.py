"""Where a Ray cluster is, as people type it, and whether anybody listens there. Does not import ray.

Ray itself waits for minutes for a head that is not there, and ends the whole process when one is lost.
"""

from __future__ import annotations

import importlib.util
import os
import socket
from dataclasses import dataclass

from nas.errors import InputError, UnreachableError

AUTO, CLIENT = "auto", "ray://"
PROBE_SECONDS = 3.0
_FORMS = "give auto, HOST:PORT (what `ray start --head` prints, usually port 6379) or ray://HOST:10001"


@dataclass(frozen=True)
class Door:
    """A TCP port that a cluster answers at."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def knock(self) -> OSError | None:
        """None where somebody listens, else why not."""
        try:
            with socket.create_connection((self.host, self.port), timeout=PROBE_SECONDS):
                return None
        except OSError as error:
            return error


def door_of(address: str) -> Door | None:
    """The port that an address names, None for `auto`. Raises InputError for what is no address."""
    if address == AUTO:
        return None
    host, colon, port = address.removeprefix(CLIENT).strip("/").rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise InputError(f"--address {address}: not the address of a Ray cluster", _FORMS)
    if address.startswith(CLIENT) and importlib.util.find_spec("grpc") is None:
        cure = "pip install 'yolo-placement-search[client]' here and on the head, or give HOST:PORT of its head"
        raise InputError(f"--address {address} needs Ray Client, whose package grpcio is not installed", cure)
    return Door(host, int(port))


def require(door: Door, address: str) -> None:
    """Raises UnreachableError, within seconds, where nobody listens."""
    problem = door.knock()
    if problem is not None:
        silent = isinstance(problem, TimeoutError)
        why = f"no answer within {PROBE_SECONDS:.0f} s" if silent else (problem.strerror or str(problem)).lower()
        raise UnreachableError(
            f"no Ray cluster answers at {door}: {why}",
            f"check {address} and `ray status` there; start one with: ray start --head" if address != AUTO else START,
        )


START = "start one with: ray start --head"
OFFER = """ray start --address=HEAD:6379 --resources='{"latency": 1}'"""  # to offer to measure latency


def asked_of_environment() -> str | None:
    """The cluster that RAY_ADDRESS names, if it names one."""
    named = os.environ.get("RAY_ADDRESS", "")
    return named if named not in {"", "local"} else None
