"""What the results so far say of architectures that were never trained: the accuracy model, as a search uses it.

Results count in different ways. Those of whole trainings are taken as they are; those of lower rungs, lifted to the highest,
with a doubt of their own; those of an earlier search (`prior`) are shifted by how far off the model of them alone is on this
search's results, and doubted by how much that varies. Only this search's own results are the front that is to be improved.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky

from nas.search.acquisition import QUANTILE, Steps, expected_excess, expected_hypervolume_gain
from nas.search.surrogate import JITTER, Believing, Floats, Form, Inputs, Surrogate, condition, fit
from nas.seeds import derive
from nas.space.features import Features

Rows = NDArray[np.intp]

BOLDNESS = 1.5  # on the model's deviations: it takes its most probable hyperparameters for the true ones
COARSE, FITTED, KEPT = 64, 200, 400  # results that the coarse model, the hyperparameters and the full model are given
EVERY_FIT = 64  # up to so many results hyperparameters are fitted at each, then at every quarter of a power of two
SHORTLIST = 120  # candidates that a coarse model shows to the full one
PART = 500  # candidates that a model looks at together: the arrays for these stay in the processor's cache
# An earlier search's log errors are off by about so much on other data; what this says counts as so many results.
PRIOR_DOUBT, PRIOR_COUNT = 0.1, 2
PRIOR_TRIAL = 6  # results that it takes to find out that an earlier search says nothing here
MOST, DRAWS = 100, 64  # trainings that an outlook looks ahead, at most; and draws of what they might give


@dataclass(frozen=True)
class Points:
    """Architectures: features, latency in ms with its 5% and 95% quantiles (equal where it is measured), and what trying each
    costs, as a multiple of what is usual."""

    features: Features
    latency: Floats
    low: Floats
    high: Floats
    cost: Floats

    def __len__(self) -> int:
        return len(self.latency)

    def __getitem__(self, rows: Rows | slice) -> Points:
        return Points(self.features[rows], self.latency[rows], self.low[rows], self.high[rows], self.cost[rows])

    @property
    def certain(self) -> Points:
        """As if their latencies were measured."""
        return Points(self.features, self.latency, self.latency, self.latency, self.cost)


@dataclass(frozen=True)
class Frame:
    """What a search fixes beforehand: the fastest and the slowest latency that count, the hard limit and the reference.

    The slowest (the limit, where there is one) is the slow end of the hypervolume. `reference_error` None: the largest that
    results or the model know.
    """

    fastest_ms: float
    slowest_ms: float
    limit_ms: float | None = None
    reference_error: float | None = None

    @property
    def end(self) -> float:
        """The slow end of the hypervolume, in log ms."""
        return math.log(self.slowest_ms if self.limit_ms is None else min(self.limit_ms, self.slowest_ms) * (1 + 1e-9))

    def features(self, points: Points) -> Features:
        """With log latency as one more number."""
        low, high = math.log(self.fastest_ms), math.log(self.slowest_ms)
        return points.features.with_number((np.log(points.latency) - low) / max(high - low, 1e-9) - 0.5)


@dataclass(frozen=True)
class Evidence:
    """Results: what was trained, the errors (above 0: 1 - mAP, or 100 - accuracy), and by how much each logarithm of them may
    be off from that of a whole training in this search (standard deviation; 0 where it is one)."""

    points: Points
    errors: Floats
    doubt: Floats

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, rows: Rows | slice) -> Evidence:
        return Evidence(self.points[rows], self.errors[rows], self.doubt[rows])


@dataclass
class Fits:
    """Hyperparameters by the results that they were fitted to: a memory, never a state."""

    known: dict[bytes, Floats] = field(default_factory=dict)

    def get(self, form: Form, inputs: Inputs, errors: Floats, doubt: Floats) -> Floats:
        key = errors.tobytes() + doubt.tobytes() + np.float32(inputs.points).tobytes()
        found = self.known.pop(key) if key in self.known else fit(form, inputs, errors, doubt)
        self.known = dict(list(self.known.items())[-1:]) | {key: found}  # a search asks for two at a time: its own, a prior's
        return found


class Belief:
    """The model of one moment of a search.

    Args:
        done: results, in the order of their trials.
        running: what is proposed and has none yet: it is believed to come out as expected, so that a batch spreads.
        prior: results of an earlier search.
    """

    def __init__(self, done: Evidence, running: Points, prior: Evidence | None, frame: Frame, seed: int, fits: Fits) -> None:
        self._frame, self._seed, self.results = frame, seed, len(done)
        features = frame.features(done.points)
        self._form, inputs = Form.of(features), Inputs.of(features)
        self._x = np.log(done.points.latency)
        self._own_errors, self._before = done.errors, 0
        self._inputs, self._errors, self._doubt, self._log_latency = inputs, done.errors, done.doubt, self._x
        at = _milestone(len(done))
        taken = None if prior is None else self._transferred(prior[:KEPT], inputs[:at], done.errors[:at], fits)
        if prior is not None and taken is not None:
            self._before = min(len(prior), KEPT)
            own, errors, doubt = taken
            self._inputs = Inputs(np.vstack((own.effects, inputs.effects)), np.vstack((own.points, inputs.points)))
            self._errors, self._doubt = np.concatenate((errors, done.errors)), np.concatenate((doubt, done.doubt))
            self._log_latency = np.concatenate((np.log(prior.points.latency[: self._before]), self._x))
        rows = self._telling(at, FITTED)
        self._theta = fits.get(self._form, self._inputs[rows], self._errors[rows], self._doubt[rows])
        self._waiting = Inputs.of(frame.features(running))
        believed = np.exp(self._alone.predict(self._waiting)[0]) if len(running) else np.empty(0)
        self._all_errors = np.concatenate((done.errors, believed))
        self._all_x = np.concatenate((self._x, np.log(running.latency)))

    def _transferred(self, prior: Evidence, inputs: Inputs, errors: Floats, fits: Fits) -> tuple[Inputs, Floats, Floats] | None:
        """An earlier search's results as far as they hold here: shifted, and with the doubt that these results leave, and that
        the features leave of the earlier ones among themselves. None where they foretell these no better than their mean."""
        own = Inputs.of(self._frame.features(prior.points))
        few = slice(0, FITTED)
        theta = fits.get(self._form, own[few], prior.errors[few], prior.doubt[few])
        alone = condition(self._form, theta, own, prior.errors, prior.doubt)
        away = np.log(errors) - alone.predict(inputs)[0]
        shift = float(away.mean())
        left = float(np.sum((away - shift) ** 2))
        if away.size >= PRIOR_TRIAL and left >= away.size * float(np.var(np.log(errors))):
            return None
        squares = PRIOR_COUNT * PRIOR_DOUBT**2 + left
        doubt = math.hypot(alone.noise, math.sqrt(squares / (PRIOR_COUNT + away.size)))
        return own, prior.errors * math.exp(shift), np.hypot(prior.doubt, doubt)

    @cached_property
    def _alone(self) -> Surrogate:
        """Of the results, without what runs."""
        return self._of(KEPT)

    @cached_property
    def full(self) -> Surrogate | Believing:
        """The model of as many results as it can take."""
        return self._alone.believing(self._waiting) if len(self._waiting) else self._alone

    @cached_property
    def coarse(self) -> Surrogate | Believing:
        """A model of few results, for many candidates."""
        model = self._of(COARSE)
        return model.believing(self._waiting) if len(self._waiting) else model

    def _of(self, size: int) -> Surrogate:
        rows = self._telling(self.results, size)
        return condition(self._form, self._theta, self._inputs[rows], self._errors[rows], self._doubt[rows])

    def _telling(self, results: int, size: int) -> Rows:
        """Of an earlier search's results and the first so many of this one rows of at most `size`: two thirds nearest to the
        front of these (what came later does not change the choice), the rest at random, in their order."""
        of = self._before + results
        if of <= size:
            return np.arange(of)
        errors = self._own_errors[:results]
        level = Steps.of(errors, self._x[:results], float(errors.max()) * 2, math.inf).level_at
        behind = np.log(self._errors[:of]) - np.log(level(self._log_latency[:of]))
        order = np.argsort(behind, kind="stable")
        near, rest = order[: size * 2 // 3], order[size * 2 // 3 :]
        drawn = np.random.default_rng(derive(self._seed, of, "telling")).choice(rest, size - near.size, replace=False)
        return np.sort(np.concatenate((near, drawn)))

    def shortlist(self, points: Points, chance: Floats, *, winner: bool) -> Rows:
        """Rows of the points worth showing to the full model: of many, once results are many too, those that a coarse model
        likes."""
        if self.results <= COARSE or len(points) <= SHORTLIST:
            return np.arange(len(points))
        return np.argsort(-chance * self.gains(self.coarse, points.certain, winner=winner), kind="stable")[:SHORTLIST]

    def gains(self, model: Surrogate | Believing, points: Points, *, winner: bool) -> Floats:
        """The expected gain of each point: in hypervolume, or over the best within the limit."""
        parts = (points[at : at + PART] for at in range(0, len(points), PART))
        predicted = [model.predict(Inputs.of(self._frame.features(part), rough=True)) for part in parts]
        mean, deviation = np.hstack(predicted) if predicted else np.empty((2, 0))
        deviation = BOLDNESS * deviation  # not of the noise: a lucky training is no better architecture
        if winner:
            within = self._all_errors[self._all_x <= self._frame.end]
            best = float(within.min() if within.size else self._all_errors.max())
            return expected_excess(best, mean, deviation)
        steps, x = Steps.of(self._all_errors, self._all_x, self._reference(mean), self._frame.end), np.log(points.latency)
        uncertain = np.log(points.high / points.low) / (2 * QUANTILE)
        if not uncertain.any():
            return expected_hypervolume_gain(steps, mean, deviation, x)
        # Where latencies are uncertain, the mean over them (Gauss-Hermite with three nodes).
        nodes = ((1 / 6, -math.sqrt(3)), (2 / 3, 0.0), (1 / 6, math.sqrt(3)))
        gains = (weight * expected_hypervolume_gain(steps, mean, deviation, x + at * uncertain) for weight, at in nodes)
        return np.asarray(sum(gains, np.zeros(len(points))))

    def _reference(self, mean: Floats) -> float:
        known = self._frame.reference_error
        return max(float(self._all_errors.max()), float(np.exp(mean.max()))) if known is None else known

    @property
    def error(self) -> float:
        """By how much the model is off on average on each result of a whole training without it, in units of the error."""
        rows = np.flatnonzero(np.broadcast_to(self._alone.extra, self._alone.targets.shape) == 0)
        model = self._alone
        errors = np.exp(model.mean + model.spread * model.targets[rows])
        return float(np.mean(np.abs(errors - errors * np.exp(-model.leave_one_out[rows])))) if rows.size else math.nan

    def outlook(self, points: Points, chance: Floats, trainings: float) -> float:
        """By which share so many more trainings are expected to raise the hypervolume.

        The points that promise most are drawn together from the model, so that what they have in common is gained once.

        Args:
            points: candidates.
            chance: of each to hold the limit.
            trainings: more than 100 count as 100, less than one as that part of one.
        """
        rows = self.shortlist(points, chance, winner=False)
        rows = rows[np.argsort(-chance[rows] * self.gains(self.full, points[rows], winner=False), kind="stable")]
        rows = rows[: max(1, min(round(trainings), MOST))]
        mean, covariance = self._alone.joint(Inputs.of(self._frame.features(points[rows])))
        covariance[np.diag_indices_from(covariance)] += JITTER * self._alone.spread**2
        rng = np.random.default_rng(derive(self._seed, self.results, "outlook"))
        drawn = np.exp(mean[:, None] + BOLDNESS * cholesky(covariance, lower=True) @ rng.standard_normal((rows.size, DRAWS)))
        reference, x = self._reference(mean), np.log(points.latency[rows])
        within = rng.random((rows.size, DRAWS)) < chance[rows][:, None]

        def volume(errors: Floats, x: Floats) -> float:
            return Steps.of(errors, x, reference, self._frame.end).area(math.log(self._frame.fastest_ms))

        before = volume(self._own_errors, self._x)
        after = [
            volume(np.concatenate((self._own_errors, drawn[ok, draw])), np.concatenate((self._x, x[ok])))
            for draw, ok in enumerate(within.T)
        ]
        return min(1.0, trainings) * (float(np.mean(after)) / before - 1) if before > 0 else math.inf


def _milestone(results: int) -> int:
    """How many of so many results hyperparameters are fitted to: all of few, then a number that changes now and then."""
    step = 1 if results <= EVERY_FIT else 2 ** (results.bit_length() - 3)
    return results // step * step
