"""The sampler of a search: one that is made afresh for every trial, or `front`, which knows the space and its latencies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from nas.config import RunConfig
from nas.pricing import Pricing
from nas.runs.store import Store
from nas.search.choose import Frame
from nas.search.front_sampler import Codes, FrontSampler, SpaceCandidates
from nas.search.sampler import FRONT, make_sampler
from nas.search.surrogate import Floats
from nas.space.architecture import Architecture
from nas.space.features import SpaceCodes
from nas.space.search_space import SearchSpace

UNKNOWN = 3.0  # the factor by which a latency may be off of which nothing is known
SPAN = 2.0  # without a limit, what is slower than so many baselines does not count


class Proposals:
    """Makes the sampler for each trial of a search.

    Args:
        pricing: what latencies are known by.
        store: the trials so far.
        open_again: whether a rejected trial may be proposed again, as the limits have changed.
    """

    def __init__(
        self, config: RunConfig, space: SearchSpace, pricing: Pricing, store: Store, open_again: Callable[[int], bool]
    ) -> None:
        self._config, self._pricing, self._store, self._open_again = config, pricing, store, open_again
        self._codes = SpaceCodes(space) if config.sampler == FRONT else None
        self._front: FrontSampler | None = None
        self._lifts: list[float] = []

    def sampler(self, number: int, fixed: Architecture | None = None) -> BaseSampler:
        """Of trial `number`: what it draws follows from (seed, number, what is known so far). It draws nothing where the
        architecture is `fixed`."""
        if self._codes is None or fixed is not None:
            name = "random" if self._codes is not None else self._config.sampler
            return make_sampler(name, self._config.seed, number)
        if self._front is None:
            candidates = SpaceCandidates(self._codes, self._latency, self._config.imgsz, self._architecture)
            self._front = FrontSampler(candidates, self._frame(), self._config.seed, accuracy=self._accuracy)
        self._front.frame = self._frame()
        self._lifts = lifts([entry.results for entry in self._store.entries if len(entry.results) > 1])
        return self._front

    def _architecture(self, trial: FrozenTrial) -> Architecture | None:
        if trial.number >= len(self._store) or self._open_again(trial.number):
            return None
        return self._store[trial.number].architecture

    def _accuracy(self, trial: FrozenTrial) -> float:
        """What a trial would have at the highest rung that any has reached."""
        entry = self._store[trial.number]
        return min(1.0, max(0.0, entry.map + sum(self._lifts[len(entry.results) - 1 :])))

    def _latency(self, codes: Codes) -> tuple[Floats, Floats, Floats]:
        """Of many codes; wide intervals, or the baseline's latency for all, as long as little was measured."""
        if self._codes is None:
            raise RuntimeError("only `front` looks at latencies")
        intervals = self._pricing.guess([self._codes.architecture(code) for code in codes])
        if intervals is not None:
            return intervals.ms, intervals.low, intervals.high
        ms = np.full(len(codes), self._baseline_ms)
        return ms, ms / UNKNOWN, ms * UNKNOWN

    @property
    def _baseline_ms(self) -> float:
        return float((self._store[0].price or {}).get("ms", 1.0)) if len(self._store) else 1.0

    def _frame(self) -> Frame:
        """From the fastest known architecture to the limit, or to twice the baseline."""
        slowest = self._config.max_latency_ms or SPAN * self._baseline_ms
        known = [float(e.price["ms"]) for e in self._store.entries if e.price and "ms" in e.price]
        fastest = min([*known, slowest / SPAN])
        return Frame(fastest, slowest, self._config.max_latency_ms, reference_error=1.0)


def lifts(climbs: Sequence[Sequence[Mapping[str, Any]]]) -> list[float]:
    """By how much mAP rises from each rung to the next, on average over those who were on both.

    Without it a trial that rests would seem worse than one that was trained longer.
    """
    found = []
    for rung in range(max(map(len, climbs), default=1) - 1):
        rises = [float(climb[rung + 1]["map"]) - float(climb[rung]["map"]) for climb in climbs if len(climb) > rung + 1]
        found.append(sum(rises) / len(rises))
    return found
