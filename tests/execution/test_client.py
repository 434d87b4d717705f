"""Ray Client: a driver outside of the cluster, over one port of its head. The contract itself is kept in test_executors.py."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from pathlib import Path

import psutil
import pytest
from cluster import Nodes, kill_raylet, nodes
from harness import WORKER, Ticker, alive, events_of, heard, room, wait_until

from nas.errors import InputError, UnreachableError
from nas.execution.executor import Lost
from nas.execution.ray.address import Door
from nas.execution.ray.cluster import offer
from nas.execution.ray.executor import RayExecutor

pytest.importorskip("grpc")
pytestmark = pytest.mark.slow

PORT = 25002
ADDRESS = f"ray://127.0.0.2:{PORT}"
Tickers = Callable[..., Ticker]


def cluster(others: int) -> AbstractContextManager[Nodes]:
    return nodes(others, ray_client_server_port=PORT)


def test_nodes_come_and_die_and_a_dead_head_is_said(tmp_path: Path, ticker: Tickers, capfd: pytest.CaptureFixture[str]) -> None:
    with cluster(1) as found:
        with closing(RayExecutor(WORKER, WORKER, tmp_path, address=ADDRESS)) as executor:
            found.add()
            room(executor, 2)
            running = [ticker("a"), ticker("b")]
            for each in running:
                executor.start(each.attempt)
                each.wait()
            on = {each.host: each for each in running}
            assert set(on) == {"127.0.0.3", "127.0.0.4"}
            kill_raylet(found.others[0])
            (lost,) = events_of(executor, on["127.0.0.3"].attempt.key).popitem()[1]
            assert isinstance(lost, Lost)
            stays = on["127.0.0.4"]
            stays.wait()

            found.kill_head()  # its port is still answered, by those who have lost it
            began = time.monotonic()
            with pytest.raises(UnreachableError, match=f"the Ray cluster at {ADDRESS} is gone"):
                while time.monotonic() < began + 100:
                    assert heard(executor, 0.2) == []
        wait_until(lambda: not alive(stays.pid), "its actor has ended")
        with pytest.raises(UnreachableError, match=f"no Ray cluster can be reached at {ADDRESS}"):
            RayExecutor(WORKER, WORKER, tmp_path, address=ADDRESS)
    assert capfd.readouterr().out == ""


def test_a_cut_connection_is_said(tmp_path: Path, ticker: Tickers) -> None:
    with cluster(1) as found, closing(RayExecutor(WORKER, WORKER, tmp_path, address=ADDRESS)) as executor:
        executor.start((running := ticker("running")).attempt)
        running.wait()
        lines = {process.pid: process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])}
        ours = {pid: line for pid, line in lines.items() if any(found.address in word for word in line)}
        servers = [pid for pid, line in ours.items() if "ray.util.client.server" in line]
        assert servers
        for pid in servers:
            os.kill(pid, signal.SIGKILL)
        began = time.monotonic()
        with pytest.raises(UnreachableError, match=f"the Ray cluster at {ADDRESS} is gone"):
            while time.monotonic() < began + 100:
                assert heard(executor, 0.2) == []
        wait_until(lambda: not alive(running.pid), "its actor has ended")


def test_a_head_that_asks_for_a_token_is_not_reached_without(monkeypatch: pytest.MonkeyPatch) -> None:
    with cluster(0):
        wait_until(lambda: Door("127.0.0.2", PORT).knock() is None, "its port is open")
        assert len(offer(ADDRESS).nodes) == 1
        monkeypatch.delenv("RAY_AUTH_MODE")
        with pytest.raises(InputError, match="open to other hosts: no token authentication"):
            offer(ADDRESS)
