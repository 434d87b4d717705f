"""The lane on a node that offers `latency`: who stands still while it times, and what happens when something is killed."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from cluster import Nodes, can_hide, nodes, ray_processes
from harness import WORKER, Ticker, alive, end_of, events_of, heard, room, wait_until

from nas.errors import InputError, UnreachableError
from nas.execution.executor import Attempt, Executor, Lost, Result
from nas.execution.ray.cluster import offer
from nas.execution.ray.executor import RayExecutor

Tickers = Callable[..., Ticker]

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not can_hide(), reason="may not make a host of its own to a process")]


@contextmanager
def opened(nodes: Nodes, logs: Path, **settings: object) -> Iterator[RayExecutor]:
    with closing(RayExecutor(WORKER, WORKER, logs, address=nodes.address, offered=True, **settings)) as executor:
        yield executor


def stands(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def seen_as(pid: int, host: int) -> int:
    """Our number of a process that calls itself `pid`, in the namespace of process numbers of our process `host`."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            same = (folder / "ns" / "pid").readlink() == Path(f"/proc/{host}/ns/pid_for_children").readlink()
            if same and re.search(rf"^NSpid:.*\t{pid}$", (folder / "status").read_text(), re.MULTILINE):
                return int(folder.name)
        except OSError:
            continue
    raise AssertionError(f"no process {pid} there")


def children(parent: int, word: str) -> list[int]:
    """Processes that a process has started, by a word of their command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"\nPPid:\t{parent}\n" in (folder / "status").read_text() and word in (folder / "cmdline").read_text():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def lane_actor() -> int:
    (found,) = ray_processes(b"ray::LaneActor")
    return found


def times(executor: Executor, lane: Ticker) -> None:
    """Start a quiet attempt, and wait until it times."""
    executor.start(lane.attempt)
    wait_until(lambda: heard(executor, 0.02) == [] and (lane.folder / "still").exists(), "quiet")


def end_of_lane(executor: Executor, lane: Ticker) -> object:
    (event,) = events_of(executor, lane.attempt.key)[lane.attempt.key]
    return event


def test_only_its_own_host_stands_still_and_goes_on_whatever_is_killed(tmp_path: Path, ticker: Tickers) -> None:
    with nodes(1) as found:
        stranger = found.add_stranger(tmp_path / "cache", latency=1)
        wait_until(lambda: len(offer(found.address).nodes) == 3, "all are there")
        with opened(found, tmp_path / "logs", lane_patience=40) as executor:
            room(executor, 2)
            running = [ticker("a"), ticker("b")]
            for each in running:
                executor.start(each.attempt)
                each.wait()
            on = {each.host: each for each in running}
            here, there = on["127.0.0.3"], on["127.0.0.4"]
            pid = seen_as(there.pid, stranger.pid)

            times(executor, lane := ticker("whole", "quiet"))
            wait_until(lambda: stands(pid), "the one of its host stands still")
            assert there.still()
            here.wait()
            lane.end()
            assert isinstance(end_of_lane(executor, lane), Result)
            there.wait()

            # the process that measures
            times(executor, lane := ticker("measuring", "quiet"))
            wait_until(lambda: stands(pid), "it stands still")
            os.kill(seen_as(lane.pid, stranger.pid), signal.SIGKILL)
            lost = end_of_lane(executor, lane)
            assert isinstance(lost, Lost) and lost.reason == "its worker ended with signal SIGKILL"
            there.wait()

            # stopped in the middle, after which nothing comes
            times(executor, lane := ticker("stopped", "quiet"))
            measuring = seen_as(lane.pid, stranger.pid)
            assert executor.stop("stopped") > 0 and executor.lane_free
            wait_until(lambda: heard(executor, 0.1) == [] and not alive(measuring), "it has ended")
            there.wait()

            # the helper that stops and continues: another one takes its place
            times(executor, lane := ticker("helped", "quiet"))
            (helper,) = children(lane_actor(), "still.py")
            os.kill(helper, signal.SIGKILL)
            wait_until(lambda: not alive(helper) and children(lane_actor(), "still.py") and stands(pid), "it is replaced")
            lane.end()
            assert isinstance(end_of_lane(executor, lane), Result)
            there.wait()

            # the lane's actor, alone and together with its helper
            for both in (False, True):
                times(executor, lane := ticker(f"actor {both}", "quiet"))
                measuring = seen_as(lane.pid, stranger.pid)
                wait_until(lambda: stands(pid), "it stands still")
                for process in [*(children(lane_actor(), "still.py") if both else []), lane_actor()]:
                    os.kill(process, signal.SIGKILL)
                lost = end_of_lane(executor, lane)
                assert isinstance(lost, Lost) and lost.reason == "the lane on 127.0.0.4 died", lost
                there.wait()
                wait_until(lambda pid=measuring: not alive(pid), "what measured has ended with it")
            assert isinstance(end_of(executor, Attempt("again", "attempts:echo", quiet=True)), Result)

            # what is not up yet when a quiet attempt runs stands still too; so does what is stopped in the middle
            times(executor, lane := ticker("late", "quiet"))
            wait_until(lambda: stands(pid), "it stands still")
            assert executor.stop(there.attempt.key) > 0
            wait_until(lambda: heard(executor, 0.1) == [] and not alive(pid), "it has ended")
            wait_until(lambda: heard(executor, 0.1) == [] and executor.free == 1, "another one is there")
            executor.start((next_one := ticker("next")).attempt)
            assert heard(executor, 1) == [] and next_one.still()
            here.wait()

            # the host leaves in the middle: another one that offers it goes on
            second = found.add_stranger(tmp_path / "cache", latency=1)
            wait_until(lambda: heard(executor, 0.1) == [] and executor.free == 1, "it is there")
            stranger.kill()
            events = events_of(executor, "late", "next")
            assert {type(event) for each in events.values() for event in each} == {Lost}
            assert "127.0.0.4" in events["late"][0].reason  # whichever is noticed first: the actor's end or the host's
            assert isinstance(end_of(executor, Attempt("again", "attempts:echo", quiet=True)), Result)

            # and nobody offers it any more
            second.kill()
            with pytest.raises(UnreachableError, match="has offered `latency` for 40 s") as raised:
                while True:
                    assert all(isinstance(event, Lost) for event in heard(executor, 0.5))
            assert "--resources='{\"latency\": 1}'" in str(raised.value)
            assert alive(here.pid)


def test_raylet_killed_in_the_middle_leaves_nobody_standing(tmp_path: Path, ticker: Tickers) -> None:
    with nodes(0) as found:
        found.add_stranger(tmp_path / "cache", latency=1)
        wait_until(lambda: len(offer(found.address).nodes) == 2, "it is there")
        with opened(found, tmp_path / "logs") as executor:
            executor.start((running := ticker("running")).attempt)
            running.wait()
            times(executor, ticker("lane", "quiet"))
            actor = next(pid for pid in ray_processes(b"ray::Actor"))
            measuring = next(child for child in children(lane_actor(), "nas.execution.worker"))
            wait_until(lambda: stands(actor), "it stands still")
            raylets = [pid for pid in ray_processes() if "raylet/raylet" in Path(f"/proc/{pid}/cmdline").read_text()]
            (raylet,) = (pid for pid in raylets if "127.0.0.3" in Path(f"/proc/{pid}/cmdline").read_text())
            os.kill(raylet, signal.SIGKILL)
            wait_until(lambda: not alive(actor) and not alive(measuring), "both have ended")
            events = events_of(executor, "running", "lane")
            assert {type(event) for each in events.values() for event in each} == {Lost}


def test_hosts_that_are_not_alike_are_refused_and_one_that_is_taken_is_said(tmp_path: Path) -> None:
    with nodes(0) as found:
        found.add_stranger(tmp_path / "cache", latency=1, name="one")
        wait_until(lambda: len(offer(found.address).nodes) == 2, "it is there")
        site = offer(found.address, "auto").site
        assert site is not None and site.host == "127.0.0.3" and site.stamp["machine"].endswith("(one)")
        with opened(found, tmp_path / "logs") as first:
            room(first)
            with pytest.raises(UnreachableError, match="has been taken for 15 s"), opened(found, tmp_path, lane_patience=15):
                pass
        cpuinfo = tmp_path / "cpuinfo"
        cpuinfo.write_text("model name\t: Cray-1\n")
        found.add_stranger(tmp_path / "cache", latency=1, name="two", cpuinfo=cpuinfo)
        wait_until(lambda: len(offer(found.address).nodes) == 3, "it is there")
        with pytest.raises(InputError, match=r"127\.0\.0\.4 both offer `latency` and are not alike: .*Cray-1"):
            offer(found.address, "auto")
        with pytest.raises(InputError, match=r"unknown target 'cpu:onnx', on 127\.0\.0\.3, which offers `latency`"):
            offer(found.address, "cpu:onnx")
