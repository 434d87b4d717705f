"""Promotions on rungs made up for the purpose: how much of the true front they keep, and what that costs."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.search.front import front_indices
from nas.search.ladder import FACTOR, PAIRS, STRATUM, Climber, kendall, leading, promotion, share_of, tau_of


def landscape(seed: int, tau: float, count: int = 150) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Latencies, scores of a lower rung, and of the top: slow ones are better, and the two rungs agree as `tau` says."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(0, 1, count)
    top = 0.3 + 0.25 * np.sqrt(x) + 0.04 * rng.standard_normal(count)
    scaled = (top - top.mean()) / top.std()
    rho = math.sin(math.pi * tau / 2)  # of a normal distribution with that tau
    low = rho * scaled + math.sqrt(1 - rho**2) * rng.standard_normal(count)
    return np.exp(x), 0.2 + 0.02 * low, np.clip(top, 0, 1)


def climb(seed: int, tau: float) -> tuple[float, float]:
    """One trial after another, promoted as soon as that is due: share of the true front that got to the top, share promoted."""
    ms, low, top = landscape(seed, tau)
    climbers: dict[int, Climber] = {}
    for number in range(len(ms)):
        climbers[number] = Climber(number, ms[number], (low[number],), rests=True)
        while (found := promotion(list(climbers.values()), [1 / FACTOR])) is not None:
            assert found.rung == 1 and climbers[found.number].rests
            climbers[found.number] = Climber(
                found.number, ms[found.number], (low[found.number], top[found.number]), rests=False
            )
    reached = {number for number, climber in climbers.items() if len(climber.scores) == 2}
    front = front_indices(top, ms)
    return float(np.mean([index in reached for index in front])), len(reached) / len(ms)


def of_mean_accuracy(seed: int, tau: float, share: float) -> float:
    """Of the true front, what the best `share` by the lower rung alone holds."""
    ms, low, top = landscape(seed, tau)
    best = set(np.argsort(-low)[: round(share * len(ms))])
    return float(np.mean([index in best for index in front_indices(top, ms)]))


@pytest.mark.parametrize(("tau", "kept", "cost"), [(0.9, 0.92, 0.34), (0.7, 0.74, 0.36), (0.4, 0.6, 0.6), (0.1, 0.95, 1.0)])
def test_the_front_gets_to_the_top(tau, kept, cost):
    """More of it than the best on mAP alone would be; and where the rung says little, because more are promoted."""
    found = [(*climb(seed, tau), seed) for seed in range(8)]
    share = float(np.mean([s for _, s, _ in found]))
    assert np.mean([k for k, _, _ in found]) >= kept
    assert share > 0.99 or np.mean([k for k, _, _ in found]) > np.mean([of_mean_accuracy(seed, tau, s) for _, s, seed in found])
    assert share <= cost


def test_what_a_rung_is_worth_decides_how_many_are_promoted():
    third = 1 / FACTOR
    assert [share_of(tau) for tau in (None, 0.9, 0.6, 0.5, 0.3, 0.0, -0.5)] == [third, third, third, 1 / 2, 0.7, 1, 1]
    upside_down = [Climber(n, 1.0 + n, (n / 100, 1 - n / 100), rests=False) for n in range(PAIRS)]
    assert tau_of(upside_down, 0) == -1.0 and tau_of(upside_down[1:], 0) is None
    resting = [Climber(50 + n, 1.5 + n, (n / 1000,), rests=True) for n in range(STRATUM)]
    promoted = set()
    climbers = {c.number: c for c in (*upside_down, *resting)}
    while found := promotion(list(climbers.values()), [1 / FACTOR]):
        promoted.add(found.number)
        climbers[found.number] = Climber(found.number, climbers[found.number].ms, climbers[found.number].scores, rests=False)
    assert promoted == {c.number for c in resting}


def test_what_finds_nothing_leads_nobody():
    """The fastest of all find nothing, and two find the same: the faster one leads."""
    scores = [0.0, 0.0, 0.0, 0.2, 0.2, 0.1, 0.3]
    climbers = [Climber(n, 1.0 + n, (score,), rests=True) for n, score in enumerate(scores)]
    assert [c.number for c in leading(climbers, 0)] == [3, 6]
    promoted = []
    while found := promotion(climbers, [1 / 9], final=True):
        promoted.append(found.number)
        climbers[found.number] = replace(climbers[found.number], rests=False)
    assert sorted(promoted) == [3, 6]


@given(st.lists(st.tuples(st.floats(0.5, 50), st.floats(0, 1)), max_size=40), st.integers(1, 4))
def test_only_who_rests_is_promoted_and_to_the_next_rung(points, rungs):
    climbers = [Climber(n, ms, (score,) * (1 + n % 3), rests=n % 2 == 0) for n, (ms, score) in enumerate(points)]
    found = promotion(climbers, [1 / FACTOR] * (rungs - 1))
    if found is not None:
        chosen = climbers[found.number]
        assert chosen.rests and found.rung == len(chosen.scores) < rungs


@settings(deadline=None)  # scipy is imported
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=30))
def test_tau_is_that_of_scipy(pairs):
    from scipy.stats import kendalltau

    one, other = np.array(pairs, dtype=float).T
    wanted = kendalltau(one, other).statistic
    assert kendall(one, other) == pytest.approx(0.0 if math.isnan(wanted) else wanted)
