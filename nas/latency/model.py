"""Latency of architectures that nobody has measured, with an interval, from a few dozen that somebody has.

A model's latency is taken as the sum of its rows' times, but for a small power of it that is fitted to whole models. The
logarithm of a row's time is a Gaussian process: rows of one module (a block, or a stock layer) share a power law of channels,
depth, resolution, heads and knobs with slopes drawn around what convolutions cost, and differ smoothly from it; a layer has
an offset of its own. What was measured enters as it comes: times of rows, where the runtime has a profile, and latencies of
whole models, whose logarithm is linearised around the present estimate (Gauss-Newton), so that the same model learns from
whole models alone where there is nothing else.

Intervals are conformal: the errors made on measured architectures, each predicted without its own measurements
(leave-one-out, exact for a Gaussian process), over the standard deviation that the process itself states; so they are right
on average even where the process is not (Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import numpy as np

from nas.errors import InputError
from nas.latency.kernel import Encoder, Floats, Ints, Spread, covariance, one_by_one, prior_mean, variance
from nas.latency.rows import RowTable, held, row_kinds
from nas.space.architecture import Architecture
from nas.space.held import Held
from nas.space.search_space import SearchSpace
from nas.space.skeleton import Skeleton

LEVEL, NORMAL = 0.9, 1.645  # the level of intervals; a normal variable stays within so many standard deviations with it
MIN_OBSERVATIONS = 3
# Rows of the first so many observations that have some; further ones enter as whole models, which bounds the time of a fit.
MAX_PROFILED = 40
STEPS, STRIDE, SETTLED = 20, 1.0, 1e-3
CHOOSE_NOISE = 3  # the step from which on the noise is that which the observations show
MAX_JUDGED = 20
# A row's time is counted in microseconds and less: nothing is known of it below this share of the whole.
ROW_FLOOR = 4e-4
# Standard deviation of the logarithm of a whole model's measured latency: what figures of a quiet machine repeat within.
WHOLE_NOISE = 0.01
# Standard deviations of what a whole model takes beside its rows: a factor, and how it changes with the model's size (caches).
BESIDE, BESIDE_SLOPE = 0.05, 0.1
SPREAD = Spread()
PART = 256  # kinds of rows worked out at once: what is needed for it stays small


class Observation(NamedTuple):
    """A measured architecture: `ms` of the whole model, and of each row by its layer index where the runtime has a profile.
    Rows add up to the whole."""

    architecture: Architecture
    ms: float
    rows: Mapping[int, float] | None = None


@dataclass(frozen=True)
class Error:
    """How wrong a model is on its own observations, each predicted without its own measurements.

    `mape` is the mean absolute error in percent of the measured latency, `spearman` the rank correlation with it, `n` the
    number of observations.
    """

    mape: float
    spearman: float
    n: int


class LatencyModel:
    """What is known about the latencies of one skeleton's architectures on one target (at one image size).

    Make one by `fit` or `from_dict`. A model is never changed: more observations make a new one.
    """

    def __init__(self, skeleton: Skeleton, observations: Sequence[Observation]) -> None:
        self.skeleton = skeleton
        self.observations = tuple(observations)
        self._rowwise: _Rowwise | None = None  # a memory, never a state
        self._learn()

    @classmethod
    def fit(
        cls,
        space: SearchSpace | Skeleton,
        observations: Iterable[tuple[Architecture, float, Mapping[int, float] | None]],
    ) -> Self:
        """Learn from measured architectures; of one that occurs twice the lower latency counts (a neighbour only adds).

        Raises:
            InputError: fewer than 3 observations, a latency that is no positive number, or rows that do not exist.
        """
        skeleton = space.skeleton if isinstance(space, SearchSpace) else space
        best: dict[Architecture, Observation] = {}
        for observation in map(Observation._make, observations):
            _check(skeleton, observation)
            known = best.get(observation.architecture)
            if known is None or observation.ms < known.ms:
                best[observation.architecture] = observation
        if len(best) < MIN_OBSERVATIONS:
            what = f"a latency model of {skeleton.name} from {len(best)} measured architectures"
            raise InputError(what, f"measure at least {MIN_OBSERVATIONS} different ones")
        return cls(skeleton, list(best.values()))

    def predict(self, architectures: Sequence[Architecture] | Held) -> tuple[Floats, Floats, Floats]:
        """Milliseconds, and the bounds that hold the measured figure in 90% of cases, of each architecture.

        Architectures far from what was measured get a wide interval, not an error.

        Raises:
            InputError: an architecture of another skeleton.
        """
        if not len(architectures):
            return np.empty(0), np.empty(0), np.empty(0)
        given = architectures if isinstance(architectures, Held) else held(self.skeleton, architectures)
        rowwise = self._rowwise
        if rowwise is None or rowwise.table.placements is not given.placements:
            rowwise = _Rowwise(RowTable(self.skeleton, given.placements))
            if given is architectures:  # of a space, and there will be more
                self._rowwise = rowwise
        index = rowwise.table.index(given.numbers)
        log_times, unsure, strange = self._judged(rowwise).T
        times = np.exp(log_times)[index]
        total = times.sum(1)
        shares, strange = times / total[:, None], strange > 0
        # what no observation tells, none can correct: a new block's rows count in full, and err together
        new = np.sum(shares * np.where(strange, np.sqrt(unsure), 0.0)[index], axis=1) if strange.any() else 0.0
        known = _deviation(shares, np.where(strange, 0.0, unsure)[index])
        margin = np.exp(np.hypot(self._factor * known, NORMAL * new))
        ms = total * np.exp(_size(total, self._typical) @ self._correction)
        return ms, ms / margin, ms * margin

    def _judged(self, rowwise: _Rowwise) -> Floats:
        """Of each kind of row the logarithm of its time, the variance of that, and 1 where no observation tells of its module,
        (kinds, 3). Each is worked out once, by itself: candidates of a search have most of theirs in common."""
        kinds = rowwise.table.kinds
        while len(rowwise.judged) < len(kinds):
            rows = self._encode(kinds[len(rowwise.judged) : len(rowwise.judged) + PART])
            shared = covariance(rows, self._rows, SPREAD)
            log_times = prior_mean(rows) + self._level + np.sum(shared * self._weights, axis=1)
            unsure = np.maximum(variance(rows, SPREAD) - np.sum(one_by_one(shared, self._known) * shared, axis=1), 0.0)
            strange = rows.family >= len(self._encode.families)
            rowwise.judged = np.vstack((rowwise.judged, np.column_stack((log_times, unsure, strange))))
        return rowwise.judged

    def to_dict(self) -> dict[str, Any]:
        """The observations as plain data, from which the same model follows."""
        return {
            "skeleton": self.skeleton.name,
            "observations": [
                {"architecture": o.architecture.to_dict(), "ms": o.ms}
                | ({"rows": {str(row): ms for row, ms in o.rows.items()}} if o.rows is not None else {})
                for o in self.observations
            ],
        }

    @classmethod
    def from_dict(cls, space: SearchSpace | Skeleton, data: Mapping[str, Any]) -> Self:
        """The model that `to_dict` described. Raises InputError as `fit` does."""
        return cls.fit(
            space,
            (
                (
                    Architecture.from_dict(entry["architecture"]),
                    float(entry["ms"]),
                    {int(row): float(ms) for row, ms in entry["rows"].items()} if "rows" in entry else None,
                )
                for entry in data["observations"]
            ),
        )

    def _learn(self) -> None:
        """Gauss-Newton on the logarithms of the times of all distinct rows that occur in the observations."""
        kinds, index = row_kinds(self.skeleton, [o.architecture for o in self.observations])
        self._encode = Encoder.of(kinds)
        self._rows = self._encode(kinds)
        n = len(self.observations)
        log_ms = np.log([o.ms for o in self.observations])
        prior = prior_mean(self._rows)
        self._level = float(np.mean(log_ms - np.log(np.exp(prior)[index].sum(1))))
        prior += self._level
        shared = covariance(self._rows, self._rows, SPREAD)
        owner, row, log_row, floor = _profiled(self.observations, index)
        owner, floor = np.append(owner, np.arange(n)), np.append(floor, np.zeros(n))
        looks = np.zeros((len(owner), len(kinds)))  # how each observation changes with each row's logarithm
        looks[np.arange(len(row)), row] = 1.0
        whole = looks[len(row) :]
        noise, estimate = NOISES[len(NOISES) // 2], prior
        for step in range(STEPS):
            times = np.exp(estimate)[index]
            total = times.sum(1)
            shares = times / total[:, None]
            whole[:] = 0.0
            np.add.at(whole, (np.arange(n)[:, None], index), shares)
            surprise = np.append(log_row - prior[row], log_ms - np.log(total) + whole @ (estimate - prior))
            seen = np.concatenate([shared[row], whole @ shared])
            expected = np.concatenate([seen[:, row], seen @ whole.T], axis=1)
            size = _size(total, typical := float(np.mean(np.log(total))))
            expected[len(row) :, len(row) :] += size @ size.T
            if step == CHOOSE_NOISE:
                noise = _likeliest_noise(expected, surprise, owner, floor, len(row))
            weighted = np.linalg.solve(expected + noise.covariance(owner, floor, len(row)), surprise)
            change = prior + seen.T @ weighted - estimate
            largest = float(np.abs(change).max())
            estimate = estimate + change * min(1.0, STRIDE / largest)
            if step > CHOOSE_NOISE and largest < SETTLED:
                break
        precision = np.linalg.inv(expected + noise.covariance(owner, floor, len(row))).astype(np.float64)
        self._weights = looks.T @ weighted
        self._typical, self._correction = typical, size.T @ weighted[len(row) :]
        self._known = looks.T @ precision @ looks
        groups = [np.flatnonzero(owner == number) for number in range(n)]
        errors, unsure = _left_out(precision, surprise, seen, np.diag(shared), groups, index)
        self._factor = _conformal(np.abs(errors) / _deviation(shares, unsure))
        measured = np.exp(log_ms)
        predicted = measured * np.exp(-errors)
        mape = 100 * float(np.mean(np.abs(predicted / measured - 1)))
        self.error = Error(mape, spearman(predicted, measured), n)


@dataclass
class _Rowwise:
    """What a model says of every row of a table so far, see `LatencyModel._judged`."""

    table: RowTable
    judged: Floats = field(default_factory=lambda: np.empty((0, 3)))


@dataclass(frozen=True)
class Noise:
    """Standard deviations of the logarithms of a model's profiled rows: `profile` of all of them together, for the moment may
    have been slow, `row` of each besides."""

    profile: float
    row: float

    def covariance(self, owner: Ints, floor: Floats, rows: int) -> Floats:
        """Of observations, the first `rows` of them rows, with their owners and additional variances."""
        is_row = np.arange(len(owner)) < rows
        result: Floats = np.diag(floor + np.where(is_row, self.row**2, WHOLE_NOISE**2))
        result += self.profile**2 * ((owner[:, None] == owner[None, :]) & is_row[:, None] & is_row[None, :])
        return result


NOISES = tuple(Noise(profile, row) for profile in (0.01, 0.03, 0.08) for row in (0.03, 0.06, 0.12))


def _likeliest_noise(expected: Floats, surprise: Floats, owner: Ints, floor: Floats, rows: int) -> Noise:
    """The noise under which what was measured is the likeliest, judged by a part of it where there is much."""
    part = np.flatnonzero((owner < MAX_JUDGED) | (np.arange(len(owner)) >= rows))
    few = expected[np.ix_(part, part)], surprise[part], owner[part], floor[part], int(np.sum(part < rows))
    return max(NOISES, key=lambda noise: _likelihood(noise, *few))


def _likelihood(noise: Noise, expected: Floats, surprise: Floats, owner: Ints, floor: Floats, rows: int) -> float:
    """The logarithm of the marginal likelihood, up to a constant."""
    factor = np.linalg.cholesky(expected + noise.covariance(owner, floor, rows))
    fitted = np.linalg.solve(factor, surprise)
    return -0.5 * float(fitted @ fitted) - float(np.log(np.diag(factor)).sum())


def spearman(a: Floats, b: Floats) -> float:
    """Rank correlation; of ties the ranks in the order given, which no measured latency has."""
    return float(np.corrcoef(np.argsort(np.argsort(a)), np.argsort(np.argsort(b)))[0, 1])


def _profiled(observations: Sequence[Observation], index: Ints) -> tuple[Ints, Ints, Floats, Floats]:
    """Every measured row: its observation, its number among the distinct rows, the logarithm of its time, the
    variance of that for the profile's coarse clock."""
    found = []
    profiled = [number for number, o in enumerate(observations) if o.rows is not None][:MAX_PROFILED]
    for number in profiled:
        _, ms, rows = observations[number]
        for layer, row_ms in (rows or {}).items():
            if row_ms > 0:
                found.append((number, index[number, layer], math.log(row_ms), (ROW_FLOOR * ms / row_ms) ** 2))
    columns = np.array(found, dtype=float).reshape(-1, 4).T
    return columns[0].astype(np.int64), columns[1].astype(np.int64), columns[2], columns[3]


def _left_out(
    precision: Floats, surprise: Floats, seen: Floats, prior: Floats, groups: Sequence[Ints], index: Ints
) -> tuple[Floats, Floats]:
    """Of each architecture the error of its logarithm, and the variances of its rows', without its own measurements.

    Conditioning on all but a group of observations needs only the group's block of the inverse covariance of all (Rasmussen
    and Williams, "Gaussian Processes for Machine Learning", 2006, section 5.4.2).

    Args:
        seen: covariance of every observation with every distinct row.
        prior: variance of every distinct row before anything is measured.
        groups: of each architecture its observations, the whole model's last.
    """
    weighted, pull = precision @ surprise, precision @ seen
    known = prior - np.sum(seen * pull, axis=0)
    errors, unsure = np.empty(len(groups)), np.empty(index.shape)
    for number, own in enumerate(groups):
        spread = np.linalg.inv(precision[np.ix_(own, own)])
        errors[number] = (spread @ weighted[own])[-1]
        mine = pull[np.ix_(own, index[number])]
        unsure[number] = known[index[number]] + np.sum(mine * (spread @ mine), axis=0)
    return errors, np.maximum(unsure, 0.0)


def _size(total: Floats, typical: float) -> Floats:
    """Features of the correction of whole models, (n, 2), each as large as its coefficient is believed to be."""
    return np.stack([np.full(len(total), BESIDE), BESIDE_SLOPE * (np.log(total) - typical)], axis=1)


def _deviation(shares: Floats, unsure: Floats) -> Floats:
    """Standard deviation of the logarithm of a measured sum whose terms have these shares and variances of the logarithm."""
    deviation: Floats = np.sqrt(WHOLE_NOISE**2 + np.sum(shares**2 * unsure, axis=1))
    return deviation


def _conformal(scores: Floats) -> float:
    """What a further score stays below in 90% of cases; with fewer than 9 scores the largest, stretched by what is missing."""
    n = len(scores)
    rank = math.ceil((n + 1) * LEVEL)
    return float(np.sort(scores)[min(rank, n) - 1]) * max(rank / n, 1.0)


def _check(skeleton: Skeleton, observation: Observation) -> None:
    _, ms, rows = observation
    if not (math.isfinite(ms) and ms > 0):
        raise InputError(f"a latency of {ms} ms", "give milliseconds above 0")
    if strange := [row for row in rows or {} if not 0 <= row < len(skeleton.rows)]:
        raise InputError(f"{skeleton.name} has no row {strange[0]}", f"rows are numbered from 0 to {len(skeleton.rows) - 1}")
    if any(not math.isfinite(value) or value < 0 for value in (rows or {}).values()):
        raise InputError("a row's time is negative or no number", "give milliseconds")
