"""Whose latencies a search takes: those of the machine that it expects, or of one that is alike, each kept as its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from nas.config import RunConfig
from nas.errors import UnreachableError
from nas.execution.executor import Attempt, Event, Result
from nas.latency.cache import LatencyCache, as_price
from nas.latency.measure import Latency
from nas.latency.target import Target
from nas.pricing import Priced, Pricing
from nas.space.reader import find_space, read_space

TARGET = Target.parse("cpu:onnxruntime").at(160)
PRICE = as_price(Latency(2.0, 2.0, 2.02, 2.1, 0.01, 50), {"params": 2_600_000, "gmacs": 3.25})


class Lane:
    free, lane_free = 1, True

    def start(self, attempt: Attempt) -> None:
        self.key = attempt.key

    def poll(self, timeout: float) -> list[Event]:
        return []

    def stop(self, key: str) -> float:
        return 0.0

    def close(self) -> None:
        pass


@pytest.mark.parametrize(("lane", "host"), [("10.0.0.7", "one"), ("10.0.0.7", "other"), (None, "one")])
def test_a_figure_is_kept_as_that_of_the_machine_that_measured_it(tmp_path: Path, lane: str | None, host: str) -> None:
    space = read_space(find_space("yolo11n-blocks"))
    config = RunConfig("d", "s", "9trials", str(TARGET), imgsz=160, lane=lane)
    one, told = ({**TARGET.stamp(), "machine": f"a processor ({name})"} for name in ("one", host))
    executor = Lane()
    pricing = Pricing(config, space, 3, executor, LatencyCache(tmp_path, TARGET, stamp=one), [], lambda _: None)
    assert pricing.ask(7, space.baseline, measured=True) is None
    found = pricing.take(Result(executor.key, {**PRICE, "measured_on": told}, 1.0))
    assert isinstance(found, Priced) and found.price == PRICE
    (kept,) = tmp_path.iterdir()
    assert kept == LatencyCache(tmp_path, TARGET, stamp=told).path

    assert pricing.ask(8, space.smallest(160)[0], measured=True) is None
    strange = {**told, "machine": "another processor (one)"} if lane else {**told, "machine": "a processor (other)"}
    with pytest.raises(UnreachableError, match=r"was measured on a processor.*cannot be compared"):
        pricing.take(Result(executor.key, {**PRICE, "measured_on": strange}, 1.0))
    assert list(tmp_path.iterdir()) == [kept]
