"""What mAP means when the same architecture, trained from another seed, gets another: intervals, and who cannot be told apart.

The spread over seeds is taken to be the same for all (a *pooled* standard deviation), since nobody can afford to train each
often enough to know its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nas.search.front import hypervolume
from nas.search.ladder import kendall

Z = 1.6449  # of a two-sided 90% interval
DRAWS = 400
LEAST_PAIRS = 5  # of which Kendall's tau is said: of fewer, it would say what chance does


def pooled_deviation(groups: Sequence[Sequence[float]]) -> float | None:
    """Standard deviation over seeds, from architectures trained more than once; None where there are none.

    Each group is the mAPs of one architecture.
    """
    many = [group for group in groups if len(group) > 1]
    if not many:
        return None
    squares = sum(float(np.var(group)) * len(group) for group in many)
    return math.sqrt(squares / sum(len(group) - 1 for group in many))


def interval(mean: float, n: int, deviation: float) -> tuple[float, float]:
    """The 90% interval of the mean of `n` trainings, within [0, 1]."""
    half = Z * deviation / math.sqrt(n)
    return max(0.0, mean - half), min(1.0, mean + half)


def alike(mean_a: float, n_a: int, mean_b: float, n_b: int, deviation: float) -> bool:
    """Whether two means of so many trainings differ by no more than chance makes of equals, nine times out of ten."""
    return abs(mean_a - mean_b) <= Z * deviation * math.sqrt(1 / n_a + 1 / n_b)


def hypervolume_interval(
    means: Sequence[float],
    counts: Sequence[int],
    latencies: Sequence[float],
    deviation: float,
    *,
    reference_ms: float,
    fastest_ms: float,
    seed: int,
) -> tuple[float, float]:
    """The 90% interval of `hypervolume` of architectures that were chosen already, if they were all trained anew as often."""
    rng = np.random.default_rng(seed)
    spread = deviation / np.sqrt(np.asarray(counts, dtype=np.float64))
    drawn = np.clip(np.asarray(means) + spread * rng.standard_normal((DRAWS, len(means))), 0.0, 1.0)
    volumes = [hypervolume(maps, latencies, reference_ms=reference_ms, fastest_ms=fastest_ms) for maps in drawn]
    low, high = np.quantile(volumes, [0.05, 0.95])
    return float(low), float(high)


def tau_interval(one: NDArray[np.float64], other: NDArray[np.float64], *, seed: int) -> tuple[float, float, float]:
    """Kendall's tau-b of two paired lists, and its 90% bootstrap interval over the pairs."""
    rows = np.random.default_rng(seed).integers(len(one), size=(DRAWS, len(one)))
    low, high = np.quantile([kendall(one[drawn], other[drawn]) for drawn in rows], [0.05, 0.95])
    return kendall(one, other), float(low), float(high)
