"""Expected gains against Monte Carlo and against areas counted out."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.search.acquisition import QUANTILE, Steps, chance_within, expected_excess, expected_hypervolume_gain


def area(errors, x, reference, end) -> float:
    """What points dominate, by the definition: at each log latency the least error of what is as fast, below the reference."""
    grid = np.unique(np.append(x[x < end], end))
    return sum((after - at) * max(0.0, reference - min(errors[x <= at])) for at, after in itertools.pairwise(grid))


def some_front(rng, size):
    return rng.uniform(0.2, 1.0, size), rng.uniform(0.0, 3.0, size)


@pytest.mark.parametrize("size", [0, 1, 7])
def test_expected_gain_is_that_of_monte_carlo(size):
    rng = np.random.default_rng(size)
    errors, x = some_front(rng, size)
    reference, end = 0.9, 2.5
    mean, deviation, t = rng.normal(-0.8, 0.3, 40), rng.uniform(0.05, 0.5, 40), rng.uniform(-0.5, 3.0, 40)
    found = expected_hypervolume_gain(Steps.of(errors, x, reference, end), mean, deviation, t)
    before = area(errors, x, reference, end)
    for i in range(0, 40, 10):
        drawn = np.exp(mean[i] + deviation[i] * rng.standard_normal(1000))
        gains = [area(np.append(errors, e), np.append(x, t[i]), reference, end) - before for e in drawn]
        assert found[i] == pytest.approx(np.mean(gains), abs=5 * np.std(gains) / math.sqrt(1000) + 1e-9)
    assert np.all(found[t >= end] == 0)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 12))
def test_without_doubt_the_gain_is_the_area_gained(seed, size):
    rng = np.random.default_rng(seed)
    errors, x = some_front(rng, size)
    reference, end = rng.uniform(0.5, 1.2), rng.uniform(0.5, 3.0)
    candidates, t = some_front(rng, 9)
    found = expected_hypervolume_gain(Steps.of(errors, x, reference, end), np.log(candidates), np.full(9, 1e-9), t)
    before = area(errors, x, reference, end)
    brute = [
        area(np.append(errors, e), np.append(x, own), reference, end) - before for e, own in zip(candidates, t, strict=True)
    ]
    assert found == pytest.approx(brute, abs=1e-7)


def test_excess_far_from_the_level():
    assert expected_excess(0.5, np.array([10.0]), np.array([0.1])) == 0
    assert expected_excess(0.5, np.array([-20.0]), np.array([0.1])) == pytest.approx(0.5)


def test_the_chance_to_hold_a_limit():
    ms = np.array([1.0, 2.0, 3.0, 2.0])
    low, high = ms.copy(), ms.copy()
    low[3], high[3] = 2.0 / math.exp(QUANTILE * 0.1), 2.0 * math.exp(QUANTILE * 0.1)
    assert chance_within(2.0, ms, low, high) == pytest.approx([1, 1, 0, 0.5])
    assert chance_within(None, ms, low, high) == pytest.approx([1, 1, 1, 1])
    assert chance_within(2.0 * math.exp(0.1), ms, low, high)[3] == pytest.approx(0.8413, abs=1e-4)


def test_where_a_model_knows_nothing_a_gain_is_a_number():
    """Far from all results means and deviations have no bound; a gain that is no number would be taken for the largest."""
    mean, deviation = np.array([800.0, 0.0, 0.0, -800.0]), np.array([1.0, 50.0, 38.0, 60.0])
    gains = expected_excess(0.5, mean, deviation)
    assert np.all((gains >= 0) & (gains <= 0.5))
