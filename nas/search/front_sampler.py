"""`front`: an Optuna sampler that knows every candidate's latency and proposes by expected gain (`choose.py`).

It is asked and told like any other sampler; which architectures there are, what they look like and how fast they are comes
from `Candidates`: the rows of a table, or a search space. One object serves a whole search. What it proposes follows from
(seed, trial, results so far); all it remembers is what it would compute again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from nas.search.acquisition import QUANTILE, Steps, chance_within
from nas.search.belief import Belief, Evidence, Fits, Frame, Points
from nas.search.choose import LEAST_CHANCE, LOOKED_AT, choose
from nas.search.outlook import Outlook
from nas.search.sampler import OneByOne
from nas.search.surrogate import Floats
from nas.seeds import derive
from nas.space.architecture import Architecture
from nas.space.features import Features, SpaceCodes

LEAST_RESULTS = 5  # fewer say nothing of what is to come
LEAST_ERROR = 1e-3  # of the ceiling: nothing is believed to be more accurate
MORE = 1.25  # times the candidates that should be enough: two small looks cost more than a large one
LEAST_SHARE = 0.1  # of candidates that may hold the limit, as far as is believed of the next ones
Codes = NDArray[np.int32]
Latency = Callable[[Codes], tuple[Floats, Floats, Floats]]
"""Of codes: ms, and its 5% and 95% quantiles. Equal where it is known exactly."""


class Candidates(Protocol):
    """What may be proposed. A candidate is a row of `codes`, whatever these mean to its maker."""

    @property
    def enough(self) -> int:
        """So many candidates that may hold the limit are enough for one proposal."""
        ...

    def code(self, trial: FrozenTrial) -> Codes | None:
        """What a trial evaluates; None for a trial that is none of these."""
        ...

    def params(self, code: Codes) -> Mapping[str, Any]:
        """The parameters that draw a candidate."""
        ...

    def pool(self, seen: Collection[bytes], front: Codes, rng: np.random.Generator) -> Codes:
        """Candidates (rows, slots) whose bytes are not in `seen`; where too many for all, some near `front`."""
        ...

    def around(self, code: Codes, seen: Collection[bytes]) -> Codes:
        """Of those the neighbours of one; none where `pool` gives all there are."""
        ...

    def features(self, codes: Codes) -> Features: ...

    def latency(self, codes: Codes) -> tuple[Floats, Floats, Floats]: ...

    def cost(self, codes: Codes) -> Floats:
        """What trying each costs, as a multiple of what is usual."""
        ...


@dataclass(frozen=True)
class Earlier:
    """Results of an earlier search: (rows, slots) candidates of this one, and their accuracies."""

    codes: Codes
    accuracies: Floats


class FrontSampler(OneByOne):
    """Proposes the candidate with the largest expected gain; never one again before all within the limit were proposed.

    Studies have two objectives: accuracy up, in [0, `ceiling`], and latency (ms) down.

    Args:
        frame: the latencies that count, the limit, the reference; may be replaced between two proposals.
        ceiling: the largest possible accuracy: 1 for mAP, 100 for points.
        result: of a trial that has one: its accuracy, and the doubt of it (see `Evidence`); its first value where not given.
        prior: what an earlier search found.
    """

    def __init__(
        self,
        candidates: Candidates,
        frame: Frame,
        seed: int,
        ceiling: float = 1.0,
        result: Callable[[FrozenTrial], tuple[float, float]] = lambda trial: (trial.values[0], 0.0),
        prior: Earlier | None = None,
    ) -> None:
        self._result, self._prior = result, prior
        self.frame = frame
        self._candidates, self._seed, self._ceiling = candidates, seed, ceiling
        self._fits = Fits()
        self._params: Mapping[str, Any] = {}
        self._situation: tuple[Points, Evidence, Points] | None = None

    def outlook(self, trainings: float) -> Outlook | None:
        """What the model makes of the situation that the latest proposal was made in; None before it speaks."""
        if self._situation is None or len(self._situation[1]) < LEAST_RESULTS:
            return None
        pool, done, running = self._situation
        belief = Belief(done, running, self._earlier(), self.frame, self._seed, self._fits)
        chance = chance_within(self.frame.limit_ms, pool.latency, pool.low, pool.high)
        rng = np.random.default_rng(derive(self._seed, len(done), "outlook"))
        rows = rng.permutation(np.flatnonzero(chance >= LEAST_CHANCE))[:LOOKED_AT]
        gain = belief.outlook(pool[rows], chance[rows], trainings) if rows.size else 0.0
        return Outlook(belief.error / self._ceiling, gain)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """A trial begins: the whole architecture is chosen now, and handed out parameter by parameter."""
        self._params = self._propose(study.get_trials(deepcopy=False), trial.number)
        return {}

    def sample_independent(
        self,
        study: Study,  # noqa: ARG002
        trial: FrozenTrial,  # noqa: ARG002
        param_name: str,
        param_distribution: BaseDistribution,  # noqa: ARG002
    ) -> Any:
        return self._params[param_name]

    def _propose(self, trials: Sequence[FrozenTrial], number: int) -> Mapping[str, Any]:
        others = (trial for at, trial in enumerate(trials) if at != number)
        told = [(trial, code) for trial in others if (code := self._candidates.code(trial)) is not None]
        done = [(t, code) for t, code in told if t.state == TrialState.COMPLETE]
        running = [code for t, code in told if t.state in {TrialState.RUNNING, TrialState.WAITING}]
        results = np.array([self._result(t) for t, _ in done], dtype=np.float64).reshape(-1, 2)
        latency = np.array([t.values[1] for t, _ in done], dtype=np.float64)
        errors = np.maximum(self._ceiling - results[:, 0], LEAST_ERROR * self._ceiling)
        done_codes = np.array([code for _, code in done], dtype=np.int32)
        rng = np.random.default_rng(derive(self._seed, number, "pool"))
        seen = {code.tobytes() for _, code in told}
        front = done_codes[_front(errors, latency, self.frame)] if done else done_codes
        codes, pool = self._looked_at(self._candidates.pool(seen, front, rng), rng)
        nothing = pool[np.arange(0)]
        evaluated = Evidence(self._points(done_codes, latency) if done else nothing, errors, results[:, 1])
        waiting = self._points(np.array(running, dtype=np.int32)) if running else nothing
        self._situation = pool, evaluated, waiting
        frame, prior = self.frame, self._earlier()

        def around(row: int) -> Points:
            nonlocal codes
            near = self._candidates.around(codes[row], seen)
            codes = np.vstack((codes, near))
            return self._points(near)

        row = choose(pool, evaluated, waiting, frame, self._seed, number, self._fits, prior, around) if len(codes) else None
        if row is None:  # everything within the limit was proposed: again, as random search would
            codes = self._candidates.pool(frozenset(), front, rng)
            latency = self._candidates.latency(codes)[0]
            limit = np.inf if self.frame.limit_ms is None else self.frame.limit_ms
            within = np.flatnonzero(latency <= limit)
            row = int(rng.choice(within)) if within.size else int(np.argmin(latency))
        return self._candidates.params(codes[row])

    def _looked_at(self, codes: Codes, rng: np.random.Generator) -> tuple[Codes, Points]:
        """Of many candidates, random ones: as many that may hold the limit as one proposal considers, no latencies beyond."""
        enough = self._candidates.enough
        if len(codes) <= enough:
            return codes, self._points(codes)
        codes = codes[rng.permutation(len(codes))]
        latency: list[Floats] = []  # each (3, part)
        looked = usable = 0
        while looked < len(codes) and usable < enough:
            share = max(usable / looked, LEAST_SHARE) if looked else 1.0
            part = codes[looked : looked + math.ceil(MORE * (enough - usable) / share)]
            latency.append(np.array(self._candidates.latency(part)))
            looked += len(part)
            usable += int(np.sum(chance_within(self.frame.limit_ms, *latency[-1]) >= LEAST_CHANCE))
        codes = codes[:looked]
        ms, low, high = np.hstack(latency)
        return codes, Points(self._candidates.features(codes), ms, low, high, self._candidates.cost(codes))

    def _earlier(self) -> Evidence | None:
        """What an earlier search found, with the latencies of this one."""
        if self._prior is None:
            return None
        errors = np.maximum(self._ceiling - self._prior.accuracies, LEAST_ERROR * self._ceiling)
        return Evidence(self._points(self._prior.codes), errors, np.zeros(len(errors)))

    def _points(self, codes: Codes, measured: Floats | None = None) -> Points:
        latency = self._candidates.latency(codes) if measured is None else (measured, measured, measured)
        return Points(self._candidates.features(codes), *latency, self._candidates.cost(codes))


def _front(errors: Floats, latency: Floats, frame: Frame) -> NDArray[np.intp]:
    """Rows of the results that no other within the limit dominates."""
    x = np.log(latency)
    steps = Steps.of(errors, x, float(errors.max()) * 2, frame.end)
    return np.flatnonzero((errors <= steps.level_at(x)) & (x < frame.end))


class TableCandidates:
    """The rows of a table: everything is known of each but its accuracy. A code is the row's number.

    Args:
        features: of all rows.
        latency: ms, of all rows.
        row: that a trial evaluates, if any.
        params: that draw a row.
        uncertainty: standard deviation of log latency; 0 where it is known exactly.
    """

    enough = LOOKED_AT

    def __init__(
        self,
        features: Features,
        latency: Floats,
        row: Callable[[FrozenTrial], int | None],
        params: Callable[[int], Mapping[str, Any]],
        uncertainty: float = 0.0,
    ) -> None:
        self._features, self._latency, self._row, self._params = features, latency, row, params
        self._factor = math.exp(QUANTILE * uncertainty)
        self._codes = np.arange(len(latency), dtype=np.int32)[:, None]

    def code(self, trial: FrozenTrial) -> Codes | None:
        row = self._row(trial)
        return None if row is None else self._codes[row]

    def params(self, code: Codes) -> Mapping[str, Any]:
        return self._params(int(code[0]))

    def pool(self, seen: Collection[bytes], front: Codes, rng: np.random.Generator) -> Codes:  # noqa: ARG002
        return np.delete(self._codes, np.frombuffer(b"".join(seen), dtype=np.int32), axis=0)

    def around(self, code: Codes, seen: Collection[bytes]) -> Codes:  # noqa: ARG002
        return self._codes[:0]

    def features(self, codes: Codes) -> Features:
        return self._features[codes.reshape(-1)]

    def latency(self, codes: Codes) -> tuple[Floats, Floats, Floats]:
        own = self._latency[codes.reshape(-1)]
        return own, own / self._factor, own * self._factor

    def cost(self, codes: Codes) -> Floats:
        return np.ones(len(codes))


class SpaceCandidates:
    """The architectures of a search space: all of a small one, of a large one random ones and the front's neighbours.

    Args:
        codes: of the space.
        latency: of many codes at once.
        imgsz: for the rules of the space.
        architecture: of a trial; None where it has none (yet).
        extra: one more number of many codes, in [-1/2, 1/2], that may foretell the accuracy.
        cost: of trying each of many codes, as a multiple of what is usual; the same for all where not given.
    """

    ENUMERATED = 50_000
    DRAWN, NEAR = 4_000, 1_000  # of a larger space, random ones and neighbours of the front
    SAMPLED = 1_000  # of these, so many that may hold the limit; `choose` goes on from there

    def __init__(
        self,
        codes: SpaceCodes,
        latency: Latency,
        imgsz: int,
        architecture: Callable[[FrozenTrial], Architecture | None],
        extra: Callable[[Codes], Floats] | None = None,
        cost: Callable[[Codes], Floats] = lambda codes: np.ones(len(codes)),
    ) -> None:
        self._extra, self._cost = extra, cost
        self._codes, self._latency, self._imgsz, self._architecture = codes, latency, imgsz, architecture
        self._known: dict[int, tuple[Architecture, Codes]] = {}

    @property
    def enough(self) -> int:
        return LOOKED_AT if self._listed else self.SAMPLED

    @property
    def _listed(self) -> bool:
        return self._codes.space.size <= self.ENUMERATED

    def code(self, trial: FrozenTrial) -> Codes | None:
        architecture = self._architecture(trial)
        if architecture is None:
            return None
        number = trial.number
        known = self._known.get(number)
        if known is None or known[0] is not architecture:
            known = self._known[number] = (architecture, self._codes.code(architecture))
        return known[1]

    def params(self, code: Codes) -> Mapping[str, Any]:
        return self._codes.params(code)

    def pool(self, seen: Collection[bytes], front: Codes, rng: np.random.Generator) -> Codes:
        if self._listed:
            found = self._codes.all()
        else:
            near = [self._codes.neighbours(code) for code in front]
            near = [rng.permutation(np.vstack(near))[: self.NEAR]] if near else []
            found = np.vstack((*near, self._codes.draw(self.DRAWN, rng)))
        allowed = self._allowed(found, seen)
        return allowed if len(allowed) or seen else found  # where rules forbid everything, whoever asked is told by them

    def around(self, code: Codes, seen: Collection[bytes]) -> Codes:
        return self._allowed(self._codes.neighbours(code), seen)

    def _allowed(self, codes: Codes, seen: Collection[bytes]) -> Codes:
        distinct = self._codes.distinct(codes, seen)
        return distinct[self._codes.allowed(distinct, self._imgsz)]

    def features(self, codes: Codes) -> Features:
        found = self._codes.features(codes)
        return found if self._extra is None else found.with_number(self._extra(codes))

    def latency(self, codes: Codes) -> tuple[Floats, Floats, Floats]:
        return self._latency(codes)

    def cost(self, codes: Codes) -> Floats:
        return self._cost(codes)
