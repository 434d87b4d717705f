"""The contract of executors, kept in virtual time, and the faults that come on top."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.errors import UnreachableError
from nas.execution.executor import Attempt, Failed, Lost, Result
from nas.execution.simulate import ENDED, SIMULATE, Clock, Faults, Leave, SimulatedExecutor

NO_FAULTS = Faults()


def attempt(key: str, seconds: float) -> Attempt:
    return Attempt(key, SIMULATE, {"seconds": seconds, "data": {"map": 0.5}}, seed=len(key))


def executor(workers: int, faults: Faults = NO_FAULTS, seed: int = 0) -> tuple[Clock, SimulatedExecutor]:
    clock = Clock()
    return clock, SimulatedExecutor(clock, workers, faults, seed)


def test_an_attempt_ends_once_and_when_it_says():
    clock, own = executor(2)
    own.start(attempt("a", 10))
    assert own.poll(4) == [] and clock.now == 4
    own.start(attempt("b", 3))
    with pytest.raises(RuntimeError, match="no room"):
        own.start(attempt("c", 1))
    assert own.poll(100) == [Result("b", {"map": 0.5, ENDED: 7.0}, 3.0)] and clock.now == 7
    assert own.poll(0) == [] and clock.now == 7
    assert own.poll(math.inf) == [Result("a", {"map": 0.5, ENDED: 10.0}, 10.0)]
    assert own.free == 2 and own.busy == pytest.approx(13 / 20)
    assert own.poll(5) == [] and clock.now == 15


def test_what_ends_together_comes_together_and_what_is_stopped_not_at_all():
    clock, own = executor(3)
    for key in ("a", "b", "c"):
        own.start(attempt(key, 5))
    assert own.poll(2) == []
    assert own.stop("b") == 2 and own.stop("b") == 0 and own.stop("unknown") == 0
    own.start(attempt("b", 100))  # a key may come again once its attempt was stopped
    assert [event.key for event in own.poll(math.inf)] == ["a", "c"]
    assert [event.key for event in own.poll(math.inf)] == ["b"] and clock.now == 102
    own.close()
    assert own.free == 3


def test_a_worker_only_simulates():
    with pytest.raises(RuntimeError, match="cannot be simulated"):
        executor(1)[1].start(Attempt("a", "attempts:echo"))


def test_workers_that_leave_lose_what_began_last_and_may_come_back():
    clock, own = executor(3, Faults(leave=(Leave(10, 2, back=30),)))
    for when, key in enumerate(("a", "b", "c")):
        clock.now = float(when)
        own.start(attempt(key, 100))
    events = own.poll(math.inf)
    assert [(type(e), e.key, e.seconds) for e in events] == [(Lost, "b", 9), (Lost, "c", 8)]
    assert clock.now == 10 and own.free == 0
    assert own.poll(20) == [] and own.free == 2


def test_nobody_left_is_said_and_not_waited_for():
    _, own = executor(1, Faults(leave=(Leave(10, 1),)))
    own.start(attempt("a", 100))
    assert isinstance(own.poll(math.inf)[0], Lost) and own.free == 0
    with pytest.raises(UnreachableError, match="all workers have left"):
        own.poll(math.inf)


@given(
    workers=st.integers(1, 5),
    lengths=st.lists(st.floats(0.1, 100), min_size=1, max_size=30),
    fail=st.floats(0, 0.5),
    lose=st.floats(0, 0.5),
    seed=st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_every_attempt_ends_once_and_time_never_runs_back(workers, lengths, fail, lose, seed):
    def run() -> list[tuple[float, object]]:
        clock, own = executor(workers, Faults(fail, lose), seed)
        waiting = [attempt(f"{number}", seconds) for number, seconds in enumerate(lengths)]
        seen: list[tuple[float, object]] = []
        while waiting or own.free < workers:
            while waiting and own.free:
                own.start(waiting.pop(0))
            seen += [(clock.now, event) for event in own.poll(math.inf)]
        assert own.busy <= 1 + 1e-9
        assert own.busy * clock.now * workers == pytest.approx(sum(event.seconds for _, event in seen))
        return seen

    seen = run()
    assert sorted(event.key for _, event in seen) == sorted(map(str, range(len(lengths))))
    assert all(before <= after for (before, _), (after, _) in pairwise(seen))
    for _, event in seen:
        whole = lengths[int(event.key)]
        assert event.seconds == whole if isinstance(event, Result) else 0 <= event.seconds <= whole
    assert seen == run()


def test_faults_come_as_often_as_asked():
    clock, own = executor(1, Faults(fail=0.2, lose=0.1))
    kinds = []
    for number in range(2000):
        own.start(attempt(f"{number}", 1))
        kinds += [type(event) for event in own.poll(math.inf)]
    assert kinds.count(Failed) == pytest.approx(400, abs=60) and kinds.count(Lost) == pytest.approx(200, abs=45)
    assert clock.now < 2000
