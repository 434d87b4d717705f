"""Who may use a Ray cluster: whether it can be reached from other hosts, and whether a token guards it. Without ray.

`ray start` and `ray.init` listen on all interfaces, also with `--node-ip-address=127.0.0.1`. A cluster that `ray.init` starts
for itself has a token; one that `ray start` starts has one if it finds one. Without, whoever reaches the port of the head can
run code on all its hosts.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from nas.errors import InputError

CLIENT_PORT = 10001  # of `ray://` where none is named
CURE = "set RAY_AUTH_MODE=token on all hosts, with the same token (ray get-auth-token --generate) in ~/.ray/auth_token"
# What `ray start` leaves behind of the cluster on this host.
CURRENT = Path("/tmp/ray/ray_current_cluster")  # noqa: S108
SOCKETS = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))  # Linux alone has these
LISTENING = "0A"


def exposed(address: str, environment: Mapping[str, str] = os.environ, *, found: bool = False) -> str | None:
    """Why using the cluster at `address` (`auto`, HOST:PORT, ray://HOST:PORT) would be unsafe, in words; None if it is not.

    `found`: ray has found that address itself, for `auto`. It is unsafe where its head listens on more than loopback and ray
    would show no token. A name that cannot be resolved counts as another host. Raises InputError for what is no address.
    """
    if address == "auto":
        found, address = True, current_cluster() or ""
        if not address:
            return None
    host, port = host_and_port(address)
    if not reachable(host, port):
        return None
    try:
        if not token_mode(environment, found=found):
            return f"no token authentication: whoever reaches {host} can run code there"
        return None if has_token(environment) else "RAY_AUTH_MODE=token, but there is no token"
    except OSError as error:
        return f"the token cannot be read: {error}"


def host_and_port(address: str, source: str = "--address") -> tuple[str, int]:
    """The two parts of HOST:PORT or ray://HOST[:PORT]. Raises InputError, which names the `source`, for anything else."""
    wrong = InputError(f"{source} '{address}' is no address of a cluster", "give HOST:PORT, for example 10.0.0.1:6379")
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        port = parts.port or (CLIENT_PORT if parts.scheme == "ray" else None)
    except ValueError:
        raise wrong from None
    if not parts.hostname or port is None or parts.scheme not in {"", "ray"}:
        raise wrong
    return parts.hostname, port


def current_cluster() -> str | None:
    """The address that `auto` stands for: of the cluster that `ray start` last started or joined on this host."""
    try:
        return CURRENT.read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def reachable(host: str, port: int) -> bool:
    """Whether others may reach what listens there: not on loopback, or on loopback and on other interfaces of this host."""
    try:
        places = {str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except OSError:
        return True
    return not all(_is_loopback(place) for place in places) or _listens_beyond_loopback(port)


def token_mode(environment: Mapping[str, str], *, found: bool = False) -> bool:
    """Whether ray would show a token. With RAY_AUTH_MODE unset it does so only to a cluster that it `found` itself."""
    mode = environment.get("RAY_AUTH_MODE")
    return mode.lower() == "token" if mode is not None else found and has_token(environment)


def has_token(environment: Mapping[str, str]) -> bool:
    """Whether there is a token where ray looks, in its order. Raises OSError for a file that is named and cannot be read.

    As in ray, a `~` in RAY_AUTH_TOKEN_PATH is no home, and what is blank is not set.
    """
    if environment.get("RAY_AUTH_TOKEN", "").strip():
        return True
    if named := environment.get("RAY_AUTH_TOKEN_PATH"):
        return bool(Path(named).read_text(encoding="utf-8").strip())
    default = Path(environment.get("HOME") or Path.home()) / ".ray" / "auth_token"
    return default.is_file() and bool(default.read_text(encoding="utf-8").strip())


def _is_loopback(place: str) -> bool:
    address = ipaddress.ip_address(place.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def _listens_beyond_loopback(port: int) -> bool:
    """Whether a socket of this host listens on that port of an address that is not loopback."""
    for table in SOCKETS:
        try:
            lines = table.read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            _, local, _, state = line.split()[:4]
            place, _, hexadecimal = local.rpartition(":")
            if state == LISTENING and int(hexadecimal, 16) == port and not _is_loopback(_place(place)):
                return True
    return False


def _place(hexadecimal: str) -> str:
    """An address as the kernel writes it: words of four bytes, each in the order of the host's memory."""
    words = [int(hexadecimal[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(hexadecimal), 8)]
    return str(ipaddress.ip_address(b"".join(words)))
