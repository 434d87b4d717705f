"""Timing one prepared inference: warm-up until stable, then time-separated blocks, of which the fastest median counts.

A busy neighbour only ever adds time, so the lowest of several medians is the truest figure; a single block of
iterations drifts by 10-14% even on a quiet machine. Blocks are added until the three lowest agree: one lucky or
unlucky moment does not make a figure.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

BLOCKS = 10
MAX_BLOCKS = 30
MIN_RUNS = 10
BLOCK_SECONDS = 0.03
PAUSE_SECONDS = 0.03
AGREEING = 3
AGREEMENT = 0.02
HOPELESS = 1.5
WARM_UP_SECONDS = 3.0
STABLE = 0.05


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one inference.

    `ms` is the lowest p50 among the blocks, `p90` that block's 90th percentile, `spread` how far the third-lowest p50 lies
    above the lowest (0.02 is 2%; more means that the machine was never quiet), `runs` how many inferences were timed,
    `rough` that timing ended early because the figure was far over the limit.
    """

    ms: float
    p90: float
    spread: float
    runs: int
    rough: bool = False


def measure(
    run: Callable[[], object], limit_ms: float | None = None, clock: Callable[[], float] = time.perf_counter
) -> Latency:
    """Time `run`, which must return only when the inference is complete.

    Args:
        limit_ms: what takes more than half as long again in each of three blocks needs no closer look.
    """
    _warm_up(run, clock)
    blocks: list[list[float]] = []
    spread, rough = float("inf"), False
    while not rough and (len(blocks) < BLOCKS or (spread > AGREEMENT and len(blocks) < MAX_BLOCKS)):
        if blocks:
            time.sleep(PAUSE_SECONDS)
        blocks.append(_block(run, clock, MIN_RUNS, BLOCK_SECONDS))
        lowest = sorted(map(statistics.median, blocks))
        spread = lowest[min(AGREEING, len(lowest)) - 1] / lowest[0] - 1
        rough = limit_ms is not None and len(blocks) == AGREEING and lowest[0] * 1e3 > HOPELESS * limit_ms
    best = min(blocks, key=statistics.median)
    return Latency(
        ms=statistics.median(best) * 1e3,
        p90=statistics.quantiles(best, n=10)[-1] * 1e3,
        spread=spread,
        runs=sum(map(len, blocks)),
        rough=rough,
    )


def _block(run: Callable[[], object], clock: Callable[[], float], min_runs: int, seconds: float) -> list[float]:
    times: list[float] = []
    start = clock()
    while len(times) < min_runs or clock() - start < seconds:
        before = clock()
        run()
        times.append(clock() - before)
    return times


def _warm_up(run: Callable[[], object], clock: Callable[[], float]) -> None:
    """Run until two successive short blocks agree within 5%, or 3 s have passed."""
    start, last = clock(), float("inf")
    while clock() - start < WARM_UP_SECONDS:
        now = statistics.median(_block(run, clock, 3, 0.02))
        if abs(now - last) <= STABLE * now:
            return
        last = now
