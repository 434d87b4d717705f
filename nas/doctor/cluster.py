"""The Ray cluster that would be used: whether its port answers, and whether a token guards it. Does not connect with ray."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from nas.doctor.finding import Finding
from nas.errors import InputError, UnreachableError

CONNECT_SECONDS = 3.0
CLIENT_PORT = 10001  # of `ray://` where none is named
# What `ray start` leaves behind of the cluster on this host.
CURRENT = Path("/tmp/ray/ray_current_cluster")  # noqa: S108
UNREACHABLE = UnreachableError.exit_code


def cluster(address: str | None) -> Iterator[Finding]:
    """What is at `address`, or at RAY_ADDRESS. Raises InputError for one that is none."""
    source = "--address" if address else "RAY_ADDRESS"
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        yield Finding("ray", "ok", "no RAY_ADDRESS: --executor ray starts a cluster of its own on this host")
        return
    found = address == "auto"
    if found:
        try:
            address = CURRENT.read_text(encoding="utf-8").strip()
        except OSError:
            cure = "ray start --head, or name the cluster's HOST:PORT"
            yield Finding("ray", "fault", f"{source} is auto, but no cluster runs on this host", cure, exit_code=UNREACHABLE)
            return
    host, port = _host_and_port(address, source)
    try:
        with socket.create_connection((host, port), timeout=CONNECT_SECONDS):
            pass
    except OSError as error:
        why = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
        cure = f"start the cluster, open port {port} to this host, or correct {source}"
        yield Finding("ray", "fault", f"{source} {address}: {why}", cure, exit_code=UNREACHABLE)
        return
    yield Finding("ray", "ok", f"{source} {address}: port {port} answers")
    yield from _token(host, auto=found)


def _host_and_port(address: str, source: str) -> tuple[str, int]:
    wrong = InputError(f"{source} '{address}' is no address of a cluster", "give HOST:PORT, for example 10.0.0.1:6379")
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        port = parts.port or (CLIENT_PORT if parts.scheme == "ray" else None)
    except ValueError:
        raise wrong from None
    if not parts.hostname or port is None or parts.scheme not in {"", "ray"}:
        raise wrong
    return parts.hostname, port


def _token(host: str, *, auto: bool) -> Iterator[Finding]:
    """Whether ray would show a token. With RAY_AUTH_MODE unset it does so only to a cluster that it found itself (`auto`)."""
    try:
        kept = _has_token()
    except OSError as error:
        yield Finding("ray", "fault", f"the token cannot be read: {error}", "make it readable", exit_code=UNREACHABLE)
        return
    mode = os.environ.get("RAY_AUTH_MODE")
    if mode is None and auto and kept:
        mode = "token"
    if str(mode).lower() == "token":
        if kept:
            yield Finding("ray", "ok", "token authentication is on")
        else:
            cure = "bring the cluster's token: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"
            yield Finding("ray", "fault", "RAY_AUTH_MODE=token, but there is no token", cure, exit_code=UNREACHABLE)
    elif not _is_loopback(host):
        yield Finding(
            "ray",
            "note",
            f"no token authentication: whoever reaches {host} can run code there",
            "set RAY_AUTH_MODE=token on all hosts, with the same token (ray get-auth-token --generate) in ~/.ray/auth_token",
        )


def _has_token() -> bool:
    """Whether there is a token where ray looks, in its order. Raises OSError for a file that is named and cannot be read."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return True
    if named := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return bool(Path(named).expanduser().read_text(encoding="utf-8").strip())
    default = Path.home() / ".ray" / "auth_token"
    return default.is_file() and bool(default.read_text(encoding="utf-8").strip())


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
