"""The Gaussian process against the textbook's formulas, written out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nas.search.surrogate import (
    JITTER,
    OFFSET,
    OUTLIER,
    Form,
    Inputs,
    _Parts,
    condition,
    fit,
    negative_log_posterior,
    scaled,
)
from nas.space.features import Features, encode


def some(rows: int, seed: int = 0) -> tuple[Features, np.ndarray]:
    """Two numbers and a category; errors that depend on all three, and on two together."""
    rng = np.random.default_rng(seed)
    width, depth = rng.choice([0.25, 0.5, 0.75, 1.0], rows), rng.uniform(0, 1, rows)
    block = rng.choice(["a", "b", "c"], rows)
    features = encode([width.tolist(), depth.tolist(), block.tolist()])
    effect = np.array([{"a": 0.0, "b": -0.1, "c": 0.15}[b] for b in block])
    return features, np.exp(-0.6 - 0.3 * np.log(width) * depth + effect + rng.normal(0, 0.01, rows))


def covariance(features: Features, theta: np.ndarray) -> np.ndarray:
    """The kernel of the module's docstring, entry by entry."""
    groups, numbers = len(features.numeric), np.flatnonzero(features.numeric)
    linear, curved, lengths = np.split(np.exp(theta[:-2]), [groups, groups + numbers.size])
    own = [features.points[:, features.groups == g] for g in range(groups)]

    def entry(i: int, j: int) -> float:
        value, squares = OFFSET**2, 0.0
        for g, x in enumerate(own):
            value += linear[g] ** 2 * float(x[i] @ x[j])
            squares += float(np.sum((x[i] - x[j]) ** 2)) / lengths[g] ** 2
        for b, g in zip(curved, numbers, strict=True):
            p, q = 2 * own[g][i, 0], 2 * own[g][j, 0]
            second = (3 * p * p - 1) / 2 * (3 * q * q - 1) / 2 / 4
            third = (5 * p**3 - 3 * p) / 2 * (5 * q**3 - 3 * q) / 2 / 16
            value += b**2 * (second + third)
        r = math.sqrt(5 * squares)
        return value + math.exp(2 * theta[-2]) * (1 + r + r * r / 3) * math.exp(-r)

    return np.array([[entry(i, j) for j in range(len(features))] for i in range(len(features))])


def test_posterior_and_leave_one_out_are_those_of_the_formulas():
    features, errors = some(18)
    form, inputs = Form.of(features), Inputs.of(features)
    theta = form.prior[0] + np.random.default_rng(1).normal(0, 0.4, form.prior.shape[1])
    seen, new = np.arange(12), np.arange(12, 18)
    model = condition(form, theta, inputs[seen], errors[seen])
    targets, mean, spread = scaled(errors[seen])
    full = covariance(features, theta)
    noisy = full[:12, :12] + (math.exp(2 * theta[-1]) + JITTER) * np.eye(12)
    across = full[:12, 12:]
    expected = mean + spread * across.T @ np.linalg.solve(noisy, targets)
    doubt = spread * np.sqrt(np.diag(full[12:, 12:] - across.T @ np.linalg.solve(noisy, across)))
    found = model.predict(inputs[new])
    assert found[0] == pytest.approx(expected, abs=1e-8)
    assert found[1] == pytest.approx(doubt, abs=1e-6)
    for i in range(12):
        rest = np.delete(np.arange(12), i)
        said = noisy[i, rest] @ np.linalg.solve(noisy[np.ix_(rest, rest)], targets[rest])
        assert model.leave_one_out[i] == pytest.approx(spread * (targets[i] - said), abs=1e-8)


def test_the_gradient_is_that_of_differences():
    features, errors = some(15)
    form, parts = Form.of(features), _Parts.of(Form.of(features), Inputs.of(features))
    targets = scaled(errors)[0]
    for seed in range(3):
        theta = form.prior[0] + np.random.default_rng(seed).normal(0, 0.5, form.prior.shape[1])
        found = negative_log_posterior(form, parts, targets, theta)[1]
        for index, step in enumerate(1e-5 * np.eye(theta.size)):
            above, below = (negative_log_posterior(form, parts, targets, theta + sign * step)[0] for sign in (1, -1))
            assert found[index] == pytest.approx((above - below) / 2e-5, rel=1e-4, abs=1e-4)


def test_what_was_fitted_predicts_and_knows_its_own_error():
    features, errors = some(90)
    form, inputs = Form.of(features), Inputs.of(features)
    seen, new = np.arange(40), np.arange(40, 90)
    model = condition(form, fit(form, inputs[seen], errors[seen]), inputs[seen], errors[seen])
    mean, deviation = model.predict(inputs[new])
    away = mean - np.log(errors[new])
    assert math.sqrt(np.mean(away**2)) < 0.2 * np.std(np.log(errors))
    assert 0.3 < math.sqrt(np.mean((away / np.hypot(deviation, model.noise)) ** 2)) < 3
    assert np.std(model.leave_one_out) == pytest.approx(np.std(away), rel=1.0)


def test_rough_candidates_are_judged_as_the_others_but_for_a_fiftieth_of_the_noise():
    features, errors = some(500)
    results, candidates = features[slice(0, 300)], features[slice(300, None)]
    form, inputs = Form.of(results), Inputs.of(results)
    model = condition(form, fit(form, inputs, errors[:300]), inputs, errors[:300])
    rough = Inputs.of(candidates, rough=True)
    assert {rough.effects.dtype, rough.points.dtype} == {np.dtype(np.float32)}
    for exact, other in zip(model.predict(Inputs.of(candidates)), model.predict(rough), strict=True):
        assert other.dtype == np.float64
        np.testing.assert_allclose(other, exact, rtol=0, atol=model.noise / 50)


def test_believing_keeps_the_mean_and_lowers_the_doubt():
    features, errors = some(30)
    form, inputs = Form.of(features), Inputs.of(features)
    seen, waiting, new = np.arange(15), np.arange(15, 18), np.arange(18, 30)
    model = condition(form, form.prior[0], inputs[seen], errors[seen])
    bolder = model.believing(inputs[waiting])
    assert bolder.predict(inputs[new])[0] == pytest.approx(model.predict(inputs[new])[0], abs=1e-8)
    assert np.all(bolder.predict(inputs[new])[1] <= model.predict(inputs[new])[1] + 1e-9)
    assert np.all(bolder.predict(inputs[waiting])[1] < 0.8 * model.predict(inputs[waiting])[1])


def test_a_collapsed_training_does_not_blow_the_scale_up():
    errors = np.exp(np.random.default_rng(0).normal(-1, 0.05, 40))
    spread = scaled(errors)[2]
    assert scaled(np.append(errors, 1.0))[2] < spread + OUTLIER * 0.2 / 4
    assert math.isfinite(scaled(np.array([0.5]))[2])
