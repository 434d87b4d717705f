"""The rule by which the additive estimate prunes: how often it may be wrong, and that it prunes where it can."""

from __future__ import annotations

import numpy as np
import pytest

from nas.search.prune import LEAST, best_case


def surprise(rng, size):
    """Interactions of several slots: mostly small, now and then far worse than the sum, seldom better."""
    return 0.004 * rng.standard_normal(size) - 0.05 * (rng.random(size) < 0.1) + 0.02 * (rng.random(size) < 0.02)


@pytest.mark.parametrize("n", [LEAST, 60])
@pytest.mark.parametrize("slope", [-0.3, 0.0])
def test_a_best_case_is_passed_as_seldom_as_is_stated(n, slope):
    rng = np.random.default_rng(n)
    passed = 0
    for _ in range(4000):
        scores = rng.exponential(0.1, n + 1)
        accuracies = 0.4 + slope * scores + surprise(rng, n + 1)
        best = best_case(scores[:n], accuracies[:n], scores[n:])
        passed += accuracies[n] > best[0]
    # the line is fitted to the same points, which costs a little: twice the bound would be a fault
    assert passed / 4000 <= 1.3 / (n + 1) + 0.004


def test_it_says_something_where_the_score_does():
    rng = np.random.default_rng(0)
    scores = rng.uniform(0, 0.3, 40)
    accuracies = 0.4 - 0.5 * scores + 0.004 * rng.standard_normal(40)
    low, high = best_case(scores, accuracies, np.array([0.01, 0.29]))
    assert 0.39 < low < 0.42 and high < 0.28
    assert best_case(scores[: LEAST - 1], accuracies[: LEAST - 1], scores) is None
    rising = best_case(scores, -accuracies, np.array([0.01, 0.29]))  # a score that is wrong about the direction says nothing
    assert rising[0] == rising[1]
