"""What architectures cost on the target: known from before, or measured in the executor's lane.

The study asks for a price and goes on; where it is not known at once, an event tells it later. A measurement that was lost
with its worker is tried again.
"""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nas.config import RunConfig
from nas.errors import StoppedError
from nas.execution.executor import Attempt, Event, Executor, Failed, Lost, Progress, Result
from nas.execution.work import PRICE, PriceJob
from nas.latency.cache import LatencyCache, model_key
from nas.limits import Limits, infeasible
from nas.space.architecture import Architecture, model_yaml
from nas.space.search_space import SearchSpace

log = logging.getLogger("nas")

MAX_MEASUREMENTS = 3
POLL_SECONDS = 0.5

Price = Mapping[str, Any]


@dataclass(frozen=True)
class Priced:
    """A measurement has ended well: the price of the trial that it was for."""

    number: int
    price: Price


@dataclass(frozen=True)
class Unpriced:
    """A trial has no price: why, in one line, and more of it for the post-mortem."""

    number: int
    reason: str
    detail: str


class Pricing:
    """Prices the architectures of one search.

    Args:
        config: the target and the limits.
        space: the architectures.
        nc: number of classes of the models.
        executor: whose lane measures.
        known: latencies measured before on this machine; grows.
        blocks: the user's block files that the models need.
        charge: takes the seconds that each measurement took.
    """

    def __init__(
        self,
        config: RunConfig,
        space: SearchSpace,
        nc: int,
        executor: Executor,
        known: LatencyCache,
        blocks: Sequence[str],
        charge: Callable[[float], None],
    ) -> None:
        self._config, self._space, self._nc = config, space, nc
        self._executor, self._known, self._blocks, self._charge = executor, known, list(blocks), charge
        self._running: dict[str, tuple[int, Architecture]] = {}
        self._lost: Counter[int] = Counter()
        self._keys = itertools.count()
        self.stopping = False

    @property
    def busy(self) -> bool:
        """Whether a measurement is under way, or none could start now."""
        return bool(self._running) or not self._executor.lane_free

    @property
    def under_way(self) -> bool:
        """Whether an answer is still to come."""
        return bool(self._running)

    def model(self, architecture: Architecture) -> dict[str, Any]:
        """The model YAML of an architecture with the dataset's classes."""
        return model_yaml(self._space.skeleton, architecture, self._nc)

    def ask(self, number: int, architecture: Architecture) -> Price | None:
        """The price of a trial's architecture if it is known; otherwise it is being measured, and `take` will tell."""
        model = self.model(architecture)
        if known := self._known.get(self._key(model)):
            return known
        attempt = self._attempt(model)
        self._running[attempt.key] = number, architecture
        self._executor.start(attempt)
        return None

    def owns(self, event: Event) -> bool:
        """Whether an event is of a measurement that `ask` began."""
        return event.key in self._running

    def take(self, event: Event) -> Priced | Unpriced | None:
        """What an event of `ask`'s means for its trial; None where nothing yet."""
        if isinstance(event, Progress):
            return None
        number, architecture = self._running.pop(event.key)
        self._charge(event.seconds)
        if isinstance(event, Result):
            self._known.put(self._key(self.model(architecture)), dict(event.data))
            return Priced(number, event.data)
        self._lost[number] += isinstance(event, Lost)
        if isinstance(event, Lost) and self._lost[number] < MAX_MEASUREMENTS:
            log.warning("trial %d: measurement lost (%s): tried again", number, event.reason)
            if not self.stopping:  # else a resumed search draws the proposal again
                self.ask(number, architecture)
            return None
        return Unpriced(number, event.reason, event.detail if isinstance(event, Failed) else event.reason)

    def probe(self, wait: Callable[[], None]) -> None:
        """Price the skeleton and the smallest architectures until one meets the limits: are they within reach at all?

        Args:
            wait: called at least twice a second meanwhile.

        Raises:
            InfeasibleError: no probed architecture meets the limits.
            StoppedError: none could be measured.
        """
        limits = self._config.limits
        if not limits:
            return
        found: list[tuple[str, Price]] = []
        trouble = "nothing was measured"
        for architecture in (self._space.baseline, *self._space.smallest(self._config.imgsz)):
            price = self.now(architecture, wait)
            if isinstance(price, str):
                trouble = price
            elif limits.met(price):
                return
            else:
                found.append((architecture.text(self._space.skeleton), price))
            if self.stopping:
                return
        if not found:
            raise StoppedError(f"no architecture could be measured on {self._config.target}: {trouble}", "see workers/lane.log")
        raise infeasible(limits, self._config.target, self._config.imgsz, found)

    def now(self, architecture: Architecture, wait: Callable[[], None]) -> Price | str:
        """The price of an architecture, waiting for the lane; a reason in words where it has none."""
        model = self.model(architecture)
        key = self._key(model)
        if known := self._known.get(key):
            return known
        reason = ""
        for _ in range(MAX_MEASUREMENTS):
            event = self._measured(self._attempt(model), wait)
            if isinstance(event, Result):
                self._known.put(key, dict(event.data))
                return event.data
            reason = event.reason
            log.warning("probe %s: %s", architecture.id, reason)
            if isinstance(event, Failed) or self.stopping:
                break
        return reason

    def _measured(self, attempt: Attempt, wait: Callable[[], None]) -> Result | Failed | Lost:
        """How a measurement ends, waiting for it."""
        self._executor.start(attempt)
        while True:
            wait()
            for event in self._executor.poll(POLL_SECONDS):
                if not isinstance(event, Progress):
                    self._charge(event.seconds)
                    return event

    def _key(self, model: Mapping[str, Any]) -> str:
        return model_key(model, self._config.imgsz)

    def _attempt(self, model: dict[str, Any]) -> Attempt:
        # The baseline stands in every report: it is measured well also where it is far over a limit.
        limits = Limits() if model == self.model(self._space.baseline) else self._config.limits
        config = self._config
        job = PriceJob(
            model,
            config.target,
            config.imgsz,
            asdict(limits),
            weights=config.weights,
            allow_noisy=config.allow_noisy,
            blocks=self._blocks,
        )
        return Attempt(f"price{next(self._keys)}", PRICE, asdict(job), quiet=True)
