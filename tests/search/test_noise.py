"""Error bars: what repeated trainings say about the front."""

from __future__ import annotations

import numpy as np
import pytest

from nas.search.front import hypervolume
from nas.search.noise import alike, hypervolume_interval, interval, pooled_deviation

BOX = {"reference_ms": 10.0, "fastest_ms": 1.0}


def test_the_pooled_deviation_is_that_of_the_seeds():
    rng = np.random.default_rng(0)
    groups = [
        list(mean + 0.02 * rng.standard_normal(n)) for mean, n in zip(rng.uniform(0.1, 0.6, 600), [2, 3] * 300, strict=True)
    ]
    assert pooled_deviation(groups) == pytest.approx(0.02, rel=0.05)
    assert pooled_deviation([[0.3], [0.5]]) is None


def test_intervals_hold_what_they_promise():
    rng = np.random.default_rng(1)
    hits, same = 0, 0
    for _ in range(2000):
        a, b = 0.4 + 0.02 * rng.standard_normal((2, 2))
        low, high = interval(float(np.mean(a)), 2, 0.02)
        hits += low <= 0.4 <= high
        same += alike(float(np.mean(a)), 2, float(np.mean(b)), 2, 0.02)
    assert hits / 2000 == pytest.approx(0.9, abs=0.025) and same / 2000 == pytest.approx(0.9, abs=0.025)
    assert not alike(0.4, 2, 0.5, 2, 0.02)
    assert interval(0.001, 1, 0.1)[0] == 0.0 and interval(0.999, 1, 0.1)[1] == 1.0


def test_the_interval_of_the_hypervolume_is_narrower_with_more_seeds():
    maps, latencies = [0.2, 0.3, 0.4], [1.0, 2.0, 4.0]
    volume = hypervolume(maps, latencies, **BOX)
    (low, high), (lower, higher) = (hypervolume_interval(maps, [n] * 3, latencies, 0.02, **BOX, seed=0) for n in (4, 1))
    assert lower < low < volume < high < higher
    assert hypervolume_interval(maps, [1] * 3, latencies, 0.0, **BOX, seed=0) == pytest.approx((volume, volume))
