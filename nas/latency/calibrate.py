"""Which architectures to measure so that a latency model learns a space: all choices, as evenly as a few models allow."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from nas.seeds import derive
from nas.space.architecture import KEEP, Architecture, Placement
from nas.space.search_space import SearchSpace, SlotChoices

POOL = 1500
MIN_COUNT, MAX_COUNT = 12, 40

Feature = tuple[object, ...]


def calibration_set(
    space: SearchSpace, imgsz: int, seed: int, count: int, known: Sequence[Architecture] = ()
) -> list[Architecture]:
    """Up to `count` architectures to measure, the most telling first: any head of the list is a good, smaller set.

    The baseline comes first, then the narrowest and the widest of what can be drawn, then, one by one, the architecture of a
    random pool whose choices have been covered the least: of each slot its blocks, and of these the channels, depth, heads
    and knobs. Rules are respected. Equal for equal arguments; fewer than `count` where the space has no more.

    Args:
        known: architectures that are measured anyway: they are not in the list, and what they cover counts as covered.
    """
    pool = list(dict.fromkeys([space.baseline, *_drawn(space, imgsz, seed)]))
    names: dict[Feature, int] = {}
    rows = [[names.setdefault(feature, len(names)) for feature in _features(space, a)] for a in pool]
    covers = np.zeros((len(pool), len(names)))
    for index, row in enumerate(rows):
        covers[index, row] = 1.0
    covered = np.zeros(len(names))
    for architecture in known:
        covered[[names[f] for f in _features(space, architecture) if f in names]] += 1.0
    left = np.array([architecture not in set(known) for architecture in pool])
    sizes = np.array([sum(p.channels * p.depth for p in _placed(space, a)) for a in pool], dtype=float)
    first = [0, int(sizes.argmin()), int(sizes.argmax())]
    chosen: list[Architecture] = []
    while len(chosen) < count and left.any():
        # halving the worth of what is covered prefers a first look at two choices to a second and third at one
        worth = covers @ (1.0 / (1.0 + covered) ** 2) / np.maximum(covers.sum(1), 1.0)
        index = next((i for i in first if left[i]), int(np.where(left, worth, -1.0).argmax()))
        first = [i for i in first if i != index]
        left[index] = False
        covered += covers[index]
        chosen.append(pool[index])
    return chosen


def calibration_count(space: SearchSpace, seconds: float, seconds_each: float) -> int:
    """How many architectures to measure in `seconds` where one takes `seconds_each` (that of the first).

    From 12, below which a model knows too little, to 40, above which it learns little more; never more than the space has.
    """
    affordable = int(seconds / seconds_each) if seconds_each > 0 else MAX_COUNT
    return min(max(affordable, MIN_COUNT), MAX_COUNT, space.size)


def _drawn(space: SearchSpace, imgsz: int, seed: int) -> Iterator[Architecture]:
    for index in range(min(POOL, 4 * space.size)):
        drawn = space.sample(random.Random(derive(seed, index, "calibration")), imgsz)
        if drawn is None:
            return
        yield drawn


def _placed(space: SearchSpace, architecture: Architecture) -> Iterator[Placement]:
    """What each slot of the space holds, also where the skeleton's own row stays."""
    placed = {p.slot: p for p in architecture.placements}
    for choices in space.slots:
        yield placed.get(choices.slot.name) or _own(choices)


def _own(choices: SlotChoices) -> Placement:
    slot = choices.slot
    return Placement(slot.name, slot.layer, KEEP, slot.row.c2, slot.depth)


def _features(space: SearchSpace, architecture: Architecture) -> Iterable[Feature]:
    for p in _placed(space, architecture):
        yield p.slot, p.block
        yield p.slot, p.block, "channels", p.channels
        yield p.slot, p.block, "depth", p.depth
        yield p.block, p.channels, p.depth
        if p.heads is not None:
            yield p.slot, p.block, "heads", p.heads
        for name, value in p.knobs:
            yield p.slot, p.block, name, value
