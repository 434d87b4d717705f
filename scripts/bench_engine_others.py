"""What stands beside the engine in `bench_engine.py`: bare Optuna, and Ray Tune with OptunaSearch, over the same space."""

from __future__ import annotations

import os
import tempfile
import time
import warnings
from functools import cache
from typing import Any, Protocol

import optuna
from bench_engine_study import SPACE, peak_mb
from optuna.samplers import BaseSampler, RandomSampler, TPESampler

from nas.seeds import derive
from nas.space.reader import find_space, read_space
from nas.space.search_space import SearchSpace


class Suggests(Protocol):
    """A trial of Optuna's, or what Ray Tune wraps around one."""

    def suggest_categorical(self, name: str, choices: Any) -> Any: ...


@cache
def _space() -> SearchSpace:
    return read_space(find_space(SPACE))


def _define(trial: Suggests) -> None:
    """Ask a trial for the parameters of the default space. Ray Tune pickles it, again and again: no closure."""
    _space().draw(lambda name, choices: trial.suggest_categorical(name, list(choices)))


def _sampler(name: str) -> BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return {"random": RandomSampler(seed=0), "tpe": TPESampler(multivariate=True, group=True, seed=0)}[name]


def bare_optuna(sampler: str, trials: int) -> float:
    """CPU milliseconds per trial of ask, suggest and tell alone, on Optuna's own storage in SQLite."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        storage = f"sqlite:///{folder}/bare.db"
        study = optuna.create_study(storage=storage, directions=["maximize", "minimize"], sampler=_sampler(sampler))
        began = time.process_time()
        for number in range(trials):
            trial = study.ask()
            _define(trial)
            study.tell(trial, [derive(number, 0, "map") / 2**31, 1 + derive(number, 0, "ms") / 2**31])
        return 1e3 * (time.process_time() - began) / trials


def ray_tune(sampler: str, trials: int, slots: int) -> dict[str, float]:
    """A plain run of Ray Tune with OptunaSearch, which keeps its study in memory; so many trials at a time.

    Every slot is a process of Ray's, used again for the next trial.

    Returns:
        ms: CPU milliseconds per trial of the driver alone, without Ray's own processes.
        mb: peak resident memory of the driver, in 10^6 bytes.
        wall_ms: wall milliseconds per trial, with the time in which Ray starts its processes.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    import ray
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    ray.init(address="local", num_cpus=slots, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        search = OptunaSearch(_define, metric=["map", "ms"], mode=["max", "min"], sampler=_sampler(sampler))
        with tempfile.TemporaryDirectory() as folder:
            tuner = tune.Tuner(
                _trivial,
                tune_config=tune.TuneConfig(
                    search_alg=search, num_samples=trials, max_concurrent_trials=slots, reuse_actors=True
                ),
                run_config=tune.RunConfig(storage_path=folder, verbose=0),
            )
            began, cpu = time.monotonic(), time.process_time()
            results = tuner.fit()
            cpu, wall = time.process_time() - cpu, time.monotonic() - began
            if results.num_errors or len(results) != trials:
                raise RuntimeError(f"{results.num_errors} of {len(results)} trials failed in Ray Tune")
    finally:
        ray.shutdown()
    return {"ms": 1e3 * cpu / trials, "wall_ms": 1e3 * wall / trials, "mb": peak_mb()}


def _trivial(config: dict[str, Any]) -> dict[str, float]:
    """A training that takes no time."""
    share = derive(len(str(config)), 0, "map") / 2**31
    return {"map": share, "ms": 1 + share}
