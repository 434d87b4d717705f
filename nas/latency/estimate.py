"""Latencies of architectures that nobody has measured: a latency model that grows with every measurement of a search.

What is measured anyway (the probes, the first proposals) are its first observations; a calibration set, measured while the
lane has nothing else to do, adds what these leave open. No torch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nas.latency.calibrate import MAX_COUNT, MIN_COUNT, calibration_set
from nas.latency.model import MIN_OBSERVATIONS, LatencyModel, Observation
from nas.space.architecture import Architecture
from nas.space.search_space import SearchSpace

# The model is fitted anew when it has seen this much more than at the last time.
GROWTH = 1.15


@dataclass(frozen=True)
class Estimate:
    """A predicted latency in ms with the interval that holds the measured one nine times out of ten."""

    ms: float
    low: float
    high: float

    def as_price(self) -> dict[str, Any]:
        """What a price says of it."""
        return {"ms": self.ms, "low": self.low, "high": self.high, "source": "predicted"}


class Estimator:
    """Predicts for one space on one target.

    Args:
        space: the architectures.
        imgsz: of the search, for the space's rules.
        seed: of the calibration set.
    """

    def __init__(self, space: SearchSpace, imgsz: int, seed: int) -> None:
        self._space, self._imgsz, self._seed = space, imgsz, seed
        self._seen: dict[Architecture, Observation] = {}
        self._wanted: deque[Architecture] | None = None
        self._fitted = 0
        self._roughly: LatencyModel | None = None
        self.model: LatencyModel | None = None

    @property
    def open(self) -> bool:
        """Whether another measurement would still make it better; never where so few architectures are sooner measured all."""
        return len(self._seen) < MAX_COUNT < self._space.size

    def add(self, architecture: Architecture, price: Mapping[str, Any]) -> None:
        """Learn from a measured price; `rows`, where it has them, are the ms of each row of the model YAML."""
        if "ms" not in price or price.get("rough"):
            return
        rows = {int(row): float(ms) for row, ms in (price.get("rows") or {}).items()}
        self._seen[architecture] = Observation(architecture, float(price["ms"]), rows or None)

    def wanted(self) -> Architecture | None:
        """The next architecture of the calibration set that was not measured yet; None where no more are needed."""
        if not self.open:
            return None
        if self._wanted is None:
            known = list(self._seen)
            self._wanted = deque(calibration_set(self._space, self._imgsz, self._seed, MAX_COUNT - len(known), known))
        while self._wanted:
            architecture = self._wanted.popleft()
            if architecture not in self._seen:
                return architecture
        return None

    def fitted(self) -> LatencyModel | None:
        """The model of all that was measured, as soon as that is enough."""
        if self._space.size > MAX_COUNT and len(self._seen) >= max(MIN_COUNT, GROWTH * self._fitted):
            self.model = LatencyModel.fit(self._space.skeleton, list(self._seen.values()))
            self._fitted = len(self._seen)
        return self.model

    def rough(self) -> LatencyModel | None:
        """A model of whatever was measured, three at least: good enough to choose what to look at."""
        known = self.fitted()
        if known is not None or len(self._seen) < MIN_OBSERVATIONS:
            return known
        if self._roughly is None or len(self._seen) >= GROWTH * len(self._roughly.observations):
            self._roughly = LatencyModel.fit(self._space.skeleton, list(self._seen.values()))
        return self._roughly

    def estimate(self, architecture: Architecture) -> Estimate | None:
        """The latency of an architecture; None while too little was measured."""
        model = self.fitted()
        if model is None:
            return None
        ms, low, high = model.predict([architecture])
        return Estimate(float(ms[0]), float(low[0]), float(high[0]))
