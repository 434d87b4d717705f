"""Finding an architecture that was never proposed, where a sampler only repeats itself or hits the limit."""

from __future__ import annotations

import random
from collections.abc import Collection

from nas.space.architecture import Architecture
from nas.space.protocol import Space

ENUMERABLE = 50_000
DRAWS = 1000


def find_unseen(
    space: Space, seen: Collection[str], near: Architecture | None, imgsz: int, rng: random.Random
) -> Architecture | None:
    """An architecture whose id is not in `seen` and that no rule forbids.

    A neighbour of `near` (one within the limit) if there is one, else any of the space; None where the whole space is
    seen, or, in a space of over 50,000, where 1,000 draws found nothing.
    """

    def fresh(architecture: Architecture) -> bool:
        return architecture.id not in seen and space.forbidding_rule(architecture, imgsz) is None

    if near is not None and (found := [a for a in space.neighbours(near) if fresh(a)]):
        return rng.choice(found)
    drawn = (space.sample(rng, imgsz) for _ in range(DRAWS))
    if (lucky := next((a for a in drawn if a is not None and fresh(a)), None)) is not None or space.size > ENUMERABLE:
        return lucky
    left = [a for a in space.enumerate() if fresh(a)]
    return rng.choice(left) if left else None
