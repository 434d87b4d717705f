"""The Ray cluster that would be used: whether its port answers, and whether a token guards it. Does not connect with ray."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

from nas.doctor.finding import Finding
from nas.errors import UnreachableError
from nas.execution.security import CURE, current_cluster, exposed, has_token, host_and_port, token_mode

CONNECT_SECONDS = 3.0
UNREACHABLE = UnreachableError.exit_code


def cluster(address: str | None) -> Iterator[Finding]:
    """What is at `address`, or at RAY_ADDRESS. Raises InputError for one that is none."""
    source = "--address" if address else "RAY_ADDRESS"
    asked = address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        yield Finding("ray", "ok", "no RAY_ADDRESS: --executor ray starts a cluster of its own on this host")
        return
    if address == "auto":
        address = current_cluster()
        if not address:
            cure = "ray start --head, or name the cluster's HOST:PORT"
            yield Finding("ray", "fault", f"{source} is auto, but no cluster runs on this host", cure, exit_code=UNREACHABLE)
            return
    host, port = host_and_port(address, source)
    try:
        with socket.create_connection((host, port), timeout=CONNECT_SECONDS):
            pass
    except OSError as error:
        why = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
        cure = f"start the cluster, open port {port} to this host, or correct {source}"
        yield Finding("ray", "fault", f"{source} {address}: {why}", cure, exit_code=UNREACHABLE)
        return
    yield Finding("ray", "ok", f"{source} {address}: port {port} answers")
    yield from _token(asked)


def _token(address: str) -> Iterator[Finding]:
    """Whether ray would show a token, and whether it must."""
    if why := exposed(address, os.environ):
        yield Finding("ray", "fault", why, CURE, exit_code=UNREACHABLE)
        return
    try:
        if not token_mode(os.environ, found=address == "auto"):
            return
        if has_token(os.environ):
            yield Finding("ray", "ok", "token authentication is on")
            return
        why = "RAY_AUTH_MODE=token, but there is no token"
    except OSError as error:
        why = f"the token cannot be read: {error}"
    yield Finding("ray", "fault", why, CURE, exit_code=UNREACHABLE)
