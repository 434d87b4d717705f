"""The next architecture to train, by numbers alone: features, latencies, results so far. Tables and search spaces alike.

Without results the first proposals are spread along log latency (under a limit, the slowest that fits comes first). Then
the accuracy model is fitted to all results, believes what it expects of trials that still run (so that a batch spreads),
and the candidate with the largest expected gain is proposed: in hypervolume, or over the best result within the limit.
Without a limit all proposals go for the hypervolume; under one the first 20 go for the best within it, of the later ones
every second. The chance to hold the limit multiplies either.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nas.search.acquisition import Steps, chance_within, expected_excess, expected_hypervolume_gain
from nas.search.surrogate import Believing, Floats, Form, Inputs, Surrogate, condition, fit
from nas.seeds import derive
from nas.space.features import Features

Rows = NDArray[np.intp]

# Proposals by latency alone, before the model speaks: where they lie between the fastest and the slowest (in log latency).
SPREAD, SPREAD_UNDER_LIMIT = (0.25, 0.75), (1.0, 0.75, 0.5)
NEAR = 0.1  # the share of candidates nearest to a latency that a spread proposal chooses from
BOLDNESS = 1.5  # on the model's deviations: it takes its most probable hyperparameters for the true ones
WINNER_FIRST, WINNER_EVERY = 20, 2  # under a limit, so many proposals go for the best within it, then one of so many
LEAST_CHANCE = 0.05  # to hold the limit, where latencies are uncertain
LOOKED_AT = 10_000  # candidates that one proposal considers, drawn anew for each
SHORTLIST = 1_000  # of these, once results are many, so many that a coarse model likes are shown to the full one
COARSE, FITTED, KEPT = 64, 200, 600  # results that the coarse model, the hyperparameters and the full model are given
EVERY_FIT = 64  # up to so many results hyperparameters are fitted at each, then at every sixteenth of a power of two


@dataclass(frozen=True)
class Points:
    """Architectures: features, and latency in ms with its 5% and 95% quantiles (equal where it is measured)."""

    features: Features
    latency: Floats
    low: Floats
    high: Floats

    def __len__(self) -> int:
        return len(self.latency)

    def __getitem__(self, rows: Rows) -> Points:
        return Points(self.features[rows], self.latency[rows], self.low[rows], self.high[rows])


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


@dataclass
class Fits:
    """Hyperparameters by the results that they were fitted to: a memory, never a state."""

    known: dict[bytes, Floats] = field(default_factory=dict)

    def get(self, form: Form, inputs: Inputs, errors: Floats) -> Floats:
        key = errors.tobytes() + np.float32(inputs.points).tobytes()
        if key not in self.known:
            self.known = {key: fit(form, inputs, errors)}
        return self.known[key]


def choose(
    pool: Points, done: Points, errors: Floats, running: Points, frame: Frame, seed: int, number: int, fits: Fits
) -> int | None:
    """The row of the pool to propose as trial `number`; None where nothing in it can hold the limit.

    Args:
        pool: unseen candidates.
        done: what has results, in the order of their trials.
        errors: of these, above 0 (1 - mAP, or 100 - accuracy).
        running: what was proposed and has no result yet.
    """
    rng = np.random.default_rng(derive(seed, number, "front"))
    chance = chance_within(frame.limit_ms, pool.latency, pool.low, pool.high)
    usable = rng.permutation(np.flatnonzero(chance >= LEAST_CHANCE))[:LOOKED_AT]  # in an order that settles ties
    if usable.size == 0:
        return None
    pool, chance = pool[usable], chance[usable]
    turn = len(done) + len(running)
    if len(done) < 2 or turn < len(_targets(frame)):
        return int(usable[_spread(pool, done, running, frame, turn)])
    winner = frame.limit_ms is not None and (turn < WINNER_FIRST or number % WINNER_EVERY == 0)
    return int(usable[_most_promising(pool, chance, done, errors, running, frame, winner, seed, fits)])


def _spread(pool: Points, done: Points, running: Points, frame: Frame, turn: int) -> int:
    """Of the candidates nearest to this turn's log latency, the one least like what was proposed already."""
    x, targets = np.log(pool.latency), _targets(frame)
    target = x.min() + np.ptp(x) * (targets[turn] if turn < len(targets) else _van_der_corput(turn + 2))
    if target >= x.max():
        return int(np.argmax(x))
    near = np.argsort(np.abs(x - target), kind="stable")[: max(5, int(NEAR * x.size))]
    seen = np.vstack((done.features.points, running.features.points))
    if not len(seen):
        return int(near[np.argmin(near)])  # the rows come in an order drawn for this trial
    apart = np.min(np.sum((pool.features.points[near][:, None] - seen) ** 2, axis=2), axis=1)
    return int(near[np.argmax(apart)])


def _targets(frame: Frame) -> tuple[float, ...]:
    return SPREAD if frame.limit_ms is None else SPREAD_UNDER_LIMIT


def _van_der_corput(number: int) -> float:
    """1/2, 1/4, 3/4, 1/8, …: the binary digits of 1, 2, 3, … mirrored at the point."""
    value, share = 0.0, 0.5
    while number:
        value, number, share = value + share * (number & 1), number >> 1, share / 2
    return value


def _most_promising(
    pool: Points,
    chance: Floats,
    done: Points,
    errors: Floats,
    running: Points,
    frame: Frame,
    winner: bool,
    seed: int,
    fits: Fits,
) -> int:
    features = frame.features(done)
    form, inputs = Form.of(features), Inputs.of(features)
    x, log_errors = np.log(done.latency), np.log(errors)

    known = Steps.of(errors, x, float(errors.max()) * 2, math.inf)
    behind = log_errors - np.log(known.level_at(x))  # how far each result is behind the front
    at = _milestone(len(done))
    rows = _telling(behind[:at], FITTED, seed)
    theta = fits.get(form, inputs[rows], errors[rows])

    def model(size: int) -> Surrogate | Believing:
        rows = _telling(behind, size, seed)
        own = condition(form, theta, inputs[rows], errors[rows])
        return own.believing(waiting) if len(waiting) else own

    waiting = Inputs.of(frame.features(running))
    full = model(KEPT)
    believed = np.exp(full.predict(waiting)[0]) if len(waiting) else np.empty(0)
    all_errors = np.concatenate((errors, believed))
    all_x = np.concatenate((x, np.log(running.latency)))

    def gains(surrogate: Surrogate | Believing, rows: Rows) -> Floats:
        points = pool[rows]
        mean, deviation = surrogate.predict(Inputs.of(frame.features(points)))
        deviation = BOLDNESS * deviation  # not of the noise: a lucky training is no better architecture
        if winner:
            return chance[rows] * _over_best(frame, all_errors, all_x, mean, deviation)
        reference = frame.reference_error
        if reference is None:
            reference = max(float(all_errors.max()), float(np.exp(mean.max())))
        steps = Steps.of(all_errors, all_x, reference, frame.end)
        return chance[rows] * expected_hypervolume_gain(steps, mean, deviation, np.log(points.latency))

    rows = np.arange(len(pool))
    if len(done) > COARSE and len(pool) > SHORTLIST:
        rows = np.argsort(-gains(model(COARSE), rows), kind="stable")[:SHORTLIST]
    return int(rows[np.argmax(gains(full, rows))])


def _over_best(frame: Frame, errors: Floats, x: Floats, mean: Floats, deviation: Floats) -> Floats:
    """Expected gain over the lowest error within the limit."""
    within = errors[x <= frame.end]
    return expected_excess(float(within.min() if within.size else errors.max()), mean, deviation)


def _milestone(results: int) -> int:
    """How many of so many results hyperparameters are fitted to: all of few, then a number that changes now and then."""
    step = 1 if results <= EVERY_FIT else 2 ** (results.bit_length() - 5)
    return results // step * step


def _telling(behind: Floats, size: int, seed: int) -> Rows:
    """Rows of at most `size` results: two thirds nearest to the front, the rest at random, in the order of their trials."""
    if behind.size <= size:
        return np.arange(behind.size)
    order = np.argsort(behind, kind="stable")
    near, rest = order[: size * 2 // 3], order[size * 2 // 3 :]
    drawn = np.random.default_rng(derive(seed, behind.size, "telling")).choice(rest, size - near.size, replace=False)
    return np.sort(np.concatenate((near, drawn)))
