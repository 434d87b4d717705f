"""What architectures cost on the target: known from before, predicted, or measured in the executor's lane.

The study asks for a price and goes on; where it is not known at once, an event tells it later. A prediction is taken where
its whole interval lies on one side of the limit; what is near the limit is measured. A measurement that was lost with its
worker is tried again. For another device, whose latencies are a table, nothing is measured.
"""

from __future__ import annotations

import itertools
import logging
import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from nas.config import Budget, RunConfig
from nas.errors import StoppedError, UnreachableError
from nas.execution.executor import Attempt, Event, Executor, Failed, Lost, Progress, Result
from nas.execution.work import PRICE, UNSTABLE, PriceJob
from nas.latency.cache import LatencyCache, model_key
from nas.latency.estimate import Estimator
from nas.latency.model import Error
from nas.latency.site import as_sent, differences
from nas.latency.table import NEAR, TablePrices, near
from nas.limits import Limits, infeasible
from nas.seeds import derive
from nas.space.architecture import Architecture, model_yaml
from nas.space.held import Held
from nas.space.search_space import SearchSpace

log = logging.getLogger("nas")

MAX_MEASUREMENTS = 3
NOISY_HINT = "let the machine come to rest, or resume with --allow-noisy"
# A machine that was not quiet is left alone for so long before the measurement is repeated, once.
REPEAT_SECONDS = 20.0
POLL_SECONDS = 0.5
RECENT = 9  # measurements that say how long the next one takes
# Measuring for predictions alone takes at most so much of the lane's time, and of a budget of time.
CALIBRATION_SECONDS, CALIBRATION_SHARE = 60.0, 0.1

Price = Mapping[str, Any]


@dataclass(frozen=True)
class Priced:
    """The price of a trial has come."""

    number: int
    price: Price


@dataclass(frozen=True)
class Unpriced:
    """A trial has no price: why, in one line, and more of it for the post-mortem."""

    number: int
    reason: str
    detail: str
    seconds: float


@dataclass(frozen=True)
class _Asked:
    """A job of the lane: for a trial, or (None) to calibrate. Where the latency is known it counts and does not time.

    `before` is what was measured before, where it is measured again.
    """

    number: int | None
    architecture: Architecture
    latency: Price | None = None
    before: Price | None = None


class Intervals(NamedTuple):
    """Predicted latencies in ms, and the intervals that hold the measured ones nine times out of ten."""

    ms: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


class Prices(Protocol):
    """What a study asks of whoever prices its architectures: `Pricing`, which measures, says what each is."""

    stopping: bool

    @property
    def busy(self) -> bool: ...
    @property
    def under_way(self) -> bool: ...
    @property
    def elapsed(self) -> float: ...
    @property
    def error(self) -> Error | None: ...
    @property
    def measures(self) -> bool: ...
    @property
    def typical_seconds(self) -> float: ...
    def broken(self, price: Price) -> str | None: ...
    def model(self, architecture: Architecture) -> Mapping[str, Any]: ...
    def ask(self, number: int, architecture: Architecture, *, measured: bool = False) -> Price | None: ...
    def again(self, number: int, architecture: Architecture) -> None: ...
    def renewed(self, priced: Sequence[tuple[Architecture, Price]]) -> list[Price]: ...
    def remember(self, architecture: Architecture) -> None: ...
    def repeat(self) -> None: ...
    def stop(self, but: Container[int]) -> None: ...
    def save(self) -> None: ...
    def calibrate(self) -> None: ...
    def owns(self, event: Event) -> bool: ...
    def take(self, event: Event) -> Priced | Unpriced | None: ...
    def probe(self, wait: Callable[[], None]) -> Architecture | None: ...


class Pricing:
    """Prices the architectures of one search.

    Args:
        config: the target and the limits.
        space: the architectures.
        nc: number of classes of the models.
        executor: whose lane measures.
        known: latencies measured before on the machine that measures; grows.
        blocks: the user's block files that the models need.
        charge: takes the seconds that each measurement took.
        table: the latencies of a target that is another device's: nothing is measured then.
        clock: seconds, of which only differences count.
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
        table: TablePrices | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._config, self._space, self._nc = config, space, nc
        self._executor, self._known, self._blocks, self._charge = executor, known, list(blocks), charge
        self._table = table
        self._estimator = Estimator(space, config.imgsz, derive(config.seed, 0, "calibration"))
        self._calibrated = 0.0
        self._measured = deque[float](maxlen=RECENT)
        self._running: dict[str, _Asked] = {}
        self._since: dict[str, float] = {}  # when each of them began
        self._charged: dict[str, float] = {}  # and what was charged for it
        self._tries: Counter[Architecture] = Counter()
        self._again: tuple[_Asked, float] | None = None  # what is to be measured again, and when
        self._keys = itertools.count()
        self.stopping = False

    @property
    def busy(self) -> bool:
        """Whether the lane has something to do, or waits for a quieter moment."""
        return self.under_way or not self._executor.lane_free

    @property
    def under_way(self) -> bool:
        """Whether an answer is still to come."""
        return bool(self._running) or self._again is not None

    @property
    def elapsed(self) -> float:
        """Seconds that what is under way has run, not charged yet."""
        return sum(self._clock() - self._since[key] - self._charged.get(key, 0.0) for key in self._running)

    @property
    def error(self) -> Error | None:
        """How far off predictions are, cross-validated on what was measured; None before there is a model."""
        if self._table is not None:
            return self._table.model.error
        return None if self._estimator.model is None else self._estimator.model.error

    @property
    def measures(self) -> bool:
        """Whether the executor's lane measures: not where the latencies are another device's."""
        return self._table is None

    @property
    def typical_seconds(self) -> float:
        """How long a measurement has taken lately; 0 before the first."""
        return statistics.median(self._measured) if self._measured else 0.0

    def broken(self, price: Price) -> str | None:
        """Why a price rules its architecture out, if it does: a limit, or that only the other device can tell."""
        limits = self._config.limits
        if self._table is not None and near(price, limits.ms):
            return limits.broken({name: value for name, value in price.items() if name != "ms"}) or NEAR
        return limits.broken(price)

    def model(self, architecture: Architecture) -> dict[str, Any]:
        """The model YAML of an architecture with the dataset's classes."""
        return model_yaml(self._space.skeleton, architecture, self._nc)

    def ask(self, number: int, architecture: Architecture, *, measured: bool = False) -> Price | None:
        """The price of a trial's architecture if it is known; otherwise `take` will tell.

        Args:
            measured: a prediction is not enough.
        """
        if self._table is not None:
            latency = self._table.price(architecture)
            if not architecture.is_skeleton and self.broken(latency):
                return latency
            self._start(_Asked(number, architecture, latency))
            return None
        if known := self._recall(architecture):
            return known
        estimate = None if measured or architecture.is_skeleton else self._estimator.estimate(architecture)
        limit = self._config.max_latency_ms
        if estimate is not None and limit is not None:
            if estimate.low > limit:
                return estimate.as_price()
            if estimate.high > limit:
                estimate = None
        self._start(_Asked(number, architecture, None if estimate is None else estimate.as_price()))
        return None

    def again(self, number: int, architecture: Architecture) -> None:
        """Measure a trained architecture once more; `take` will tell what both times say."""
        self._start(_Asked(number, architecture, before=self._recall(architecture)))

    def predict(self, architectures: Sequence[Architecture]) -> Intervals | None:
        """Latencies of architectures that need not have been measured; None as long as too little was."""
        model = self._estimator.fitted() if self._table is None else self._table.model
        return None if model is None or not architectures else Intervals(*model.predict(architectures))

    def guess(self, architectures: Sequence[Architecture] | Held) -> Intervals | None:
        """As `predict`, from as little as three measurements, with intervals as wide as that deserves."""
        model = self._estimator.rough() if self._table is None else self._table.model
        return None if model is None or not len(architectures) else Intervals(*model.predict(architectures))

    def renewed(self, priced: Sequence[tuple[Architecture, Price]]) -> list[Price]:
        """Prices of an earlier session, with the latencies of the table as it is now, if there is one."""
        if self._table is None:
            return [price for _, price in priced]
        latencies = iter(self._table.prices([architecture for architecture, price in priced if "ms" in price]))
        return [{**price, **next(latencies)} if "ms" in price else price for _, price in priced]

    def remember(self, architecture: Architecture) -> None:
        """Take up what was measured of an architecture in an earlier session."""
        if self._table is None:
            self._recall(architecture)

    def repeat(self) -> None:
        """Measure again what needs it, when its time has come; to be called often."""
        if self._again is not None and (self.stopping or self._clock() >= self._again[1]):
            asked, self._again = self._again[0], None
            if not self.stopping:  # else a resumed search draws the proposal again
                self._start(asked)

    def stop(self, but: Container[int]) -> None:
        """End what is under way, except for these trials: a resumed search draws and measures it again."""
        if self._again is not None and self._again[0].number not in but:
            self._again = None
        for key, asked in list(self._running.items()):
            if asked.number not in but:
                self._end(key, self._executor.stop(key))

    def save(self) -> None:
        """Charge what is under way for the time that it has run: whoever is killed now loses none of it."""
        for key in self._running:
            self._charge_to(key, self._clock() - self._since[key])

    def _end(self, key: str, seconds: float) -> _Asked:
        """A job has ended, after so many seconds."""
        self._charge_to(key, seconds)
        del self._since[key], self._charged[key]
        return self._running.pop(key)

    def _charge_to(self, key: str, seconds: float) -> None:
        self._charge(seconds - self._charged.get(key, 0.0))
        self._charged[key] = seconds

    def calibrate(self) -> None:
        """Give an idle lane something to measure that makes predictions better, as long as that is worth its time."""
        if self._table is not None or self._calibrated >= calibration_seconds(self._config):
            return
        while (architecture := self._estimator.wanted()) is not None:
            if self._recall(architecture) is None:
                self._start(_Asked(None, architecture), whole=True)
                return

    def owns(self, event: Event) -> bool:
        """Whether an event is of a job that this one began."""
        return event.key in self._running

    def take(self, event: Event) -> Priced | Unpriced | None:
        """What an event of a job means for its trial; None where nothing (yet)."""
        if isinstance(event, Progress):
            self._since[event.key] = self._clock() - event.seconds  # its process may have had to start first
            return None
        asked = self._end(event.key, event.seconds)
        self._measured.append(event.seconds)
        if asked.number is None:
            self._calibrated += event.seconds
        if isinstance(event, Result):
            price = self._learn(asked, event.data)
            return None if asked.number is None else Priced(asked.number, price)
        if asked.number is None:
            log.info("calibration: %s could not be measured: %s", asked.architecture.id, event.reason)
            return None
        self._tries[asked.architecture] += 1
        if isinstance(event, Lost) and self._tries[asked.architecture] < MAX_MEASUREMENTS:
            log.warning("trial %d: measurement lost (%s): tried again", asked.number, event.reason)
            self._again = asked, 0.0
            return None
        if _unstable(event) and self._tries[asked.architecture] == 1:
            log.warning("trial %d: %s: measured again in %.0f s", asked.number, event.reason, REPEAT_SECONDS)
            self._again = asked, self._clock() + REPEAT_SECONDS
            return None
        return Unpriced(asked.number, event.reason, event.detail, event.seconds)

    def probe(self, wait: Callable[[], None]) -> Architecture | None:
        """Price the skeleton and the smallest architectures until one meets the limits: are they within reach at all?

        Args:
            wait: called at least twice a second meanwhile.

        Returns:
            The one that does; None without limits, or where only another device can tell.

        Raises:
            InfeasibleError: no probed architecture meets the limits.
            StoppedError: none could be measured.
        """
        limits = self._config.limits
        if not limits:
            return None
        found: list[tuple[str, Price]] = []
        trouble = "nothing was measured"
        for architecture in (self._space.baseline, *self._space.smallest(self._config.imgsz)):
            price = self.now(architecture, wait)
            if isinstance(price, str):
                trouble = price
            elif limits.met(price):
                return architecture
            elif self.broken(price) == NEAR:
                return None
            else:
                found.append((architecture.text(self._space.skeleton), price))
            if self.stopping:
                return None
        if not found:
            hint = NOISY_HINT if trouble.startswith(UNSTABLE) else "see workers/lane.log"
            raise StoppedError(f"no architecture could be measured on {self._config.target}: {trouble}", hint)
        raise infeasible(limits, self._config.target, self._config.imgsz, found)

    def now(self, architecture: Architecture, wait: Callable[[], None]) -> Price | str:
        """The price of an architecture, waiting for the lane; a reason in words where it has none."""
        if known := self._recall(architecture):
            return known
        reason = ""
        for _ in range(MAX_MEASUREMENTS):
            asked = _Asked(None, architecture, None if self._table is None else self._table.price(architecture))
            event = self._ended(self._start(asked), wait)
            if isinstance(event, Result):
                return self._learn(asked, event.data)
            reason = event.reason
            log.warning("probe %s: %s", architecture.id, reason)
            if (isinstance(event, Failed) and not _unstable(event)) or self.stopping:
                break
        return reason

    def _ended(self, key: str, wait: Callable[[], None]) -> Result | Failed | Lost:
        """How a job ends, waiting for it: nothing else runs yet."""
        while True:
            wait()
            for event in self._executor.poll(POLL_SECONDS):
                if event.key == key and not isinstance(event, Progress):
                    self._end(key, event.seconds)
                    return event

    def _recall(self, architecture: Architecture) -> Price | None:
        """A price that was measured before."""
        known = self._known.get(self._key(self.model(architecture)))
        if known is None or ("ms" not in known and not self._config.limits.broken(known)):
            return None  # not measured, or only counted under lower limits
        self._estimator.add(architecture, known)
        return without_rows(known)

    def _learn(self, asked: _Asked, data: Mapping[str, Any]) -> Price:
        """The price that a job has found, kept for other trials and runs where it was measured."""
        stamp = data.get("measured_on")
        data = {name: value for name, value in data.items() if name != "measured_on"}
        if asked.latency is not None:
            return {**data, **asked.latency}
        stamp = None if stamp is None else self._judged(stamp)
        if asked.before is not None:
            data = both(asked.before, data)
        self._known.put(self._key(self.model(asked.architecture)), dict(data), stamp)
        self._estimator.add(asked.architecture, data)
        return without_rows(data)

    def _judged(self, stamp: Mapping[str, str]) -> Mapping[str, str] | None:
        """The stamp of the machine that measured where it is another host than expected; None where it is not.

        Raises:
            UnreachableError: its latencies cannot be compared with what was measured before.
        """
        stamp = as_sent(stamp)
        if stamp == self._known.stamp:
            return None
        if other := differences(self._known.stamp, stamp, but_for_host=self._config.lane is not None):
            what = f"latency was measured on {'; '.join(other)}: the two cannot be compared"
            raise UnreachableError(what, "nothing is lost: bring back what it was measured on, then nas search --resume RUN")
        return stamp

    def _key(self, model: Mapping[str, Any]) -> str:
        return model_key(model, self._config.imgsz)

    def _start(self, asked: _Asked, *, whole: bool = False) -> str:
        # The baseline stands in every report, and a calibration speaks of all: both are measured well also far over the limits.
        whole = whole or asked.architecture.is_skeleton
        job = PriceJob(
            self.model(asked.architecture),
            self._config.target if self._table is None else self._table.stand_in,
            self._config.imgsz,
            limits=asdict(Limits() if whole else self._config.limits),
            weights=self._config.weights,
            allow_noisy=self._config.allow_noisy,
            blocks=self._blocks,
            timed=asked.latency is None,
            rows=self._estimator.open,
        )
        attempt = Attempt(f"price{next(self._keys)}", PRICE, asdict(job), quiet=True)
        self._running[attempt.key], self._since[attempt.key] = asked, self._clock()
        self._executor.start(attempt)
        return attempt.key


def _unstable(event: Failed | Lost) -> bool:
    """Whether a measurement failed for what the machine did meanwhile."""
    return isinstance(event, Failed) and event.reason.startswith(UNSTABLE)


def both(one: Price, other: Price) -> dict[str, Any]:
    """What two measurements of one model say: the faster, since a neighbour only ever adds; its interval covers both."""
    faster, slower = sorted((one, other), key=lambda price: float(price["ms"]))
    times = one.get("times", 1) + other.get("times", 1)
    return {**faster, "low": min(one["low"], other["low"]), "high": max(faster["high"], slower["ms"]), "times": times}


def without_rows(price: Price) -> Price:
    """A price as a trial keeps it: the times of single rows are for the latency model alone."""
    return {name: value for name, value in price.items() if name != "rows"}


def calibration_seconds(config: RunConfig) -> float:
    """How long a search may measure for predictions alone: a minute, a tenth of a budget of time, nothing for few trials."""
    budget = Budget.parse(config.budget)
    if budget.kind == "trials":
        return CALIBRATION_SECONDS if budget.amount >= CALIBRATION_SECONDS else 0.0
    return min(CALIBRATION_SECONDS, CALIBRATION_SHARE * budget.amount)
