"""Measuring against a scripted clock: nothing here takes time."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nas.latency import measure as module
from nas.latency.measure import (
    BLOCKS,
    COOL_SECONDS,
    LAST_BLOCKS,
    MAX_BLOCKS,
    MIN_RUNS,
    NARROW,
    PACED_BLOCKS,
    UNSTABLE,
    WARM_UP_SECONDS,
    CoreWatch,
    GpuWatch,
    Latency,
    Unstable,
    measure,
)

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

    def run_it(milliseconds: Callable[[int, int], float], limit_ms: float | None = None, **how: Any) -> Latency:
        def run() -> None:
            clock.now += milliseconds(clock.runs, clock.blocks) / 1e3
            clock.runs += 1

        return measure(run, limit_ms, clock, **how)

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


def never_quiet(run: int, block: int) -> float:
    return 2.0 * 1.1**block


def test_a_machine_that_is_never_quiet_gives_no_figure(measured: Measured, clock: Clock) -> None:
    with pytest.raises(Unstable, match=r"^the interval stays wider than 5%$"):
        measured(never_quiet)
    assert clock.blocks == LAST_BLOCKS  # pauses between the blocks, one of them a rest
    clock.blocks = 0
    latency = measured(never_quiet, allow_noisy=True)
    assert latency.noisy and not latency.throttled
    assert (latency.ms, latency.spread) == pytest.approx((2.0, 0.21))
    assert latency.low <= 2 - 2 * 0.2 and latency.high >= 2 + 2 * 0.42


def test_the_interval_reaches_from_below_the_figure_to_the_third_lowest_block(measured: Measured) -> None:
    latency = measured(lambda run, block: {2: 2.0, 4: 2.01, 6: 2.03}.get(block, 2.5))
    assert (latency.low, latency.ms, latency.high) == pytest.approx((1.99, 2.0, 2.03))
    assert latency.width == pytest.approx(0.02) and not latency.noisy


def test_a_figure_between_narrow_and_unstable_is_given_with_its_interval(measured: Measured, clock: Clock) -> None:
    latency = measured(lambda run, block: 2.0 * (1.015 ** (block % 40)))
    assert clock.blocks == MAX_BLOCKS - 1
    assert NARROW < latency.width <= UNSTABLE and not latency.noisy


@pytest.mark.parametrize("milliseconds", [2.0, 40.0])
def test_a_paced_run_is_timed_without_its_pause(measured: Measured, clock: Clock, milliseconds: float) -> None:
    latency = measured(lambda run, block: milliseconds, paced_ms=33.0)
    assert latency.ms == pytest.approx(milliseconds)
    assert PACED_BLOCKS * MIN_RUNS <= latency.runs < clock.runs < clock.blocks


class CpuClock:
    """CPU time passes in runs alone, at a share of the time that passes."""

    def __init__(self, clock: Clock, share: Callable[[int], float]) -> None:
        self._clock, self._share, self._runs, self._now = clock, share, 0, 0.0
        self._last = clock.now

    def __call__(self) -> float:
        if self._clock.runs > self._runs:
            self._now += (self._clock.now - self._last) * self._share(self._clock.blocks)
            self._runs = self._clock.runs
        self._last = self._clock.now
        return self._now


@pytest.mark.parametrize("share", [0.95, 1.05])
def test_cpu_time_stands_beside_the_figure(measured: Measured, clock: Clock, share: float) -> None:
    latency = measured(lambda run, block: 4.0, cpu_clock=CpuClock(clock, lambda block: share))
    assert latency.cpu_ms == pytest.approx(4.0 * share)
    assert clock.blocks == BLOCKS - 1


@pytest.mark.parametrize("share", [0.5, 2.0])
def test_clocks_that_disagree_are_given_a_rest_and_then_refused(measured: Measured, clock: Clock, share: float) -> None:
    late = CpuClock(clock, lambda block: 1.0 if block >= BLOCKS else share)
    latency = measured(lambda run, block: 4.0 if block >= BLOCKS else 4.1, cpu_clock=late)
    assert (latency.ms, latency.cpu_ms) == pytest.approx((4.0, 4.0)) and not latency.noisy
    never = CpuClock(clock, lambda block: share)
    with pytest.raises(Unstable, match="wall clock and CPU time disagree by more than 10%"):
        measured(lambda run, block: 4.0, cpu_clock=never)
    latency = measured(lambda run, block: 4.0, cpu_clock=never, allow_noisy=True)
    assert latency.noisy and latency.low - 1e-9 <= 4.0 * share <= latency.high + 1e-9


def test_a_busy_processor_makes_nothing_hopeless(measured: Measured, clock: Clock) -> None:
    """Ten times the limit by the wall clock, within it by the processor's: it is measured in full."""
    busy = CpuClock(clock, lambda block: 0.1 if block < 5 else 1.0)
    latency = measured(lambda run, block: 20.0 if block < 5 else 2.0, 2.0, cpu_clock=busy)
    assert latency.ms == pytest.approx(2.0) and not latency.rough


def test_a_throttled_figure_is_repeated_after_a_pause_and_refused_if_it_stays(measured: Measured, clock: Clock) -> None:
    began = clock.now
    hot = iter(range(10_000))
    latency = measured(
        lambda run, block: 2.0 if block >= BLOCKS else 2.4, watch=lambda: "hot" if next(hot) < BLOCKS + 2 else None
    )
    assert latency.ms == pytest.approx(2.0) and not latency.throttled and clock.now - began > COOL_SECONDS
    with pytest.raises(Unstable, match="hot"):
        measured(lambda run, block: 2.0, watch=lambda: "hot")
    latency = measured(lambda run, block: 2.0, watch=lambda: "hot", allow_noisy=True)
    assert latency.throttled and latency.noisy


def test_one_hot_moment_that_the_figure_does_not_hold_changes_nothing(measured: Measured, clock: Clock) -> None:
    latency = measured(lambda run, block: 2.4 if block == 5 else 2.0, watch=lambda: "hot" if clock.blocks == 5 else None)
    assert not latency.throttled and clock.blocks == BLOCKS - 1


def test_the_processors_clock_and_counters_are_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    clocks = [tmp_path / core / "cpufreq" / "scaling_cur_freq" for core in ("cpu0", "cpu1")]
    counter = tmp_path / "cpu0" / "thermal_throttle" / "core_throttle_count"
    for file in (*clocks, counter):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("1000000\n")
    first, second = clocks
    watch, paced = CoreWatch(cpus=tmp_path), CoreWatch(paced=True, cpus=tmp_path)
    assert watch() is None and paced() is None
    first.write_text("500000\n")
    assert watch() is None, "the other core is as fast as before"
    second.write_text("800000\n")
    assert watch() == "the processor's clock fell under load" and paced() is None
    second.write_text("1000000\n")
    assert watch() is None
    counter.write_text("1000001\n")
    assert watch() == paced() == "the processor throttles for its temperature"
    assert watch() is None and CoreWatch(cpus=tmp_path / "nothing")() is None


@pytest.mark.parametrize(
    ("reasons", "slowed"), [(0, False), (0x1, False), (0x4, False), (0x8, True), (0x20, True), (0x41, True)]
)
def test_the_gpus_reasons_are_watched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, reasons: int, slowed: bool) -> None:
    def of(gpu: object) -> int:
        assert gpu == "handle of GPU-1"
        return reasons

    nvml = SimpleNamespace(
        NVMLError=RuntimeError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda name: f"handle of {name}",
        nvmlDeviceGetCurrentClocksThrottleReasons=of,
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert bool(GpuWatch("GPU-1")()) == slowed
    monkeypatch.setitem(sys.modules, "pynvml", None)  # importing it fails
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\ncase $1 in *throttle*) echo {reasons:#018x};; *) exit 2;; esac\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert bool(GpuWatch("0")()) == slowed
    tool.unlink()
    assert GpuWatch("0")() is None


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
