"""How alike the times of two rows are: the mean and covariance of the Gaussian process over the logarithm of a row's time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nas.latency.rows import RowKind

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# Runtimes compute channels in groups; 16 is that of AVX-512 and of most tensor cores.
GROUP = 16
LN2 = float(np.log(2.0))


@dataclass(frozen=True)
class Spread:
    """Standard deviations of the logarithm of a row's time, and lengths in octaves: what is believed before measuring.

    `all_*` is shared by all rows, `family_*` by the rows of one module, `layer_*` by those of one module in one layer; a
    `level` is a constant factor, a `slope` that of an exponent of the power law, a `bend` a smooth departure from it over
    `reach` octaves.
    """

    all_level: float = 2.0
    all_slope: float = 0.3
    family_level: float = 0.5
    family_slope: float = 0.3
    family_bend: float = 0.25
    family_reach: float = 1.5
    layer_level: float = 0.15
    layer_bend: float = 0.1
    layer_reach: float = 1.0


@dataclass(frozen=True)
class Rows:
    """Row kinds as arrays: `family` and `layer` (n,), `numbers` (n, d) in octaves around those of a usual layer."""

    family: Ints
    layer: Ints
    numbers: Floats


@dataclass(frozen=True)
class Encoder:
    """Turns row kinds into arrays. Families that it does not know get numbers from `len(families)` on."""

    knobs: tuple[str, ...]
    families: Mapping[tuple[str, int], int]

    @classmethod
    def of(cls, kinds: Sequence[RowKind]) -> Encoder:
        families = dict.fromkeys(map(_family, kinds))
        knobs = sorted({name for kind in kinds for name, _ in kind.knobs})
        return cls(tuple(knobs), {family: number for number, family in enumerate(families)})

    def __call__(self, kinds: Sequence[RowKind]) -> Rows:
        families = dict(self.families)
        family = np.array([families.setdefault(_family(kind), len(families)) for kind in kinds], dtype=np.int64)
        layer = np.array([kind.layer for kind in kinds], dtype=np.int64)
        return Rows(family, layer, self._numbers(kinds))

    def _numbers(self, kinds: Sequence[RowKind]) -> Floats:
        taken, channels, depth, stride, heads = np.array(
            [(sum(kind.inputs), kind.channels, max(kind.depth, 1), kind.stride, kind.heads) for kind in kinds], dtype=np.int64
        ).T.reshape(5, -1)
        knobs = np.zeros((len(kinds), len(self.knobs)))  # an absent one is as one of 0
        column = {name: number for number, name in enumerate(self.knobs)}
        for row, kind in enumerate(kinds):
            for name, value in kind.knobs:
                if name in column:
                    knobs[row, column[name]] = max(value, 0.0)
        numbers = [
            np.log2(taken / 64),
            np.log2(channels / 64),
            np.log2(depth),
            2 * (3 - np.log2(stride)),
            np.where(heads > 0, np.log2(np.maximum(heads, 1)) - 2, 0.0),
            (taken % GROUP > 0) / 2,
            (channels % GROUP > 0) / 2,
        ]
        return np.column_stack((*numbers, np.log2(1 + knobs)))


def _family(kind: RowKind) -> tuple[str, int]:
    return kind.module, len(kind.inputs)


def prior_mean(rows: Rows) -> Floats:
    """The logarithm of a row's time before anything is measured, up to a constant: between memory-bound and compute-bound."""
    slopes = np.zeros(rows.numbers.shape[1])
    slopes[:4] = 0.6, 0.6, 0.8, 0.8
    mean: Floats = LN2 * np.sum(rows.numbers * slopes, axis=1)
    return mean


def covariance(a: Rows, b: Rows, s: Spread) -> Floats:
    """Covariance of the logarithms of the times of rows `a` (n) and `b` (m), (n, m)."""
    product = LN2**2 * one_by_one(a.numbers, b.numbers.T)
    result: Floats = s.all_level**2 + s.all_slope**2 * product
    for family in np.intersect1d(a.family, b.family):  # rows of two families share no more: few pairs are of one
        rows, columns = np.flatnonzero(a.family == family), np.flatnonzero(b.family == family)
        both = np.ix_(rows, columns)
        apart = _squares(a.numbers[rows], b.numbers[columns])
        layer = a.layer[rows, None] == b.layer[columns]
        own = s.family_level**2 + s.family_slope**2 * product[both]
        own += s.family_bend**2 * np.exp(apart * (-0.5 / s.family_reach**2))
        own += layer * (s.layer_level**2 + s.layer_bend**2 * np.exp(apart * (-0.5 / s.layer_reach**2)))
        result[both] += own
    return result


def variance(a: Rows, s: Spread) -> Floats:
    """The diagonal of `covariance(a, a, s)`."""
    product = LN2**2 * np.sum(a.numbers**2, axis=1)
    constant = s.all_level**2 + s.family_level**2 + s.family_bend**2 + s.layer_level**2 + s.layer_bend**2
    result: Floats = constant + (s.all_slope**2 + s.family_slope**2) * product
    return result


def _squares(a: Floats, b: Floats) -> Floats:
    result: Floats = np.maximum(np.sum(a**2, 1)[:, None] + np.sum(b**2, 1)[None, :] - 2 * one_by_one(a, b.T), 0.0)
    return result


def one_by_one(rows: Floats, matrix: Floats) -> Floats:
    """`rows @ matrix`, each row by itself: a row's result is the same to the last bit whichever others stand beside it."""
    result: Floats = (rows[:, None, :] @ matrix)[:, 0]
    return result
