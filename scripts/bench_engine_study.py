"""Searches whose trials cost nothing, for `bench_engine.py`: what is left is the driver."""

from __future__ import annotations

import heapq
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nas.config import Budget, RunConfig
from nas.execution.executor import Attempt, Event, Result
from nas.execution.work import TRAIN, TrainJob
from nas.jobs import Step
from nas.latency.calibrate import MAX_COUNT
from nas.outcome import Tables
from nas.pricing import Pricing
from nas.proposals import Proposals, SpaceKnowledge
from nas.runs.folder import write_config, write_manifest
from nas.runs.ledger import Ledger
from nas.runs.store import Store
from nas.runs.trials import TrialFolders
from nas.seeds import derive
from nas.space.architecture import Architecture
from nas.space.reader import find_space, read_space
from nas.study import Study

SPACE = "yolo11n-blocks"


class Timers:
    """An executor whose slots are timers in real time: an attempt ends so many seconds after its start, with a made-up mAP.

    A slot is free again once its end was polled.

    Attributes:
        occupied: seconds of all attempts that have ended, each as long as it was to take.
    """

    lane_free = True

    def __init__(self, slots: int, seconds: float) -> None:
        self._slots, self._seconds = slots, seconds
        self._ends: list[tuple[float, str, int]] = []
        self.occupied = 0.0

    @property
    def free(self) -> int:
        return self._slots - len(self._ends)

    def start(self, attempt: Attempt) -> None:
        heapq.heappush(self._ends, (time.monotonic() + self._seconds, attempt.key, attempt.seed))

    def poll(self, timeout: float) -> list[Event]:
        if self._ends and (left := min(timeout, self._ends[0][0] - time.monotonic())) > 0:
            time.sleep(left)
        events: list[Event] = []
        now = time.monotonic()
        while self._ends and self._ends[0][0] <= now:
            _, key, seed = heapq.heappop(self._ends)
            score = derive(seed, 0, "bench") / 2**31
            events.append(Result(key, {"map": score, "map50": score}, self._seconds))
            self.occupied += self._seconds
        return events

    def stop(self, key: str) -> float:
        kept = [end for end in self._ends if end[1] != key]
        stopped = len(kept) < len(self._ends)
        self._ends = kept
        heapq.heapify(self._ends)
        return self._seconds if stopped else 0.0

    def close(self) -> None:
        pass


class TrivialJobs:
    """Trainings of one rung."""

    shares: tuple[float, ...] = ()
    validates = False

    def refusal(self, _architecture: Architecture) -> str | None:
        return None

    def job(self, _step: Step, model: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        return TRAIN, dict(vars(TrainJob(model, "", "", "", 640, [5], 8, 0.004, 0.2, 0, "cpu", 1)))


class EveryPrice:
    """A latency cache that knows every model already, between 1 and 2 ms.

    The latency model learns from as many as a calibration has, no more: what is rough it does not learn from.
    """

    def __init__(self) -> None:
        self._told = 0

    def get(self, key: str) -> dict[str, Any]:
        self._told += 1
        return {
            "ms": 1 + int(key[:8], 16) / 2**32,
            "p90": 2.0,
            "spread": 0.01,
            "runs": 50,
            "params": 1,
            "gmacs": 1.0,
            "rough": self._told > MAX_COUNT,
        }


def engine(sampler: str, trials: int, slots: int = 1, seconds: float = 0.0) -> dict[str, float]:
    """A search of the default space for so many trials of so many seconds each, with a store on disk.

    Returns:
        ms: CPU milliseconds of this process per trial, the tables included as often as a search writes them.
        tables_ms: CPU milliseconds of writing them once, at the end.
        store_bytes: size of the store per trial.
        wall_s: from the first proposal to the last result.
        busy: the share of all slots' time in `wall_s` in which they were occupied.
        starved_s: seconds of `wall_s` in which the driver could have run and other processes had the cores.
        mb: peak resident memory of this process, in 10^6 bytes.
    """
    space = read_space(find_space(SPACE))
    config = RunConfig("none", "none", f"{trials}trials", "cpu:onnxruntime", max_latency_ms=1.9, sampler=sampler, confirm=0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = Store(folder, create=True)
        write_config(folder, config, "bench")
        write_manifest(folder, "", ["object"], {})
        ledger = Ledger(Budget.parse(config.budget), store)
        tables = Tables(folder, config, space, store, ledger)
        executor = Timers(slots, seconds)
        prices: Any = EveryPrice()
        pricing = Pricing(config, space, 80, executor, prices, [], lambda seconds: store.add_seconds(lane=seconds))
        study = Study(
            config,
            space,
            store,
            executor,
            pricing,
            Proposals(config, store, SpaceKnowledge(config, space, pricing, store)),
            ledger,
            TrivialJobs(),
            TrialFolders(folder),
            watch=lambda _: tables.update(),
            record=tables.outdate,
        )
        began, cpu, starved = time.monotonic(), time.process_time(), starved_seconds()
        study.run()
        wall, starved = time.monotonic() - began, starved_seconds() - starved
        tables.write()
        ended = time.process_time()
        tables.write()
        return {
            "ms": 1e3 * (ended - cpu) / trials,
            "tables_ms": 1e3 * (time.process_time() - ended),
            "store_bytes": (folder / "study.db").stat().st_size / trials,
            "wall_s": wall,
            "starved_s": starved,
            "busy": executor.occupied / (slots * wall),
            "mb": peak_mb(),
        }


def peak_mb() -> float:
    """Peak resident memory of this process, in 10^6 bytes. What getrusage says may be that of the process which began it."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


def starved_seconds() -> float:
    """How long the main thread of this process has waited for a core so far."""
    return int(Path("/proc/self/schedstat").read_text(encoding="utf-8").split()[1]) / 1e9
