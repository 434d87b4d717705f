"""Rungs: which trials that rest are worth a longer training.

Successive halving promotes the best of a rung (ASHA: Li et al., MLSys 2020). On mAP alone that keeps only the slow end of a
front, since what is fast is seldom among the best. So the front of a rung goes on first, and then whoever is ahead of its
neighbours in latency (its *stratum*), as soon as there are enough of these, whatever still runs. Plain ASHA lets go on who is
among the best third of those so far, and by the end that was nearly half of all; here never more than the share go on: who
waits may still go on later.

The guard: how well a rung foretells the next one is measured on the trials that were on both (Kendall's tau). Where it is
low, more are promoted; where it is nothing, all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FACTOR = 3
STRATUM = 9
PAIRS = 8  # fewer say nothing about tau
# from which tau on, which share is promoted at least
GUARD = ((0.6, 0.0), (0.4, 1 / 2), (0.2, 0.7), (-1.0, 1.0))


@dataclass(frozen=True)
class Climber:
    """A trial on its way up: `scores` are those of the rungs it has passed, `rests` whether it waits for a promotion."""

    number: int
    ms: float
    scores: tuple[float, ...]
    rests: bool


@dataclass(frozen=True)
class Promotion:
    """Trial `number` goes on to `rung`."""

    number: int
    rung: int


def promotion(climbers: Sequence[Climber], shares: Sequence[float], *, final: bool = False) -> Promotion | None:
    """The promotion that is due, of the highest rung first, there the one farthest ahead of its stratum; None if none is.

    Args:
        shares: of those on each rung but the highest that go on, as long as it ranks well.
        final: no more will come, so few are enough.
    """
    for rung in reversed(range(len(shares))):
        passed = sorted((c for c in climbers if len(c.scores) > rung), key=lambda c: (c.ms, c.number))
        if len(passed) < STRATUM and not (final and passed):
            continue
        waiting = [place for place, c in enumerate(passed) if c.rests and len(c.scores) == rung + 1]
        share = share_of(tau_of(climbers, rung), shares[rung])
        full = len(passed) - len(waiting) >= share * len(passed)
        if not waiting or (full and not final):
            continue
        order = _order([c.scores[rung] for c in passed])
        first = min(waiting, key=order.__getitem__)
        if not full or order[first][0] == 0:  # in the end, all of the rung's front goes on
            return Promotion(passed[first].number, rung + 1)
    return None


def leading(climbers: Sequence[Climber], rung: int) -> list[Climber]:
    """Those that rest on a rung and are on its front: in the end they go on."""
    passed = sorted((c for c in climbers if len(c.scores) > rung), key=lambda c: (c.ms, c.number))
    on_front = _on_front(np.array([c.scores[rung] for c in passed]))
    return [c for c, front in zip(passed, on_front, strict=True) if front and c.rests and len(c.scores) == rung + 1]


def _on_front(scores: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Of scores, the fastest first: which are above all that are faster. What scores nothing leads nobody."""
    return scores > np.maximum.accumulate(np.concatenate([[0.0], scores]))[:-1]


def _order(scores: Sequence[float]) -> list[tuple[int, int, float, int]]:
    """By what those on a rung, the fastest first, go on before each other: the rung's front, then who leads its stratum."""
    all_scores = np.array(scores)
    on_front = _on_front(all_scores)
    strata = [all_scores[_stratum(place, len(scores))] for place in range(len(scores))]
    return [
        (int(not front), int(np.sum(stratum > own)), float(np.median(stratum) - own), place)
        for place, (front, stratum, own) in enumerate(zip(on_front, strata, scores, strict=True))
    ]


def _stratum(place: int, of: int) -> slice:
    """The nearest neighbours in the order of latency, the trial itself among them."""
    first = max(0, min(place - STRATUM // 2, of - STRATUM))
    return slice(first, first + STRATUM)


def share_of(tau: float | None, usual: float = 1 / FACTOR) -> float:
    """Which share of a rung is promoted when it ranks like that."""
    return usual if tau is None else max(usual, next(share for least, share in GUARD if tau >= least))


def tau_of(climbers: Sequence[Climber], rung: int) -> float | None:
    """Kendall's tau between a rung and the next, over the trials that were on both; None where they are fewer than 8.

    They are the better ones of their rung, among whom the rung ranks worse than among all: so it errs towards promoting.
    """
    both = [c.scores[rung : rung + 2] for c in climbers if len(c.scores) > rung + 1]
    if len(both) < PAIRS:
        return None
    return kendall(*np.array(both).T)


def kendall(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Kendall's tau-b of two paired lists; 0 where one of them does not vary."""
    pairs = np.triu_indices(len(one), 1)
    a, b = (np.sign(values[pairs[0]] - values[pairs[1]]) for values in (one, other))
    scale = math.sqrt(float(np.sum(a != 0)) * float(np.sum(b != 0)))
    return float(np.sum(a * b)) / scale if scale else 0.0
