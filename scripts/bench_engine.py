#!/usr/bin/env python
"""What the engine itself costs per trial: ask, latency gate from the cache, record. Nothing is trained or measured.

    scripts/bench_engine.py [--quick] [--trials 200] [--json OUT]

The study loop runs over the default space with an executor that answers at once and a price for every architecture, on a
real SQLite store, with trials.csv, front.csv and front.json written as a search writes them: now and then, and at the end.
What writing them once costs after all these trials stands beside it: so much comes on top of every trial where trials take
so long that the tables are written after each. Beside it, in the same run, stand bare Optuna ask/tell trials over the same
space on the same kind of store. Figures are CPU milliseconds of this process per finished trial.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import RandomSampler, TPESampler

from nas.config import Budget, RunConfig
from nas.execution.executor import Attempt, Event, Result
from nas.execution.work import TRAIN, TrainJob
from nas.jobs import Step
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
from nas.space.search_space import SearchSpace
from nas.study import Study

GOAL_MS = 50.0


class InstantExecutor:
    """Finishes every attempt at once with a made-up mAP."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque()

    free = 1
    lane_free = True

    def start(self, attempt: Attempt) -> None:
        score = derive(attempt.seed, 0, "bench") / 2**31
        self._events.append(Result(attempt.key, {"map": score, "map50": score}, 1.0))

    def poll(self, _timeout: float) -> list[Event]:
        events = list(self._events)
        self._events.clear()
        return events

    def stop(self, _key: str) -> float:
        return 0.0

    def close(self) -> None:
        pass


class InstantJobs:
    """Trainings of one rung."""

    shares: tuple[float, ...] = ()

    def refusal(self, _architecture: Architecture) -> str | None:
        return None

    def job(self, _step: Step, model: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        return TRAIN, asdict(TrainJob(model, "", "", "", 640, [5], 8, 0.004, 0.2, 0, "cpu", 1))


class EveryPrice:
    """A latency cache that knows every model already."""

    def get(self, key: str) -> dict[str, Any]:
        return {
            "ms": 1 + int(key[:8], 16) / 2**32,
            "p90": 2.0,
            "spread": 0.01,
            "runs": 50,
            "params": 1,
            "gmacs": 1.0,
            "rough": False,
        }


def engine(space: SearchSpace, sampler: str, trials: int) -> dict[str, float]:
    """CPU milliseconds per trial of the whole loop, and of writing the tables once; bytes of the store per trial."""
    config = RunConfig("none", "none", f"{trials}trials", "cpu:onnxruntime", max_latency_ms=1.9, sampler=sampler, confirm=0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = Store(folder, create=True)
        write_config(folder, config, "bench")
        write_manifest(folder, "", ["object"], {})
        ledger = Ledger(Budget.parse(config.budget), store)
        tables = Tables(folder, config, space, store, ledger)
        executor = InstantExecutor()
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
            InstantJobs(),
            TrialFolders(folder),
            watch=lambda _: tables.update(),
            record=tables.outdate,
        )
        began = time.process_time()
        study.run()
        tables.write()
        ended = time.process_time()
        tables.write()
        return {
            "driver_ms_per_trial": 1e3 * (ended - began) / trials,
            "tables_ms": 1e3 * (time.process_time() - ended),
            "store_bytes_per_trial": (folder / "study.db").stat().st_size / trials,
        }


def bare_optuna(space: SearchSpace, sampler: str, trials: int) -> float:
    """CPU milliseconds per trial of ask, suggest and tell alone."""
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        samplers = {"random": RandomSampler(seed=0), "tpe": TPESampler(multivariate=True, group=True, seed=0)}
        samplers["front"] = samplers["tpe"]  # of Optuna's own, what it stands beside
        storage = f"sqlite:///{folder}/bare.db"
        study = optuna.create_study(storage=storage, directions=["maximize", "minimize"], sampler=samplers[sampler])
        began = time.process_time()
        for number in range(trials):
            trial = study.ask()
            space.draw(lambda name, choices, trial=trial: trial.suggest_categorical(name, list(choices)))
            study.tell(trial, [derive(number, 0, "map") / 2**31, 1 + derive(number, 0, "ms") / 2**31])
        return 1e3 * (time.process_time() - began) / trials


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="30 trials")
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    trials = 30 if options.quick else options.trials
    space = read_space(find_space("yolo11n-blocks"))
    figures: dict[str, float] = {"trials": trials}
    for sampler in ("random", "tpe", "front"):
        ours, bare = engine(space, sampler, trials), bare_optuna(space, sampler, trials)
        figures |= {f"{name}_{sampler}": figure for name, figure in ours.items()}
        figures[f"bare_optuna_ms_per_trial_{sampler}"] = bare
        figures[f"ratio_{sampler}"] = ours["driver_ms_per_trial"] / bare
        print(
            f"{sampler:>6}: {ours['driver_ms_per_trial']:6.1f} ms CPU a trial, bare Optuna {bare:6.1f} ms, "
            f"ratio {figures[f'ratio_{sampler}']:.2f}; tables once {ours['tables_ms']:.1f} ms; "
            f"store {ours['store_bytes_per_trial'] / 1024:.1f} KiB a trial"
        )
    print(f"goal: {GOAL_MS:.0f} ms, proposal, price from the cache and record (store, trials.csv, front.*) included")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
