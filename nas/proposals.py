"""The sampler of a search: one that is made afresh for every trial, or `front`, which knows the space and its latencies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from nas.config import RunConfig
from nas.pricing import Pricing
from nas.runs.store import Store
from nas.search.choose import Frame
from nas.search.front_sampler import Candidates, Codes, FrontSampler, SpaceCandidates
from nas.search.sampler import FRONT, make_sampler
from nas.search.surrogate import Floats
from nas.space.architecture import Architecture
from nas.space.features import SpaceCodes
from nas.space.search_space import SearchSpace

UNKNOWN = 3.0  # the factor by which a latency may be off of which nothing is known
SPAN = 2.0  # without a limit, what is slower than so many baselines does not count


class Knowledge(Protocol):
    """What `front` is told of the architectures and of the latencies that count."""

    def candidates(self, architecture: ArchitectureOf) -> Candidates:
        """What may be proposed; `architecture` says what a trial holds."""
        ...

    def frame(self) -> Frame:
        """As far as is known by now."""
        ...


class ArchitectureOf(Protocol):
    """The architecture of a trial; None where it has none (yet)."""

    def __call__(self, trial: FrozenTrial) -> Architecture | None: ...


class Proposals:
    """Makes the sampler for each trial of a search.

    Args:
        store: the trials so far.
        knowledge: of the space, for `front`.

    Attributes:
        open_again: rejected trials that may be proposed again, as the limits have changed.
    """

    def __init__(self, config: RunConfig, store: Store, knowledge: Knowledge) -> None:
        self._config, self._store, self._knowledge = config, store, knowledge
        self.open_again: set[int] = set()
        self._front: FrontSampler | None = None
        self._lifts: list[float] = []

    def sampler(self, number: int, fixed: Architecture | None = None) -> BaseSampler:
        """Of trial `number`: what it draws follows from (seed, number, what is known so far). It draws nothing where the
        architecture is `fixed`."""
        if self._config.sampler != FRONT or fixed is not None:
            name = "random" if self._config.sampler == FRONT else self._config.sampler
            return make_sampler(name, self._config.seed, number)
        frame = self._knowledge.frame()
        if self._front is None:
            candidates = self._knowledge.candidates(self._architecture)
            self._front = FrontSampler(candidates, frame, self._config.seed, accuracy=self._accuracy)
        self._front.frame = frame
        self._lifts = lifts([entry.results for entry in self._store.entries if len(entry.results) > 1])
        return self._front

    def _architecture(self, trial: FrozenTrial) -> Architecture | None:
        if trial.number >= len(self._store) or trial.number in self.open_again:
            return None
        return self._store[trial.number].architecture

    def _accuracy(self, trial: FrozenTrial) -> float:
        """What a trial would have at the highest rung that any has reached."""
        entry = self._store[trial.number]
        return min(1.0, max(0.0, entry.map + sum(self._lifts[len(entry.results) - 1 :])))


class SpaceKnowledge:
    """`Knowledge` of a search space whose latencies are predicted.

    Args:
        pricing: what latencies are known by.
        store: the trials so far.
    """

    def __init__(self, config: RunConfig, space: SearchSpace, pricing: Pricing, store: Store) -> None:
        self._config, self._space, self._pricing, self._store = config, space, pricing, store

    def candidates(self, architecture: ArchitectureOf) -> Candidates:
        codes = SpaceCodes(self._space)

        def latency(rows: Codes) -> tuple[Floats, Floats, Floats]:
            """Wide intervals, or the baseline's latency for all, as long as little was measured."""
            intervals = self._pricing.guess([codes.architecture(row) for row in rows])
            if intervals is not None:
                return intervals.ms, intervals.low, intervals.high
            ms = np.full(len(rows), self._baseline_ms)
            return ms, ms / UNKNOWN, ms * UNKNOWN

        return SpaceCandidates(codes, latency, self._config.imgsz, architecture)

    @property
    def _baseline_ms(self) -> float:
        return float((self._store[0].price or {}).get("ms", 1.0)) if len(self._store) else 1.0

    def frame(self) -> Frame:
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
