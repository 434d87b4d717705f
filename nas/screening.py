"""Which proposals are worth a price, what is proposed before the sampler is asked, and what where it finds nothing new."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from nas.config import RunConfig
from nas.jobs import Jobs
from nas.runs.store import Entry, Store
from nas.search.unseen import ENUMERABLE, find_unseen
from nas.seeds import derive
from nas.space.architecture import Architecture
from nas.space.protocol import Space

MISSES = 5  # in a row, before something new is looked for without the sampler
MANY_MISSES = 500
DRAWS = 200
REPEAT = "repeat"
EVERYTHING_TRIED = "every architecture of the space was tried"
NOTHING_NEW = f"{MANY_MISSES} proposals in a row were over a limit, forbidden, known or pruned"


class Screening:
    """What a search has seen, and wants to see.

    Args:
        config: seed and image size.
        space: where to search.
        store: the trials.
        jobs: says what cannot be trained.
        seeds: what to propose first; None as long as too little is known to say.
        prune: why an architecture is not worth an evaluation, if it is known.

    Attributes:
        exhausted: why there is nothing more to propose, once there is nothing.
    """

    def __init__(
        self,
        config: RunConfig,
        space: Space,
        store: Store,
        jobs: Jobs,
        seeds: Callable[[], Sequence[Architecture] | None],
        prune: Callable[[Architecture], str | None],
    ) -> None:
        self._config, self._space, self._store, self._jobs, self._prune = config, space, store, jobs, prune
        self._seeds: Callable[[], Sequence[Architecture] | None] | None = seeds
        self._seeded = deque[Architecture]()
        self._seen: set[str] = set()
        self._misses = 0
        self.exhausted: str | None = None

    def resume(self, entries: Iterable[Entry], open_again: set[int]) -> None:
        """Take up what an earlier session has proposed; `open_again` may be proposed again."""
        self._seen = {e.architecture.id for e in entries if e.number not in open_again and e.reason != REPEAT}

    def want(self, architecture: Architecture | None) -> None:
        """Have an architecture proposed before all others: one that is known to be within the limits."""
        if architecture is not None:
            self._seeded.append(architecture)

    def missed(self) -> None:
        """A proposal was rejected."""
        self._misses += 1

    def hit(self) -> None:
        """A proposal is within the limits."""
        self._misses = 0

    def first(self, number: int) -> Architecture | None:
        """What trial `number` is to hold, rather than what the sampler draws; None where it shall draw, or `exhausted`."""
        seed = self._seed()
        if seed is not None or self._misses < MISSES:
            return seed
        rng = random.Random(derive(self._config.seed, number, "fallback"))
        found = find_unseen(self._space, self._seen, self._one_within(rng), self._config.imgsz, rng)
        if found is None:
            self.exhausted = EVERYTHING_TRIED if self._space.size <= ENUMERABLE else NOTHING_NEW
        elif self._misses >= MANY_MISSES:
            self.exhausted = NOTHING_NEW
        return found

    def refusal(self, architecture: Architecture) -> str | None:
        """Why a proposal is rejected without a price: a repeat, forbidden, invalid or pruned. It is seen from now on."""
        if architecture.id in self._seen:
            return REPEAT
        self._seen.add(architecture.id)
        rule = self._space.forbidding_rule(architecture, self._config.imgsz)
        if rule is not None and not architecture.is_skeleton:
            return f"forbidden: {rule.text}"
        if (refusal := self._jobs.refusal(architecture)) is not None:
            return f"invalid: {refusal}"
        if (worse := self._prune(architecture)) is not None:
            return f"pruned: {worse}"
        return None

    def _seed(self) -> Architecture | None:
        """The next architecture that somebody wants to see first, if it is new."""
        if self._seeds is not None and (found := self._seeds()) is not None:
            self._seeds = None
            self._seeded.extend(found)
        while self._seeded:
            architecture = self._seeded.popleft()
            if architecture.id not in self._seen:
                return architecture
        return None

    def _one_within(self, rng: random.Random) -> Architecture | None:
        """A trial's architecture that is within the limits, if some draws find one."""
        drawn = (self._store[rng.randrange(len(self._store))] for _ in range(DRAWS))
        return next((e.architecture for e in drawn if e.state in {"done", "paused", "queued", "running"}), None)
