"""Many hosts: three nodes and a head on loopback addresses, and what happens when one of them dies."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import ray
from cluster import Nodes, can_hide, kill_raylet, nodes
from harness import WORKER, Ticker, alive, end_of, events_of, heard, room, wait_until
from ray._private import services

from nas.errors import InputError, UnreachableError
from nas.execution import security
from nas.execution.executor import Attempt, Event, Executor, Failed, Lost, Result
from nas.execution.ray.address import Door, door_of
from nas.execution.ray.cluster import Needs, Node, Offer, fit
from nas.execution.ray.executor import RayExecutor

Tickers = Callable[..., Ticker]


@pytest.fixture(scope="module")
def three() -> Iterator[Nodes]:
    with nodes(2, num_cpus=1) as found:
        yield found


@contextmanager
def opened(nodes: Nodes, logs: Path, **settings: object) -> Iterator[RayExecutor]:
    with closing(RayExecutor(WORKER, WORKER, logs, address=nodes.address, **settings)) as executor:
        yield executor


def running(executor: Executor, *tickers: Ticker) -> None:
    room(executor, len(tickers))
    for each in tickers:
        executor.start(each.attempt)
    for each in tickers:
        each.wait()


@pytest.mark.slow
def test_nodes_die_and_come(three: Nodes, tmp_path: Path, ticker: Tickers, capfd: pytest.CaptureFixture[str]) -> None:
    with opened(three, tmp_path) as executor:
        room(executor, 3)
        assert executor.free == 3  # one slot per CPU of the cluster
        tickers = [ticker(key) for key in "abc"]
        running(executor, *tickers)
        on = {each.host: each for each in tickers}
        assert set(on) == {"127.0.0.2", "127.0.0.3", "127.0.0.4"} and executor.free == 0

        # a worker
        os.kill(on["127.0.0.4"].pid, signal.SIGKILL)
        (lost,) = events_of(executor, on["127.0.0.4"].attempt.key).popitem()[1]
        assert isinstance(lost, Lost) and lost.reason == "its Ray actor died"
        running(executor, again := ticker("again"))
        assert again.host == "127.0.0.4"

        # a host
        kill_raylet(three.others[1])
        (lost,) = events_of(executor, "again")["again"]
        assert isinstance(lost, Lost) and lost.reason == "its host 127.0.0.4 has left the cluster"
        stays, ends = on["127.0.0.2"], on["127.0.0.3"]
        stays.wait()
        ends.end()
        assert isinstance(events_of(executor, ends.attempt.key).popitem()[1][0], Result)
        assert isinstance(end_of(executor, Attempt("elsewhere", "attempts:echo")), Result)
        assert heard(executor, 3) == [] and executor.free == 1

        # another one comes
        three.add()
        room(executor, 2)
        stays.wait()
    wait_until(lambda: not alive(stays.pid), "its actor has ended")
    assert capfd.readouterr().out == ""


@pytest.mark.slow
def test_no_more_than_asked_for_and_gpus_in_shares_but_none_is_not_waited_for(three: Nodes, tmp_path: Path) -> None:
    with opened(three, tmp_path, workers=1) as executor:
        assert heard(executor, 3) == [] and executor.free == 1
    began = time.monotonic()
    with (
        pytest.raises(UnreachableError, match=r"takes 1 GPU and 1 CPU: .* has 3 nodes with 3 CPUs and 0 GPUs"),
        opened(three, tmp_path, gpus=1, patience=2),
    ):
        pass
    assert time.monotonic() - began < 30
    three.add(num_gpus=2)
    with opened(three, tmp_path, gpus=0.5, cores=0) as executor:
        room(executor, 4)
        assert executor.free == 4
        for key in "abcd":
            executor.start(Attempt(key, "attempts:echo", {"gpus": True}))
        assert sorted(events[0].data["gpus"] for events in events_of(executor, *"abcd").values()) == ["0", "0", "1", "1"]


@pytest.mark.slow
def test_several_gpus_for_a_trial(three: Nodes, tmp_path: Path, ticker: Tickers) -> None:
    """On nodes that have so many; the processes on them stay warm, and end with their actor, or it with them."""
    three.add(num_gpus=2)
    with opened(three, tmp_path, gpus=2, cores=0) as executor:
        room(executor)
        end = end_of(executor, Attempt("echo", "attempts:echo", {"gpus": True}))
        assert isinstance(end, Result) and end.data["gpus"] == "0,1"

        def begun(key: str) -> tuple[Ticker, list[Ticker]]:
            together = ticker(key, "gang")
            room(executor)
            executor.start(together.attempt)
            both = [Ticker(together.folder / str(rank), together.attempt) for rank in range(2)]
            for each in both:
                each.wait()
            return together, both

        together, both = begun("a")
        together.end()
        *_, end = events_of(executor, "a")["a"]
        assert isinstance(end, Result) and end.data["pid"] == both[0].pid
        _, again = begun("b")
        assert [each.pid for each in again] == [each.pid for each in both]
        os.kill(again[1].pid, signal.SIGKILL)
        *_, end = events_of(executor, "b")["b"]
        assert isinstance(end, Lost) and end.reason == "its Ray actor died"
        wait_until(lambda: not any(alive(each.pid) for each in again), "both end")
        _, last = begun("c")
        executor.stop("c")
        wait_until(lambda: not any(alive(each.pid) for each in last), "they end with their actor")


@pytest.mark.slow
def test_a_dead_head_is_said_and_another_cluster_goes_on(tmp_path: Path, ticker: Tickers) -> None:
    with nodes(1) as first:
        with opened(first, tmp_path) as executor:
            running(executor, each := ticker("a"))
            first.kill_head()
            began = time.monotonic()
            with pytest.raises(UnreachableError, match=f"the Ray cluster at {first.address} is gone") as found:
                while time.monotonic() < began + 60:
                    assert heard(executor, 0.2) == []
            assert "--resume" in str(found.value)
            assert time.monotonic() - began < 20
        wait_until(lambda: not alive(each.pid), "its actor has ended")
        began = time.monotonic()
        with pytest.raises(UnreachableError, match="no Ray cluster answers"), opened(first, tmp_path):
            pass
        assert time.monotonic() - began < 10
    with nodes(1) as second, opened(second, tmp_path) as executor:
        assert isinstance(end_of(executor, Attempt("a", "attempts:echo")), Result)


@pytest.mark.skipif(not can_hide(), reason="may not hide files from a process")
@pytest.mark.slow
def test_a_host_without_our_files_gets_them_and_brings_back_what_it_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    monkeypatch.chdir(here)  # Ray's workers look for modules in their driver's folder first
    (here / "start.pt").write_text("there and")
    payload = {"weights": str(here / "start.pt"), "keep": str(here / "trial" / "weights.pt")}
    log = here / "trial" / "worker.log"
    with nodes(0) as found:
        found.add_stranger(there, here)
        with opened(found, here / "logs") as executor:
            executor.start(Attempt("a", "attempts:travel", payload, log=str(log)))
            *reports, result = events_of(executor, "a")["a"]
            assert [event.data for event in reports] == [{"epoch": 1}]
            assert isinstance(result, Result) and result.data["keep"] == payload["keep"]
            assert "runtime_resources" in result.data["code"]  # ours, not what is installed there
            assert (here / "trial" / "weights.pt").read_text() == "there and back"
            assert log.read_text() == "begins\nends\n"
            assert list(there.rglob("weights.pt")) == [] and len(list(there.rglob("start.pt"))) == 1
            lost = end_with(executor, Attempt("b", "attempts:travel", payload | {"dies": True}, log=str(log)))
            assert isinstance(lost, Lost) and lost.detail.splitlines()[:3] == ["begins", "ends", "begins"]
            failed = end_of(executor, Attempt("c", "attempts:travel", {"weights": str(here / "none.pt")}))
            assert isinstance(failed, Failed) and str(here / "none.pt") in failed.reason and "there/" not in failed.reason
    assert not list((here / "logs").glob(".seen*"))


def end_with(executor: Executor, attempt: Attempt) -> Event:
    """The last event of an attempt that reports."""
    room(executor)
    executor.start(attempt)
    return events_of(executor, attempt.key)[attempt.key][-1]


def test_addresses() -> None:
    assert door_of("auto") is None
    assert door_of("10.0.0.1:6379") == Door("10.0.0.1", 6379)
    assert door_of("[::1]:6379") == Door("::1", 6379) and str(Door("::1", 6379)) == "[::1]:6379"
    for wrong in ("", "host", "host:", ":6379", "host:ray", "host:70000", "http://host:6379"):
        with pytest.raises(InputError, match="not the address of a Ray cluster"):
            door_of(wrong)


def test_ray_client_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert door_of("10.0.0.1:6379") == Door("10.0.0.1", 6379)
    with pytest.raises(InputError, match="needs Ray Client") as raised:
        door_of("ray://10.0.0.1:10001")
    assert "yolo-placement-search[client]" in raised.value.hint
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    assert door_of("ray://10.0.0.1:10001") == Door("10.0.0.1", 10001)


@pytest.mark.slow
def test_a_cluster_without_a_token_is_refused(three: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE")
    with pytest.raises(InputError, match="open to other hosts: no token authentication") as raised, opened(three, tmp_path):
        pass
    assert "RAY_AUTH_MODE=token" in raised.value.hint


def test_a_cluster_that_auto_finds_by_its_process_needs_a_token_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One whose address does not lie where `ray start` leaves it, as with --temp-dir."""
    monkeypatch.setattr(security, "CURRENT", tmp_path / "none")
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("it was connected to"))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("0.0.0.0", 0)) as head:
        found = f"127.0.0.1:{head.getsockname()[1]}"
        monkeypatch.setattr(services, "find_bootstrap_address", lambda _: found)
        for seen in ({found}, {found, "127.0.0.9:1"}):
            monkeypatch.setattr(services, "find_gcs_addresses", lambda seen=seen: seen)
            with pytest.raises(InputError, match="open to other hosts: no token authentication"):
                RayExecutor(WORKER, WORKER, tmp_path, address="auto")
    assert not any(capfd.readouterr())  # Ray warns of several


def test_nobody_there_is_said_in_seconds(tmp_path: Path) -> None:
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.2", 0))
        address = f"127.0.0.2:{taken.getsockname()[1]}"
        with pytest.raises(UnreachableError, match=f"no Ray cluster answers at {address}: connection refused"):
            RayExecutor(WORKER, WORKER, tmp_path, address=address)


def test_how_many_actors_fit() -> None:
    held = [Node("a", "a", {"CPU": 8.0, "GPU": 2.0}), Node("b", "b", {"CPU": 3.0}), Node("c", "c", {})]
    assert [fit(held, Needs(*needs)) for needs in ((1, 0), (2, 0), (1, 1), (1, 0.25), (4, 0.5), (1, 2), (1, 4))] == [
        11,
        5,
        2,
        8,
        2,
        1,
        0,
    ]
    assert (Offer(held).gpus, Offer(held).workers(1, 0.3), Offer([]).workers(1, 0)) == (2, 6, 1)
    assert (Offer(held).most_gpus, Offer([]).most_gpus) == (2, 0)
