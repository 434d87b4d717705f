"""What a few results say about untrained architectures: mAP as a sum over the slots, by ridge regression.

Ridge regression: A. Hoerl and R. Kennard, "Ridge regression: biased estimation for nonorthogonal problems",
Technometrics 12(1), 1970; its leave-one-out errors in closed form: D. Allen, "The relationship between variable
selection and data augmentation and a method for prediction", Technometrics 16(1), 1974.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nas.space.architecture import Architecture
from nas.space.skeleton import Skeleton

MIN_RESULTS = 4
_STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Additive:
    """A value per architecture: a mean, and what each slot's block, width and depth add to it.

    Args:
        error: mean absolute error, each result predicted from the others.
        guess: the same error of the others' mean; a regression that is not below it has learned nothing.
        n: number of results.
    """

    skeleton: Skeleton
    error: float
    guess: float
    n: int
    _names: tuple[tuple[str, str], ...]
    _middle: Array
    _weights: Array
    _mean: float

    @classmethod
    def fit(cls, skeleton: Skeleton, architectures: Sequence[Architecture], values: ArrayLike) -> Additive:
        """Of the strengths of shrinking, the one with the smallest leave-one-out error.

        Raises:
            ValueError: fewer than 4 results, or not one per architecture.
        """
        y = np.asarray(values, dtype=np.float64)
        if y.shape != (len(architectures),) or y.size < MIN_RESULTS:
            raise ValueError(f"needs {MIN_RESULTS} results or more, one per architecture; got {y.shape}")
        described = [_features(skeleton, a) for a in architectures]
        names = tuple(sorted({name for features in described for name in features}))
        x = _matrix(described, names)
        middle, mean, n = x.mean(axis=0), float(y.mean()), y.size
        x = x - middle
        gram = x @ x.T  # few rows, many columns: the dual form
        fits = []
        for strength in _STRENGTHS:
            inverse = np.linalg.inv(gram + strength * np.eye(n))
            left_out = (y - mean - gram @ inverse @ (y - mean)) / (1 - 1 / n - np.diag(gram @ inverse))
            fits.append((float(np.mean(np.abs(left_out))), x.T @ inverse @ (y - mean)))
        error, weights = min(fits, key=lambda fit: fit[0])
        guess = float(np.mean(np.abs(y - mean)) * n / (n - 1))
        return cls(skeleton, error, guess, n, names, middle, weights, mean)

    def predict(self, architectures: Sequence[Architecture]) -> Array:
        """The value of each architecture; a choice that no result had adds nothing."""
        x = _matrix([_features(self.skeleton, a) for a in architectures], self._names)
        return self._mean + (x - self._middle) @ self._weights


def _features(skeleton: Skeleton, architecture: Architecture) -> dict[tuple[str, str], float]:
    """What differs from the skeleton: 1 for a slot's block, and the doublings of its width and depth."""
    found: dict[tuple[str, str], float] = {}
    for p in architecture.placements:
        slot = skeleton.slot(p.slot)
        found[p.slot, p.block] = 1.0
        found[p.slot, "width"] = math.log2(p.channels / slot.row.c2)
        found[p.slot, "depth"] = math.log2(p.depth / slot.depth)
    return found


def _matrix(described: Sequence[dict[tuple[str, str], float]], names: Sequence[tuple[str, str]]) -> Array:
    column = {name: index for index, name in enumerate(names)}
    x = np.zeros((len(described), len(names)))
    for row, features in enumerate(described):
        for name, value in features.items():
            if name in column:
                x[row, column[name]] = value
    return x
