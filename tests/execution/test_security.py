"""A cluster that other hosts can reach is used with a token only."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from nas.errors import InputError
from nas.execution import security
from nas.execution.security import exposed, has_token, host_and_port

FAR = "10.0.0.1:6379"
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "secret"}


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    return {"HOME": str(tmp_path)}


def test_loopback_needs_no_token_and_all_else_does(home):
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_server(("::1", 0), family=socket.AF_INET6) as six:
        port, port6 = server.getsockname()[1], six.getsockname()[1]
        for address in (
            f"127.0.0.1:{port}",
            f"127.0.0.2:{port}",
            f"localhost:{port}",
            f"ray://localhost:{port}",
            f"[::1]:{port6}",
        ):
            assert exposed(address, home) is None
    for address in (FAR, "ray://10.0.0.1", "10.0.0.1:1", "[2001:db8::1]:6379", "no-such-host.invalid:6379"):
        assert "no token" in str(exposed(address, home))
        assert exposed(address, home | TOKEN) is None


@pytest.mark.skipif(not security.SOCKETS[0].exists(), reason="only Linux says who listens")
def test_a_head_of_this_host_that_listens_everywhere_is_exposed_by_whatever_name(home):
    for family, place in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        with socket.create_server((place, 0), family=family) as server:
            address = f"127.0.0.1:{server.getsockname()[1]}"
            assert "no token" in str(exposed(address, home)), place
        assert exposed(address, home) is None
    with socket.create_server(("::ffff:127.0.0.1", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        assert exposed(f"127.0.0.1:{server.getsockname()[1]}", home) is None


def test_a_name_is_as_exposed_as_any_of_its_addresses(home, monkeypatch):
    def resolve(host: str, *_: object, **__: object) -> list[object]:
        return [(2, 1, 6, "", (place, 0)) for place in {"in": ["127.0.1.1", "::1"], "out": ["127.0.1.1", "10.0.0.1"]}[host]]

    monkeypatch.setattr(security.socket, "getaddrinfo", resolve)
    assert exposed("in:1", home) is None and exposed("out:1", home)


def test_ray_shows_its_token_only_where_told_to(home, tmp_path, monkeypatch):
    file = tmp_path / ".ray" / "auth_token"
    file.parent.mkdir()
    file.write_text("secret\n")
    assert "no token authentication" in str(exposed(FAR, home))
    for mode, refused in (("token", False), ("TOKEN", False), ("disabled", True), ("", True)):
        assert bool(exposed(FAR, home | {"RAY_AUTH_MODE": mode})) is refused
    monkeypatch.setattr(security, "CURRENT", tmp_path / "current")
    assert exposed("auto", {}) is None  # no cluster at all
    security.CURRENT.write_text(FAR)
    assert exposed("auto", home) is None  # ray turns its token on for a cluster that it finds
    assert exposed("auto", home | {"RAY_AUTH_MODE": "disabled"})
    file.unlink()
    assert exposed("auto", home)
    assert "there is no token" in str(exposed(FAR, home | {"RAY_AUTH_MODE": "token"}))


def test_a_token_is_looked_for_as_ray_does(home, tmp_path):
    file = tmp_path / "token"
    file.write_text(" \n")
    named = home | {"RAY_AUTH_TOKEN_PATH": str(file)}
    assert not has_token(home) and not has_token(named) and not has_token(home | {"RAY_AUTH_TOKEN": " "})
    file.write_text("secret\n")
    assert has_token(named) and not has_token(home | {"RAY_AUTH_TOKEN_PATH": ""})
    for wrong in ("~/token", str(tmp_path / "nothing")):
        assert "cannot be read" in str(exposed(FAR, home | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": wrong}))


@pytest.mark.parametrize("address", ["", "10.0.0.1", "10.0.0.1:x", "10.0.0.1:99999", "http://10.0.0.1:1", ":6379", "[::1:1"])
def test_what_is_no_address_is_said(address):
    with pytest.raises(InputError, match="no address of a cluster"):
        host_and_port(address)
