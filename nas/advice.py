"""What would be worth doing next with a run: architectures to measure on the device, and untrained ones to train.

Both go by a small regression of mAP on the placements of what was trained, which says how far off it is.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nas.latency.table import NEAR
from nas.limits import Limits
from nas.review.suggested import Suggestion
from nas.runs.store import Entry
from nas.search.front import front_indices
from nas.search.ridge import MIN_RESULTS, Additive
from nas.search.unseen import ENUMERABLE
from nas.seeds import derive
from nas.space.architecture import Architecture
from nas.space.search_space import SearchSpace

MAX_TO_MEASURE = 20
MAX_SUGGESTED = 10
SAMPLE = 2000

Prices = Callable[[Sequence[Architecture]], Sequence[Mapping[str, Any]]]


@dataclass(frozen=True)
class Suggestions:
    """Untrained architectures that would lie on the front, the fastest first, of so many that were considered.

    `accuracy` says how they were foreseen; without it too little was trained to foresee anything.
    """

    found: tuple[Suggestion, ...]
    considered: int
    accuracy: Additive | None

    def __str__(self) -> str:
        if self.accuracy is None:
            return f"too little is trained to foresee the mAP of others: {MIN_RESULTS} architectures at least"
        fit = self.accuracy
        error = (
            f"predicted from {fit.n} trained ones, each from the others off by {fit.error:.3f}, their mean by {fit.guess:.3f}"
        )
        blind = "" if fit.error < fit.guess else "; so it foresees nothing yet: train more"
        return f"{len(self.found)} of {self.considered:,} untrained architectures would lie on the front (mAP {error}{blind})"


def accuracy_of(space: SearchSpace, entries: Sequence[Entry]) -> Additive | None:
    """The regression of mAP on what was trained; None where that is too little."""
    trained = {e.architecture: e.map for e in entries if e.state == "done"}
    if len(trained) < MIN_RESULTS:
        return None
    return Additive.fit(space.skeleton, list(trained), list(trained.values()))


def to_measure(
    space: SearchSpace, entries: Sequence[Entry], limits: Limits, measured: Collection[Architecture] = ()
) -> list[Architecture]:
    """What to measure on the device of a table: at most 20 whose prediction was too near the limit, the most promising
    first, then the members of the front whose latency is a prediction. What is `measured` by now is left out."""
    unsure = (e.architecture for e in entries if e.state == "rejected" and e.reason == NEAR)
    near = [a for a in dict.fromkeys(unsure) if a not in measured]
    if near and (accuracy := accuracy_of(space, entries)) is not None:
        order = np.argsort(-accuracy.predict(near), kind="stable")
        near = [near[index] for index in order]
    done = [e for e in entries if e.state == "done" and e.price and limits.met(e.price)]
    points = [(e.map, e.price["ms"]) for e in done if e.price]
    front = [done[i] for i in front_indices(*zip(*points, strict=True))] if points else []
    predicted = [e.architecture for e in front if e.price and e.price.get("source") == "predicted"]
    return list(dict.fromkeys([*near[:MAX_TO_MEASURE], *(a for a in predicted if a not in measured)]))


def worth_training(
    space: SearchSpace, entries: Sequence[Entry], limits: Limits, prices: Prices, imgsz: int, seed: int
) -> Suggestions:
    """At most 10 untrained architectures whose predicted mAP and latency would lie on the front of the trained ones.

    Considered are what the run rejected and, of the space, all (up to 2,000) or 2,000 random ones. Where more than 10 would
    lie on it, those that are farthest above the front as it is.

    Args:
        entries: priced on the target in question.
        prices: latencies on it.
        imgsz: for the rules of the space.
    """
    trained = {e.architecture for e in entries if e.state == "done"}
    rejected = [e.architecture for e in entries if e.state == "rejected"]
    pool = [a for a in dict.fromkeys([*rejected, *_drawn(space, imgsz, seed)]) if a not in trained]
    pool = [a for a in pool if space.forbidding_rule(a, imgsz) is None]
    accuracy = accuracy_of(space, entries)
    if accuracy is None or not pool:
        return Suggestions((), len(pool), accuracy)
    priced = prices(pool)
    inside = [index for index, price in enumerate(priced) if limits.broken(price) is None]
    maps = np.clip(accuracy.predict([pool[index] for index in inside]), 0.0, 1.0)
    ms = np.array([priced[index]["ms"] for index in inside])
    known = [e for e in entries if e.state == "done" and e.price and limits.met(e.price)]
    known_maps = np.array([e.map for e in known])
    known_ms = np.array([e.price["ms"] for e in known if e.price])
    joined = front_indices([*known_maps, *maps], [*known_ms, *ms])
    fresh = [int(index) - len(known) for index in joined if index >= len(known)]
    gains = {i: maps[i] - max(known_maps[known_ms <= ms[i]], default=0.0) for i in fresh}
    chosen = sorted(sorted(fresh, key=lambda i: -gains[i])[:MAX_SUGGESTED], key=lambda i: ms[i])
    found = [_suggestion(pool[inside[i]], float(maps[i]), priced[inside[i]]) for i in chosen]
    return Suggestions(tuple(found), len(pool), accuracy)


def _suggestion(architecture: Architecture, foreseen: float, price: Mapping[str, Any]) -> Suggestion:
    return Suggestion(architecture, foreseen, price["ms"], price["low"], price["high"], price["source"])


def _drawn(space: SearchSpace, imgsz: int, seed: int) -> list[Architecture]:
    if space.size <= min(SAMPLE, ENUMERABLE):
        return list(itertools.islice(space.enumerate(), SAMPLE))
    drawn = (space.sample(random.Random(derive(seed, number, "suggest")), imgsz) for number in range(SAMPLE))
    return [architecture for architecture in drawn if architecture is not None]
