"""Finding an architecture that was never proposed, where a sampler only repeats itself or hits the limit."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence

from nas.space.architecture import Architecture
from nas.space.search_space import SearchSpace

ENUMERABLE = 50_000
DRAWS = 1000


def find_unseen(
    space: SearchSpace, seen: Collection[str], near: Sequence[Architecture], imgsz: int, rng: random.Random
) -> Architecture | None:
    """An architecture whose id is not in `seen` and that no rule forbids.

    A neighbour of one of `near` (those within the limit) if there is one, else any of the space; None where the whole
    space is seen, or, in a space of over 50,000, where 1,000 draws found nothing.
    """

    def fresh(architecture: Architecture) -> bool:
        return architecture.id not in seen and space.forbidding_rule(architecture, imgsz) is None

    if near and (found := [a for a in space.neighbours(rng.choice(near)) if fresh(a)]):
        return rng.choice(found)
    if space.size <= ENUMERABLE:
        left = [a for a in space.enumerate() if fresh(a)]
        return rng.choice(left) if left else None
    drawn = (space.sample(rng, imgsz) for _ in range(DRAWS))
    return next((a for a in drawn if a is not None and fresh(a)), None)
