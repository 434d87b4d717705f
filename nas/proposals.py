"""The sampler of a search: one that is made afresh for every trial, or `front`, which knows the space and its latencies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Protocol

import numpy as np
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from nas.config import RunConfig
from nas.pricing import Pricing
from nas.rises import Rises
from nas.runs.store import Store
from nas.search.belief import Frame
from nas.search.front_sampler import LEAST_ERROR, Candidates, Codes, Earlier, FrontSampler, SpaceCandidates
from nas.search.outlook import Outlook
from nas.search.sampler import FRONT, make_sampler
from nas.search.surrogate import Floats
from nas.space.architecture import Architecture
from nas.space.features import SpaceCodes
from nas.space.search_space import SearchSpace

# A result on a lower rung, lifted, is off by about so much (in log error); what this says counts as so many results.
LIFT_DOUBT, LIFT_COUNT = 0.1, 2
LOOK_GROWTH = 1.05  # so many times the results have something new to say of what is to come
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

    def earlier(self, prior: Sequence[tuple[Architecture, float]]) -> Earlier | None:
        """What an earlier search has trained of these architectures, and its mAP."""
        ...


class ArchitectureOf(Protocol):
    """The architecture of a trial; None where it has none (yet)."""

    def __call__(self, trial: FrozenTrial) -> Architecture | None: ...


class Proposals:
    """Makes the sampler for each trial of a search.

    Args:
        store: the trials so far.
        knowledge: of the space, for `front`.
        prior: architectures that an earlier search has trained, and their mAP there, for `front`.

    Attributes:
        open_again: rejected trials that may be proposed again, as the limits have changed.
        outlook: what `front` expected the last time that it was asked to look, see `look`.
    """

    def __init__(
        self, config: RunConfig, store: Store, knowledge: Knowledge, prior: Sequence[tuple[Architecture, float]] = ()
    ) -> None:
        self._config, self._store, self._knowledge, self._prior = config, store, knowledge, prior
        self.open_again: set[int] = set()
        self.outlook: Outlook | None = None
        self._front: FrontSampler | None = None
        self._above = [Lift(0.0, 0.0)]  # by how much a result of each rung is below one of the highest
        self._looked = 0

    def sampler(self, number: int, fixed: Architecture | None = None) -> BaseSampler:
        """Of trial `number`: what it draws follows from (seed, number, what is known so far). It draws nothing where the
        architecture is `fixed`."""
        if self._config.sampler != FRONT or fixed is not None:
            name = "random" if self._config.sampler == FRONT else self._config.sampler
            return make_sampler(name, self._config.seed, number)
        frame = self._knowledge.frame()
        if self._front is None:
            candidates = self._knowledge.candidates(self._architecture)
            earlier = self._knowledge.earlier(self._prior) if self._prior else None
            self._front = FrontSampler(candidates, frame, self._config.seed, result=self._result, prior=earlier)
        self._front.frame = frame
        steps = lifts([entry.results for entry in self._store.entries if len(entry.results) > 1])
        self._above = [Lift.of(steps[rung:]) for rung in range(len(steps) + 1)]
        return self._front

    def look(self, trainings: float) -> None:
        """Have `outlook` say what so many more trainings would gain, if enough results are new."""
        results = self._store.tally.ranked
        if self._front is not None and results >= LOOK_GROWTH * self._looked:
            self._looked, self.outlook = results, self._front.outlook(trainings) or self.outlook

    def _architecture(self, trial: FrozenTrial) -> Architecture | None:
        number = trial.number
        if number >= len(self._store) or number in self.open_again:
            return None
        return self._store[number].architecture

    def _result(self, trial: FrozenTrial) -> tuple[float, float]:
        """What a trial would have at the highest rung that any has reached, and the doubt of it."""
        entry = self._store[trial.number]
        missing = self._above[len(entry.results) - 1]
        return min(1.0, max(0.0, entry.map + missing.rise)), missing.doubt


class SpaceKnowledge:
    """`Knowledge` of a search space whose latencies are predicted.

    Args:
        pricing: what latencies are known by.
        store: the trials so far.
        rises: what the library of a search by imitation says of codes.
    """

    def __init__(
        self, config: RunConfig, space: SearchSpace, pricing: Pricing, store: Store, rises: Rises | None = None
    ) -> None:
        self._rises = rises
        self._config, self._space, self._pricing, self._store = config, space, pricing, store

    @cached_property
    def _codes(self) -> SpaceCodes:
        return SpaceCodes(self._space)

    def earlier(self, prior: Sequence[tuple[Architecture, float]]) -> Earlier | None:
        members = [(a, score) for a, score in prior if a.is_skeleton or self._space.params(a) is not None]
        if not members:
            return None
        return Earlier(np.array([self._codes.code(a) for a, _ in members]), np.array([score for _, score in members]))

    def candidates(self, architecture: ArchitectureOf) -> Candidates:
        codes = self._codes

        def latency(rows: Codes) -> tuple[Floats, Floats, Floats]:
            """Wide intervals, or the baseline's latency for all, as long as little was measured."""
            intervals = self._pricing.guess(codes.held(rows))
            if intervals is not None:
                return intervals.ms, intervals.low, intervals.high
            ms = np.full(len(rows), self._baseline_ms)
            return ms, ms / UNKNOWN, ms * UNKNOWN

        imgsz, rises = self._config.imgsz, self._rises
        if rises is None:
            return SpaceCandidates(codes, latency, imgsz, architecture)

        def cost(rows: Codes) -> Floats:
            """What has yet to learn does so in the time of its first trial."""
            return 1 + self._learning * rises.unlearned(codes, rows)

        return SpaceCandidates(codes, latency, imgsz, architecture, partial(rises.column, codes), cost)

    @property
    def _learning(self) -> float:
        """What it costs that an alternative learns, in trials: those of this search so far, or as much as one. In powers of
        two, so that a little more time makes no other proposal."""
        learning, tally = self._store.fact("alternative_seconds"), self._store.tally
        if not learning or not tally.charged:
            return 1.0
        return float(2.0 ** round(math.log2(learning * tally.ranked / tally.charged)))

    @property
    def _baseline_ms(self) -> float:
        return float((self._store[0].price or {}).get("ms", 1.0)) if len(self._store) else 1.0

    def frame(self) -> Frame:
        """From the fastest known architecture to the limit, or to twice the baseline."""
        slowest = self._config.max_latency_ms or SPAN * self._baseline_ms
        known = [float(e.price["ms"]) for e in self._store.entries if e.price and "ms" in e.price]
        fastest = min([*known, slowest / SPAN])
        return Frame(fastest, slowest, self._config.max_latency_ms, reference_error=1.0)


@dataclass(frozen=True)
class Lift:
    """What comes on top from one rung to the next: by how much mAP rises on average, and by how much the logarithm of its
    error (1 - mAP) is off then (standard deviation)."""

    rise: float
    doubt: float

    @classmethod
    def of(cls, steps: Sequence[Lift]) -> Lift:
        """Over several rungs."""
        return cls(sum(step.rise for step in steps), math.sqrt(sum(step.doubt**2 for step in steps)))


def lifts(climbs: Sequence[Sequence[Mapping[str, Any]]]) -> list[Lift]:
    """From each rung to the next, over those who were on both.

    Without it a trial that rests would seem worse than one that was trained longer.
    """
    found = []
    for rung in range(max(map(len, climbs), default=1) - 1):
        both = np.array([[float(r["map"]) for r in climb[rung : rung + 2]] for climb in climbs if len(climb) > rung + 1])
        rise = float(np.mean(both[:, 1] - both[:, 0]))
        least = np.maximum(1 - np.column_stack((both[:, 0] + rise, both[:, 1])), LEAST_ERROR)
        away = np.log(least[:, 1]) - np.log(least[:, 0])
        squares = LIFT_COUNT * LIFT_DOUBT**2 + float(np.sum(away**2))
        found.append(Lift(rise, math.sqrt(squares / (LIFT_COUNT + len(both)))))
    return found
