"""The next architecture to train, by numbers alone: features, latencies, results so far. Tables and search spaces alike.

Without results the first proposals are spread along log latency (under a limit, the slowest that fits comes first). Then
the accuracy model is fitted to all results, believes what it expects of trials that still run (so that a batch spreads),
and the candidate with the largest expected gain is proposed: in hypervolume, or over the best result within the limit.
Without a limit all proposals go for the hypervolume; under one the first 20 go for the best within it, of the later ones
every second. The chance to hold the limit multiplies either, and what trying it costs divides (as Snoek et al., NIPS 2012,
have it per second): a block that is yet to learn from a teacher does so when its first network is tried. Where the pool is but
a sample, the search goes on from there to the best of its neighbours, step by step.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nas.search.acquisition import chance_within
from nas.search.belief import Belief, Evidence, Fits, Frame, Points
from nas.search.surrogate import Floats
from nas.seeds import derive

# Proposals by latency alone, before the model speaks: where they lie between the fastest and the slowest (in log latency).
SPREAD, SPREAD_UNDER_LIMIT = (0.25, 0.75), (1.0, 0.75, 0.5)
NEAR = 0.1  # the share of candidates nearest to a latency that a spread proposal chooses from
WINNER_FIRST, WINNER_EVERY = 20, 2  # under a limit, so many proposals go for the best within it, then one of so many
LEAST_CHANCE, LIKELY = 0.05, 0.5  # to hold the limit, where latencies are uncertain: of any proposal, and of the first ones
LOOKED_AT = 10_000  # candidates that one proposal considers, drawn anew for each
STEPS = 3  # from the best of these to the best of its neighbours, at most
Around = Callable[[int], Points]
"""Of a row: its neighbours, which are rows of the pool from then on."""


def choose(
    pool: Points,
    done: Evidence,
    running: Points,
    frame: Frame,
    seed: int,
    number: int,
    fits: Fits,
    prior: Evidence | None = None,
    around: Around | None = None,
) -> int | None:
    """The row of the pool to propose as trial `number`; None where nothing in it can hold the limit.

    Args:
        pool: unseen candidates.
        done: what has results, in the order of their trials.
        running: what was proposed and has no result yet.
        prior: what an earlier search has found.
        around: where the pool is not all that may be proposed.
    """
    rng = np.random.default_rng(derive(seed, number, "front"))
    chance = chance_within(frame.limit_ms, pool.latency, pool.low, pool.high)
    usable = rng.permutation(np.flatnonzero(chance >= LEAST_CHANCE))[:LOOKED_AT]  # in an order that settles ties
    if usable.size == 0:
        return None
    size = len(pool)
    pool, chance = pool[usable], chance[usable]
    turn = len(done) + len(running)
    if len(done) < (1 if prior else 2) or (prior is None and turn < len(_targets(frame))):
        return int(usable[_first(pool, chance, done.points, running, frame, turn)])
    winner = frame.limit_ms is not None and (turn < WINNER_FIRST or number % WINNER_EVERY == 0)
    belief = Belief(done, running, prior, frame, seed, fits)
    best, gain = _most_promising(belief, pool, chance, winner=winner)
    best = int(usable[best])
    for _ in range(STEPS):
        if around is None:
            break
        near = around(best)
        chance = chance_within(frame.limit_ms, near.latency, near.low, near.high)
        rows = np.flatnonzero(chance >= LEAST_CHANCE)
        if not rows.size:
            break
        row, better = _most_promising(belief, near[rows], chance[rows], winner=winner)
        if better <= gain:
            break
        best, gain = size + int(rows[row]), better
        size += len(near)
    return best


def _most_promising(belief: Belief, pool: Points, chance: Floats, *, winner: bool) -> tuple[int, float]:
    """The row with the largest expected gain for its cost, and that. Of a large pool and many results, a coarse model looks at
    all of it first."""
    share = chance / pool.cost
    rows = belief.shortlist(pool, share, winner=winner)
    gains = share[rows] * belief.gains(belief.full, pool[rows], winner=winner)
    best = int(np.argmax(gains))
    return int(rows[best]), float(gains[best])


def _first(pool: Points, chance: Floats, done: Points, running: Points, frame: Frame, turn: int) -> int:
    """Of the candidates that rather hold the limit than not, as `_spread` says; where there are none, the likeliest."""
    likely = np.flatnonzero(chance >= LIKELY)
    return int(likely[_spread(pool[likely], done, running, frame, turn)]) if likely.size else int(np.argmax(chance))


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
