"""What an architecture promises: expected gain in hypervolume, or over the best, when its latency is known.

Errors are log-normal (`surrogate.py` models their logarithm) and latencies exact, so both expectations have a closed form.
The hypervolume of two objectives is the area under a step function of log latency: a new point at log latency t with error
e lowers every step to the right of t that lies above e, by their difference. The expectation goes inside the sum: for
every step, its width to the right of t times E[(level - e)+].

Sources: J. Mockus, "On Bayesian methods for seeking the extremum", 1975 (expected improvement); M. Emmerich et al.,
"The computation of the expected improvement in dominated hypervolume of Pareto front approximations", 2008 (in strips).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

Floats = NDArray[np.float64]

LARGEST = 700.0  # exponent of a float
QUANTILE = 1.6448536269514722  # of the normal distribution: 95% lie below so many deviations


@dataclass(frozen=True)
class Steps:
    """A front as steps: from log latency `starts[i]` on the error is `levels[i]` (falling); the first starts at -inf with
    the reference error, and beyond log latency `end` nothing counts."""

    starts: Floats
    levels: Floats
    end: float

    @classmethod
    def of(cls, errors: Floats, log_latencies: Floats, reference_error: float, end: float) -> Steps:
        """The front of results, against a reference point."""
        order = np.lexsort((errors, log_latencies))
        order = order[log_latencies[order] < end]
        levels = np.append(reference_error, errors[order])
        lower = np.flatnonzero(levels[1:] < np.minimum.accumulate(levels)[:-1])
        return cls(np.append(-np.inf, log_latencies[order[lower]]), np.append(reference_error, errors[order[lower]]), end)

    def area(self, begin: float) -> float:
        """Between the steps and the reference, from log latency `begin` on, or from the first step where that is faster."""
        begin = min(begin, float(self.starts[1])) if self.starts.size > 1 else begin
        starts = np.maximum(self.starts, begin)
        return float(np.sum((np.append(starts[1:], self.end) - starts) * (self.levels[0] - self.levels)))

    def level_at(self, log_latencies: Floats) -> Floats:
        """The error of the step that each log latency lies on."""
        return np.asarray(self.levels[np.searchsorted(self.starts, log_latencies, side="right") - 1])


def expected_excess(level: Floats | float, mean: Floats, deviation: Floats) -> Floats:
    """E[(level - e)+] where log e is normal. Level, mean and deviation broadcast; level is above 0."""
    log_level = np.log(level)
    z = (log_level - mean) / deviation
    whole = np.exp(np.minimum(mean + deviation**2 / 2, LARGEST))  # far from all results a model's doubt has no bound
    return np.asarray(np.maximum(np.exp(log_level) * ndtr(z) - whole * ndtr(z - deviation), 0.0))


def expected_hypervolume_gain(steps: Steps, mean: Floats, deviation: Floats, log_latencies: Floats) -> Floats:
    """Expected area by which each candidate lowers the steps, in error times log latency.

    Args:
        mean: of log error, per candidate.
        deviation: its standard deviation, above 0.
    """
    ends = np.append(steps.starts[1:], steps.end)
    gain = np.zeros_like(mean)
    order = np.argsort(log_latencies, kind="stable")  # a step reaches the candidates before its end: a slice of these
    mean, deviation, t = mean[order], deviation[order], log_latencies[order]
    for start, end, level in zip(steps.starts, ends, steps.levels, strict=True):
        reached = slice(0, int(np.searchsorted(t, end, side="left")))
        width = end - np.maximum(start, t[reached])
        gain[reached] += width * expected_excess(level, mean[reached], deviation[reached])
    back = np.empty_like(gain)
    back[order] = gain
    return back


def chance_within(limit_ms: float | None, latency: Floats, low: Floats, high: Floats) -> Floats:
    """The chance that each latency is at most the limit: 1 or 0 where low equals high; else normal in the logarithm, with
    low and high as its 5% and 95% quantiles."""
    if limit_ms is None:
        return np.ones_like(latency)
    deviation = np.log(high / low) / (2 * QUANTILE)
    exact = deviation <= 0
    z = np.log(limit_ms / latency) / np.where(exact, 1.0, deviation)
    return np.where(exact, latency <= limit_ms, ndtr(z))
