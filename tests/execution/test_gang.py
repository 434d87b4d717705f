"""One attempt that several processes carry out: what they tell, and that they end together."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from harness import WORKER, Ticker, alive, end_of, events_of, wait_until

from nas.execution.executor import Attempt, Failed, Lost, Progress, Result
from nas.execution.local import LocalExecutor
from nas.execution.watch import Watched
from nas.execution.work import TRAIN, TrainJob

Make = Callable[..., Ticker]


@pytest.fixture
def executor(tmp_path: Path) -> Iterator[LocalExecutor]:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    executor = LocalExecutor([WORKER | {"TMPDIR": str(temporary)}], WORKER, tmp_path / "logs")
    yield executor
    executor.close()
    left = [path.name for path in temporary.iterdir() if not path.name.startswith("torchinductor")]  # torch's own cache
    assert not left, "nothing is left behind"


def members(attempt: Ticker) -> list[Ticker]:
    """The two processes, once they count."""
    found = [Ticker(attempt.folder / str(rank), attempt.attempt) for rank in range(2)]
    for each in found:
        each.wait()
    return found


def all_gone(*pids: int) -> None:
    wait_until(lambda: not any(map(alive, pids)), f"{pids} end")


def test_the_first_one_tells_and_all_stay_warm(executor: LocalExecutor, ticker: Make, tmp_path: Path) -> None:
    pids = []
    for key in "ab":
        together = ticker(key, "gang")
        attempt = Attempt(key, "attempts:gang", together.attempt.payload, log=str(tmp_path / f"{key}.log"))
        executor.start(attempt)
        pids.append([each.pid for each in members(together)])
        together.end()
        *told, end = events_of(executor, key)[key]
        assert [event.data for event in told if isinstance(event, Progress) and event.data] == [{"rank": 0}]
        assert isinstance(end, Result) and end.data["pid"] == pids[-1][0]
        assert sorted((tmp_path / f"{key}.log").read_text().splitlines()) == ["member 0 of 2", "member 1 of 2"]
    assert pids[0] == pids[1]
    executor.close()
    all_gone(*pids[0])


@pytest.mark.parametrize(
    ("how", "reason"), [("input", "the data is gone"), ("memory", "out of memory"), ("bare", "ValueError: ")]
)
def test_what_one_raises_ends_all(executor: LocalExecutor, ticker: Make, how: str, reason: str) -> None:
    together = ticker("a", "gang", how=how)
    executor.start(together.attempt)
    first = Ticker(together.folder / "0", together.attempt)
    first.wait()
    *_, end = events_of(executor, "a")["a"]
    assert isinstance(end, Failed) and end.reason == reason
    assert how != "bare" or "raise {" in end.detail, "the lines of the one who raised"
    all_gone(first.pid)
    again = ticker("b", "gang")  # others begin
    again.end()
    executor.start(again.attempt)
    *_, end = events_of(executor, "b")["b"]
    assert isinstance(end, Result)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_one_loses_the_attempt_and_leaves_no_process(
    executor: LocalExecutor, ticker: Make, rank: int, tmp_path: Path
) -> None:
    together, log = ticker("a", "gang"), tmp_path / "a.log"
    executor.start(Attempt("a", "attempts:gang", together.attempt.payload, log=str(log)))
    pids = [each.pid for each in members(together)]
    os.kill(pids[rank], signal.SIGKILL)
    *_, end = events_of(executor, "a")["a"]
    assert isinstance(end, Lost) and end.seconds > 0
    assert f"process {rank + 1} of the 2 that train together: its worker ended with signal SIGKILL" in end.detail
    all_gone(*pids)
    assert isinstance(end_of(executor, Attempt("b", "attempts:echo")), Result)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_one_of_a_training(executor: LocalExecutor, training: TrainJob, rank: int, tmp_path: Path) -> None:
    """The one that is left hears of it from the network first, and fails by it: that is not what the attempt is judged by."""
    log = tmp_path / "a.log"
    executor.start(Attempt("a", TRAIN, asdict(replace(training, devices=2, rungs=[500])), log=str(log)))
    wait_until(lambda: any(event.data for event in executor.poll(0.1)), "an epoch ends")
    worker = executor._workers[0].pid
    pids = sorted(int(pid) for file in Path(f"/proc/{worker}/task").glob("*/children") for pid in file.read_text().split())
    assert len(pids) == 2
    os.kill(pids[rank], signal.SIGKILL)
    *_, end = events_of(executor, "a")["a"]
    assert isinstance(end, Lost) and "that train together: its worker ended with signal SIGKILL" in end.detail
    all_gone(worker, *pids)


def test_they_end_with_their_worker_and_stand_still_with_it(executor: LocalExecutor, ticker: Make) -> None:
    together, lane = ticker("a", "gang"), ticker("lane", "quiet")
    executor.start(together.attempt)
    both = members(together)
    executor.poll(0)  # it hears that its worker is ready
    executor.start(lane.attempt)
    wait_until((lane.folder / "still").exists, "the lane times")
    assert all(each.still() for each in both)
    lane.end()
    events_of(executor, "lane")
    for each in both:
        each.wait()
    executor.stop("a")
    all_gone(*(each.pid for each in both))


def test_one_that_hangs_is_ended_with_all_others(executor: LocalExecutor, ticker: Make) -> None:
    watched, together = Watched(executor, silent=8.0), ticker("a", "gang")
    watched.start(together.attempt)
    both = members(together)
    began = time.monotonic()
    os.kill(both[0].pid, signal.SIGSTOP)
    *_, end = events_of(watched, "a")["a"]
    assert isinstance(end, Lost) and end.reason.startswith("no sign of life") and time.monotonic() - began > 2
    all_gone(*(each.pid for each in both))
