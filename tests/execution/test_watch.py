"""Who is called hung: with a clock that tests set."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from nas.execution.executor import Attempt, Event, Lost, Progress, Result
from nas.execution.watch import Watched


@dataclass
class Inner:
    """An executor whose events a test says. Polling takes all the time that it may."""

    now: float = 0.0
    events: list[Event] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    free = 9
    lane_free = True

    def start(self, attempt: Attempt) -> None:
        pass

    def poll(self, timeout: float) -> list[Event]:
        self.waits.append(timeout)
        events, self.events = self.events, []
        if not events:
            self.now += timeout
        return events

    def stop(self, key: str) -> float:
        self.stopped.append(key)
        return self.now

    def close(self) -> None:
        pass


@pytest.fixture
def inner() -> Inner:
    return Inner()


@pytest.fixture
def watched(inner: Inner) -> Watched:
    return Watched(inner, clock=lambda: inner.now)


def test_ten_minutes_of_silence(inner: Inner, watched: Watched) -> None:
    for key in "ab":
        watched.start(Attempt(key, "x"))
    for _ in range(9):
        inner.now += 50
        inner.events = [Progress("a", {}, inner.now)]
        assert len(watched.poll(1)) == 1
    assert inner.stopped == []
    (lost,) = watched.poll(1000)
    assert isinstance(lost, Lost) and lost.key == "b" and "10 min" in lost.reason
    assert inner.waits[-1] == 150  # no longer than until then
    assert inner.stopped == ["b"] and inner.now == 600
    inner.events = [Result("a", {}, 600.0)]
    assert len(watched.poll(1)) == 1
    assert watched.poll(5000) == []  # nobody is left to wait for


def test_five_median_epochs(inner: Inner, watched: Watched) -> None:
    watched.start(Attempt("a", "x"))
    for epoch in range(1, 6):
        inner.now += 300
        inner.events = [Progress("a", {"epoch": epoch, "epochs": 9}, inner.now)]
        watched.poll(1)
    assert watched.limit == 5 * 300
    began = inner.now
    while not inner.stopped:
        watched.poll(59)
    assert inner.now - began == 1500


def test_who_was_not_listened_to_is_not_to_blame(inner: Inner, watched: Watched) -> None:
    """The machine slept, or this process stood still: an hour has passed, and none of it was silence."""
    watched.start(Attempt("a", "x"))
    watched.poll(1)
    inner.now += 3600
    assert watched.poll(59) == [] and inner.stopped == []
    inner.now -= 7200  # and a clock that goes back does no harm
    assert watched.poll(59) == [] and inner.stopped == []
    while not inner.stopped:
        watched.poll(59)
