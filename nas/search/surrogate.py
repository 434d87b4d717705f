"""The accuracy model: a small exact Gaussian process on the logarithm of the error, for tens to a thousand results.

The logarithm makes gains comparable: from 40 to 39 points of error counts as from 20 to 19.5. The kernel is

    c² + Σ_g a_g² x_g·x'_g + Σ_g b_g² φ(x_g)·φ(x'_g) + s² M(√(Σ_g |x_g - x'_g|² / ℓ_g²)) + noise²

over groups g of columns (one number, or one category as one-hot): main effects that are linear, and for numbers curved
(φ: Legendre polynomials of degree 2 and 3), beside a Matérn-5/2 product for whatever interacts. Dozens of results carry
only so much, so all of a, b, ℓ, s and noise have log-normal priors and are set to their most probable values.

Sources: C. E. Rasmussen and C. K. I. Williams, "Gaussian Processes for Machine Learning", MIT Press 2006: posterior
(2.25, 2.26), marginal likelihood and its gradient (5.8, 5.9), leave-one-out (5.12).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.linalg.lapack import dpotri
from scipy.optimize import minimize

from nas.space.features import Features

Floats = NDArray[np.float64]
Reals = NDArray[np.floating[Any]]

OFFSET = 2.0  # c: the mean is not known beforehand
# Medians and widths (of the logarithm) of the priors, for targets scaled to a standard deviation of about 1.
LINEAR, CURVED, LENGTH, PRODUCT, NOISE = (1.0, 0.5), (0.3, 0.5), (1.0, 0.5), (0.5, 1.0), (0.1, 1.0)
TYPICAL_SPREAD = 0.2  # of log error over a search space: what the scale is before results say otherwise
OUTLIER = 3.0  # an error so many interquartile ranges above the quartile is drawn in to there: a collapsed training
JITTER = 1e-6
FIT_STEPS = 60


@dataclass(frozen=True)
class Inputs:
    """Features in the two forms that the kernel needs: columns of main effects, and points for distances.

    Results are in double precision, as what is inverted is made of them; candidates are `rough`, in single precision, which
    takes half the time and is off by less than a fiftieth of the noise.
    """

    effects: Reals
    points: Reals

    @classmethod
    def of(cls, features: Features, *, rough: bool = False) -> Inputs:
        effects = _effects(features, np.float32 if rough else np.float64)
        return cls(effects, effects[:, : features.points.shape[1]])

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, rows: NDArray[np.intp] | slice) -> Inputs:
        return Inputs(self.effects[rows], self.points[rows])


@dataclass(frozen=True)
class Form:
    """Which columns of `Inputs` belong to which hyperparameter: the form of the kernel, the same for a whole search."""

    effects: NDArray[np.intp]
    points: NDArray[np.intp]
    prior: Floats  # (2, hyperparameters): mean and width of each logarithm

    @classmethod
    def of(cls, features: Features) -> Form:
        groups, curved = len(features.numeric), np.flatnonzero(features.numeric)
        effects = np.concatenate((features.groups, np.tile(groups + np.arange(curved.size), 2)))
        prior = [LINEAR] * groups + [CURVED] * curved.size + [LENGTH] * groups + [PRODUCT, NOISE]
        return cls(effects, features.groups, np.array([(math.log(median), width) for median, width in prior]).T)

    @property
    def split(self) -> int:
        """Number of hyperparameters of main effects; lengths follow, then the product's size and the noise."""
        return int(self.effects.max(initial=-1)) + 1


def _effects(features: Features, kind: type[np.float64 | np.float32]) -> Reals:
    """The columns of main effects: as they are, then of the numbers the Legendre polynomials of degree 2 (halved), then those
    of degree 3 (quartered)."""
    points = features.points.astype(kind, copy=False)
    x = 2 * points[:, features.numeric[features.groups]]
    columns, curved = points.shape[1], x.shape[1]
    effects = np.empty((len(x), columns + 2 * curved), dtype=kind)
    effects[:, :columns] = points
    square, cube = effects[:, columns : columns + curved], effects[:, columns + curved :]
    np.multiply(x, x, out=square)  # x**3 would be computed as a power: ten times slower
    np.multiply(5 / 8 * square - 3 / 8, x, out=cube)
    square *= 3 / 4
    square -= 1 / 4
    return effects


@dataclass(frozen=True)
class Surrogate:
    """A fitted model; `mean` and `spread` (of log error) are the scale it works in, `theta` log hyperparameters."""

    form: Form
    theta: Floats
    inputs: Inputs
    targets: Floats
    mean: float
    spread: float
    extra: Floats | float = 0.0  # variance of each target, beyond the noise that all have

    @property
    def noise(self) -> float:
        """Standard deviation of log error that no feature explains: of a repeated training."""
        return float(self.spread * math.sqrt(math.exp(2 * self.theta[-1]) + JITTER))

    @cached_property
    def _factor(self) -> Floats:
        gram = kernel(self.form, self.theta, self.inputs, self.inputs)
        gram[np.diag_indices_from(gram)] += math.exp(2 * self.theta[-1]) + JITTER + self.extra
        return np.asarray(cholesky(gram, lower=True))

    @cached_property
    def _weights(self) -> Floats:
        return np.asarray(cho_solve((self._factor, True), self.targets))

    def predict(self, inputs: Inputs) -> tuple[Floats, Floats]:
        """Mean and standard deviation of log error, without the noise of a training."""
        mean, variance, _ = self.posterior(inputs)
        return mean, self.deviation(variance)

    def posterior(self, inputs: Inputs) -> tuple[Floats, Floats, Floats]:
        """Mean of log error; variance in the model's scale; and what it is made of, see `half`."""
        across = kernel(self.form, self.theta, self.inputs, inputs)
        half = solve_triangular(self._factor, across, lower=True, check_finite=False)
        variance = variances(self.form, self.theta, inputs) - np.einsum("ij,ij->j", half, half)
        return self.mean + self.spread * (across.T @ self._weights), variance, half

    def half(self, inputs: Inputs) -> Floats:
        """The inverse of the Cholesky factor times the covariance of the results with these inputs."""
        return np.asarray(solve_triangular(self._factor, kernel(self.form, self.theta, self.inputs, inputs), lower=True))

    def joint(self, inputs: Inputs) -> tuple[Floats, Floats]:
        """Mean of log error, and its covariance from one input to another, without the noise of a training."""
        mean, _, half = self.posterior(inputs)
        return mean, self.spread**2 * (kernel(self.form, self.theta, inputs, inputs) - half.T @ half)

    def deviation(self, variance: Floats) -> Floats:
        """Of log error, from a variance in the model's scale."""
        return np.asarray(self.spread * np.sqrt(np.maximum(variance, JITTER)))

    def believing(self, inputs: Inputs) -> Believing:
        """As if these had come out as it expects (kriging believer): the same mean, less doubt around them."""
        return Believing(self, inputs)

    @cached_property
    def leave_one_out(self) -> Floats:
        """Of each result, its log error less what the model says of it without it (hyperparameters kept)."""
        inverse = cho_solve((self._factor, True), np.eye(len(self.targets)))
        return np.asarray(self.spread * self._weights / np.diag(inverse))


class Believing:
    """A model that takes its own expectations of some inputs for results: `Surrogate.believing`.

    The Cholesky factor is extended by them, so that a batch costs little more than a single proposal.
    """

    def __init__(self, model: Surrogate, believed: Inputs) -> None:
        self._model, self._believed = model, believed
        self._half = model.half(believed)
        gram = kernel(model.form, model.theta, believed, believed) - self._half.T @ self._half
        gram[np.diag_indices_from(gram)] += math.exp(2 * model.theta[-1]) + JITTER
        self._factor = cholesky(gram, lower=True)

    def predict(self, inputs: Inputs) -> tuple[Floats, Floats]:
        """As `Surrogate.predict`."""
        model = self._model
        mean, variance, half = model.posterior(inputs)
        across = kernel(model.form, model.theta, self._believed, inputs) - self._half.T @ half
        more = solve_triangular(self._factor, across, lower=True, check_finite=False)
        return mean, model.deviation(variance - np.einsum("ij,ij->j", more, more))


def fit(form: Form, inputs: Inputs, errors: Floats, doubt: Floats | float = 0.0) -> Floats:
    """The most probable log hyperparameters given errors (above 0). Always from the same start: same results, same fit.

    Args:
        doubt: standard deviation of each log error, beyond the noise that all have.
    """
    targets, _, spread = scaled(errors)
    parts, extra = _Parts.of(form, inputs), np.square(doubt / spread)

    def loss(theta: Floats) -> tuple[float, Floats]:
        return negative_log_posterior(form, parts, targets, theta, extra)

    found = minimize(
        loss, form.prior[0], jac=True, method="L-BFGS-B", bounds=[(-5, 4)] * form.prior.shape[1], options={"maxiter": FIT_STEPS}
    )
    return np.asarray(found.x)


def condition(form: Form, theta: Floats, inputs: Inputs, errors: Floats, doubt: Floats | float = 0.0) -> Surrogate:
    """The model with these hyperparameters and results; `doubt` as for `fit`."""
    targets, mean, spread = scaled(errors)
    return Surrogate(form, theta, inputs, targets, mean, spread, np.square(doubt / spread))


def scaled(errors: Floats) -> tuple[Floats, float, float]:
    """Log errors scaled, their mean and their spread; the spread of few is drawn to what is typical of a search space."""
    logs = np.log(errors)
    low, high = np.quantile(logs, (0.25, 0.75))
    logs = np.minimum(logs, high + OUTLIER * max(high - low, TYPICAL_SPREAD))
    mean = float(logs.mean())
    spread = math.sqrt((TYPICAL_SPREAD**2 + float(np.sum((logs - mean) ** 2))) / (1 + logs.size))
    return (logs - mean) / spread, mean, spread


def kernel(form: Form, theta: Floats, a: Inputs, b: Inputs) -> Reals:
    """Covariance (rows of a, rows of b) without noise, in the model's scale; in single precision where b is rough."""
    scale, shrink = np.exp(theta[form.effects]), np.exp(-theta[form.split + form.points])
    near, left = a.points * shrink, a.effects * scale
    if b is a:  # x @ x.T takes half the time
        result, linear = _matern(_squares(near, near)), left @ left.T
    else:
        kind = b.points.dtype
        near, left = near.astype(kind, copy=False), (left * scale).astype(kind, copy=False)
        result, linear = _matern(_squares(near, b.points * shrink.astype(kind))), left @ b.effects.T
    result *= math.exp(2 * theta[-2])
    result += OFFSET**2
    result += linear
    return result


def variances(form: Form, theta: Floats, inputs: Inputs) -> Floats:
    """The diagonal of `kernel(inputs, inputs)`."""
    scales = np.exp(2 * theta[form.effects]).astype(inputs.effects.dtype)
    return np.asarray(OFFSET**2 + np.square(inputs.effects) @ scales + math.exp(2 * theta[-2]), dtype=np.float64)


def _squares(a: Reals, b: Reals) -> Reals:
    """Squared distances between the rows of a and of b."""
    squares = np.asarray(a @ b.T)
    squares *= -2
    squares += np.sum(a * a, axis=1)[:, None]
    squares += np.sum(b * b, axis=1)
    return np.asarray(np.maximum(squares, 0.0, out=squares))


def _matern(squares: Reals) -> Reals:
    r = np.sqrt(5 * squares)
    value = squares * (5 / 3)  # (1 + r + r²/3) exp(-r), in place: arrays of millions
    value += r
    value += 1
    value *= np.exp(np.negative(r, out=r), out=r)
    return np.asarray(value)


@dataclass(frozen=True)
class _Parts:
    """What the kernel of fixed inputs is made of: Gram matrices of the main effects, squared distances of the groups.

    Each is symmetric and kept as its lower triangle, (hyperparameters, pairs): half the memory and half the time.
    """

    grams: Floats
    squares: Floats
    pairs: tuple[NDArray[np.intp], NDArray[np.intp]]  # rows and columns of the triangle

    @classmethod
    def of(cls, form: Form, inputs: Inputs) -> _Parts:
        pairs, effects, groups = np.tril_indices(len(inputs)), form.split, form.prior.shape[1] - form.split - 2
        grams, squares = np.empty((effects, pairs[0].size)), np.empty((groups, pairs[0].size))
        for g in range(effects):
            x = inputs.effects[:, form.effects == g]
            grams[g] = (x @ x.T)[pairs]
        for g in range(groups):
            x = inputs.points[:, form.points == g]
            squares[g] = _squares(x, x)[pairs]
        return cls(grams, squares, pairs)


def negative_log_posterior(
    form: Form, parts: _Parts, targets: Floats, theta: Floats, extra: Floats | float = 0.0
) -> tuple[float, Floats]:
    """Of hyperparameters, up to a constant, with its gradient. `extra`: variances of targets beyond the common noise."""
    n, split = targets.size, form.split
    rows, columns = parts.pairs
    effects, inverse_squares = np.exp(2 * theta[:split]), np.exp(-2 * theta[split:-2])
    size, noise = math.exp(2 * theta[-2]), math.exp(2 * theta[-1])
    squares = inverse_squares @ parts.squares
    product = size * _matern(squares)
    gram = np.zeros((n, n))  # its lower triangle: neither the factor nor the inverse reads more
    gram[parts.pairs] = OFFSET**2 + effects @ parts.grams + product
    gram[np.diag_indices(n)] += noise + JITTER + extra
    factor = cholesky(gram, lower=True)
    weights = cho_solve((factor, True), targets)
    away = (theta - form.prior[0]) / form.prior[1]
    value = 0.5 * targets @ weights + np.sum(np.log(np.diag(factor))) + 0.5 * away @ away
    inverse, _ = dpotri(factor, lower=True)
    outer = np.where(rows == columns, 1.0, 2.0) * (inverse[parts.pairs] - weights[rows] * weights[columns])
    r = np.sqrt(5 * squares)
    falling = outer * (size * 5 / 3 * (1 + r) * np.exp(-r))  # minus twice the slope of the Matérn in the squares
    scales: Floats = np.array([float(outer @ product), noise * float(np.sum(outer[rows == columns]))])
    slopes = effects * (parts.grams @ outer), 0.5 * inverse_squares * (parts.squares @ falling)
    gradient: Floats = np.concatenate((*slopes, scales))
    return float(value), gradient + away / form.prior[1]
