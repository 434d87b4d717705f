#!/usr/bin/env python
"""What the engine itself costs: CPU and bytes per trial, memory, and whether it keeps many slots busy.

    scripts/bench_engine.py [--quick] [--trials 1000] [--only engine,busy,others] [--samplers random,tpe,front] [--json OUT]

The study loop runs over the default space with a price for every architecture, on a real SQLite store, with trials.csv,
front.csv and front.json written as a search writes them: now and then, and at the end. Nothing is trained or measured.

* engine: trials that end at once, one at a time. CPU milliseconds of the driver per finished trial, for each sampler; what
  writing the tables once costs after all these trials stands beside it.
* busy: trials of one second (real time) on 64 logical slots. The share of the slots' time that is occupied between the
  first proposal and the last result, and the driver's peak memory.
* others: bare Optuna (ask and tell on its own SQLite storage), and Ray Tune with OptunaSearch (study in memory), whose
  slots are processes, so few. Their trials are over the same space and end at once.

Every measurement has a process of its own. Names in the JSON: `driver_ms_per_trial`, `store_bytes_per_trial` (random),
`busy_share`, `driver_mb` (random, of the busy run); with a sampler's name behind for the others, with `ray_tune_` and
`bare_optuna_` before for the others' trials.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from collections.abc import Callable, Collection
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

from bench_engine_others import bare_optuna, ray_tune
from bench_engine_study import engine

GOALS = {
    "driver_ms_per_trial": "under 10",
    "driver_ms_per_trial_front": "under 100",
    "busy_share": "over 0.95",
    "driver_mb": "under 300",
    "store_bytes_per_trial": "under 16384",
}
SLOTS, SECONDS, RAY_SLOTS = 64, 1.0, 4
PARTS = ("engine", "busy", "others")
SAMPLERS = ("random", "tpe", "front")
Figures = dict[str, float]
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Size:
    """How many trials each part runs: `busy` with random, `busy_front` with front."""

    engine: int
    busy: int
    busy_front: int
    bare: int
    ray: int


QUICK = Size(engine=60, busy=640, busy_front=64, bare=20, ray=20)
FULL = Size(engine=1_000, busy=10_000, busy_front=640, bare=200, ray=1_000)


def alone(part: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function in a process of its own, which nothing was loaded into before."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(part, *args, **kwargs).result()


def engine_figures(trials: int, samplers: Collection[str]) -> Figures:
    """CPU and bytes per trial of each sampler."""
    figures: Figures = {"trials": trials}
    for sampler in samplers:
        found = alone(engine, sampler, trials)
        end = "" if sampler == "random" else f"_{sampler}"
        figures |= {
            f"driver_ms_per_trial{end}": found["ms"],
            f"tables_ms{end}": found["tables_ms"],
            f"store_bytes_per_trial{end}": found["store_bytes"],
        }
        print(
            f"{sampler:>6}: {found['ms']:6.1f} ms CPU a trial over {trials}; tables once {found['tables_ms']:.0f} ms; "
            f"store {found['store_bytes'] / 1024:.1f} KiB a trial",
            flush=True,
        )
    return figures


def busy_figures(size: Size, samplers: Collection[str]) -> Figures:
    """How busy the driver keeps the slots, and its memory."""
    figures: Figures = {"busy_slots": SLOTS, "busy_trial_seconds": SECONDS}
    for sampler, trials in {"random": size.busy, "front": size.busy_front}.items():
        if sampler not in samplers:
            continue
        found = alone(engine, sampler, trials, SLOTS, SECONDS)
        end = "" if sampler == "random" else f"_{sampler}"
        figures |= {
            f"busy_trials{end}": trials,
            f"busy_share{end}": found["busy"],
            f"busy_wall_s{end}": found["wall_s"],
            f"busy_starved_s{end}": found["starved_s"],
            f"busy_ms_per_trial{end}": found["ms"],
            f"driver_mb{end}": found["mb"],
        }
        print(
            f"{sampler:>6}: {found['busy']:.1%} of {SLOTS} slots busy over {trials} trials of {SECONDS:.0f} s "
            f"({found['wall_s']:.0f} s, of which {found['starved_s']:.0f} s waiting for a core that others had; "
            f"{found['ms']:.1f} ms CPU a trial); peak memory {found['mb']:.0f} MB",
            flush=True,
        )
    return figures


def other_figures(size: Size, samplers: Collection[str]) -> Figures:
    """What others need for trials over the same space."""
    figures: Figures = {"bare_optuna_trials": size.bare, "ray_tune_trials": size.ray, "ray_tune_slots": RAY_SLOTS}
    for sampler in samplers:
        if sampler == "front":  # is ours alone
            continue
        end = "" if sampler == "random" else f"_{sampler}"
        bare = alone(bare_optuna, sampler, size.bare)
        print(f"{sampler:>6}: bare Optuna {bare:.1f} ms CPU a trial over {size.bare}", flush=True)
        ray = alone(ray_tune, sampler, size.ray, RAY_SLOTS)
        figures |= {
            f"bare_optuna_ms_per_trial{end}": bare,
            f"ray_tune_ms_per_trial{end}": ray["ms"],
            f"ray_tune_wall_ms_per_trial{end}": ray["wall_ms"],
            f"ray_tune_driver_mb{end}": ray["mb"],
        }
        print(
            f"{sampler:>6}: Ray Tune + OptunaSearch {ray['ms']:.1f} ms CPU a trial over {size.ray} on {RAY_SLOTS} slots; "
            f"peak memory {ray['mb']:.0f} MB",
            flush=True,
        )
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a minute, of few trials each")
    parser.add_argument("--trials", type=int, help="of the part `engine`")
    parser.add_argument("--only", default=",".join(PARTS), help="parts to run (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="OUT")
    parser.add_argument("--samplers", default=",".join(SAMPLERS), help="samplers to measure (default: %(default)s)")
    options = parser.parse_args()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    size, parts = QUICK if options.quick else FULL, options.only.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--only: unknown part '{unknown.pop()}', use {', '.join(PARTS)}")
    samplers = options.samplers.split(",")
    if unknown := set(samplers) - set(SAMPLERS):
        parser.error(f"--samplers: unknown sampler '{unknown.pop()}', use {', '.join(SAMPLERS)}")
    figures: Figures = {}
    if "engine" in parts:
        figures |= engine_figures(options.trials or size.engine, samplers)
    if "busy" in parts:
        figures |= busy_figures(size, samplers)
    if "others" in parts:
        figures |= other_figures(size, samplers)
    for name, goal in GOALS.items():
        if name in figures:
            print(f"{name}: {figures[name]:.4g} (goal: {goal})")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
