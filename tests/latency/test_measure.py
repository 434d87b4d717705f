"""Measuring against a scripted clock: nothing here takes time."""

from collections.abc import Callable

import pytest

from nas.latency import measure as module
from nas.latency.measure import BLOCKS, MAX_BLOCKS, MIN_RUNS, WARM_UP_SECONDS, Latency, measure

Measured = Callable[..., Latency]


class Clock:
    """Time that passes only in runs and in pauses; `blocks` counts the pauses."""

    def __init__(self) -> None:
        self.now, self.runs, self.blocks = 100.0, 0, 0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.blocks += 1


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module.time, "sleep", clock.sleep)
    return clock


@pytest.fixture
def measured(clock: Clock) -> Measured:
    """Measures what takes so many ms in the n-th run (from 0) before or in the n-th block (from 0)."""

    def run_it(milliseconds: Callable[[int, int], float], limit_ms: float | None = None) -> Latency:
        def run() -> None:
            clock.now += milliseconds(clock.runs, clock.blocks) / 1e3
            clock.runs += 1

        return measure(run, limit_ms, clock)

    return run_it


def test_a_steady_model(measured: Measured, clock: Clock) -> None:
    latency = measured(lambda run, block: 4.0)
    assert (latency.ms, latency.p90) == pytest.approx((4.0, 4.0))
    assert latency.spread == pytest.approx(0, abs=1e-9)
    assert clock.blocks == BLOCKS - 1
    assert BLOCKS * MIN_RUNS <= latency.runs < clock.runs


def test_a_slow_model_is_still_run_often_enough(measured: Measured) -> None:
    assert measured(lambda run, block: 900.0).runs == BLOCKS * MIN_RUNS


@pytest.mark.parametrize("busy", [{0}, {4}, set(range(7)), set(range(3, 10))])
def test_a_busy_neighbour_changes_nothing_where_three_blocks_are_quiet(measured: Measured, busy: set[int]) -> None:
    latency = measured(lambda run, block: 6.0 if block in busy else 2.0)
    assert (latency.ms, latency.p90) == pytest.approx((2.0, 2.0))
    assert latency.spread == pytest.approx(0, abs=1e-9)


def test_a_changing_disturbance_is_waited_out(measured: Measured, clock: Clock) -> None:
    latency = measured(lambda run, block: 2.0 if block >= 20 else 3.0 * 1.05 ** (20 - block))
    assert (latency.ms, latency.spread) == pytest.approx((2.0, 0.0), abs=1e-9)
    assert BLOCKS < clock.blocks + 1 == 23


def test_a_machine_that_is_never_quiet_shows_in_the_spread(measured: Measured, clock: Clock) -> None:
    latency = measured(lambda run, block: 2.0 + block % 30)
    assert latency.ms == pytest.approx(2.0)
    assert latency.spread == pytest.approx(1.0)
    assert clock.blocks == MAX_BLOCKS - 1


def test_the_fastest_block_gives_both_quantiles(measured: Measured) -> None:
    latency = measured(lambda run, block: (8.0 if run % 5 == 0 else 4.0) * (1 if block == 2 else 1.01))
    assert (latency.ms, latency.p90) == pytest.approx((4.0, 8.0))
    assert latency.spread == pytest.approx(0.01)


def test_warm_up_ends_when_it_is_stable(measured: Measured) -> None:
    latency = measured(lambda run, block: 4.0 + 40.0 * 0.8**run)
    assert latency.ms == pytest.approx(4.0, rel=0.02) and latency.spread < 0.1


def test_warm_up_ends_even_if_it_is_never_stable(measured: Measured, clock: Clock) -> None:
    began = clock.now
    latency = measured(lambda run, block: 1.5 ** (run // 3 % 7))
    assert clock.now - began < 2 * WARM_UP_SECONDS
    assert latency.ms > 0


@pytest.mark.parametrize(("limit", "blocks"), [(None, BLOCKS), (3.0, BLOCKS), (2.5, 3)])
def test_what_is_far_over_the_limit_is_measured_briefly(
    measured: Measured, clock: Clock, limit: float | None, blocks: int
) -> None:
    assert measured(lambda run, block: 4.0, limit).ms == pytest.approx(4.0)
    assert clock.blocks + 1 == blocks
