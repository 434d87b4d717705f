"""What a library and a latency model say of the whole space, before anything of it is tried: the front of their sums.

The rise of the loss where one slot is replaced, summed over the slots, and the latencies that replacing each saves: the front
of that, over 10^6 and more architectures, takes seconds (`nas.search.additive`). Sums are wrong where several slots matter,
so its members are only where a search begins; the assembled networks rank. Half of them take the latency alone to choose in
slots where no option's rise shows: what differs there is noise.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nas.imitation.alternatives import alternatives_of
from nas.imitation.library import Library
from nas.pricing import Pricing
from nas.search.additive import additive_front
from nas.space.architecture import Architecture, Placement
from nas.space.search_space import SearchSpace

MOST = 16
TOLERANCE = 0.002  # of the baseline's latency: how short partial fronts are kept


def additive_members(
    space: SearchSpace, library: Library, pricing: Pricing, limit_ms: float | None, imgsz: int
) -> list[Architecture] | None:
    """At most 16 members of the additive front that no rule forbids, the baseline not among them, those with the fastest of
    what shows no effect first.

    None where nothing is known of latencies. Options that have not learned yet, or were dropped, are left out.
    """
    slots = alternatives_of(space)
    base = pricing.guess([space.baseline])
    if base is None:
        return None
    skeleton, baseline_ms = space.skeleton.name, float(base.ms[0])
    options: list[list[Placement | None]] = []
    losses: list[list[float]] = []
    shown: list[list[float]] = []  # the same, nothing in slots without effect
    for own in slots.values():
        known: list[Placement | None] = []
        rises: list[float] = []
        costs = False
        for placement, alternative in own.items():
            entry = None if alternative is None else library.get(alternative)
            if alternative is None or (entry is not None and not entry.dropped):
                known.append(placement)
                rises.append(0.0 if entry is None else max(0.0, entry.rise))
                costs |= entry is not None and entry.low > 0
        if not known:
            return []
        options.append(known)
        losses.append(rises)
        shown.append(rises if costs else [0.0] * len(rises))
    singles = [Architecture(skeleton, (p,) if p else ()) for known in options for p in known]
    guessed = pricing.guess(singles)
    if guessed is None:
        return None
    changes = np.split(guessed.ms - baseline_ms, np.cumsum([len(known) for known in options])[:-1])
    limit = np.inf if limit_ms is None else limit_ms - baseline_ms
    found: dict[Architecture, None] = {}
    for table, most in ((shown, MOST // 2), (losses, MOST)):
        front = additive_front(table, [list(c) for c in changes], limit_ms=limit, epsilon_ms=TOLERANCE * baseline_ms)
        members = [_architecture(skeleton, options, row) for row in front.choices]
        members = [a for a in members if a.placements and a not in found and space.forbidding_rule(a, imgsz) is None]
        spread = np.linspace(0, len(members) - 1, min(most - len(found), len(members))).round().astype(int)
        found |= {members[index]: None for index in spread.tolist()}
    return list(found)


def _architecture(skeleton: str, options: Sequence[Sequence[Placement | None]], row: Sequence[int]) -> Architecture:
    placements = [own[choice] for own, choice in zip(options, row, strict=True)]
    return Architecture(skeleton, tuple(sorted((p for p in placements if p), key=lambda p: p.layer)))
