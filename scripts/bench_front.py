#!/usr/bin/env python
"""What `front` finds in a large search space, beside random search: on made-up accuracies and latencies.

    scripts/bench_front.py [--space yolo11n-blocks] [--seeds 12] [--trials 160] [--quick] [--json OUT]

`bench_samplers.py` runs over tables, where every candidate is looked at. Here are too many for that, and what is measured is
how well a proposal finds its way from those that it looks at. Per seed a world is drawn: log error and latency are sums over
the slots of linear effects of their properties, with pairs of properties that interact in the error; a training adds noise, and
latencies are known to 10% before. Each world is searched without a limit and with one that 30% of random architectures hold.

Printed, as means over the seeds: the hypervolume (of true accuracies; error times log latency) after a third of the trials and
at the end, the best within the limit, and CPU milliseconds of a proposal. Names in the JSON: `hypervolume`, `best` and
`proposal_ms`, each with `_random`, `_limit` or both behind it; `hypervolume_ratio` is front's at the end over random's.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the arrays are small: more threads only wait for each other

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.samplers import BaseSampler

from nas.search.acquisition import Steps
from nas.search.belief import Frame
from nas.search.front_sampler import Codes, FrontSampler, SpaceCandidates
from nas.search.sampler import make_sampler
from nas.space.architecture import Architecture
from nas.space.features import SpaceCodes
from nas.space.reader import find_space, read_space

Floats = NDArray[np.float64]
SHARE = 0.3  # of random architectures, that hold the limit
KNOWN = 1.1  # the factor by which a latency may be off before it is measured
NOISE = 0.004  # of mAP, from one training to another
PAIRS = 40  # of properties that interact


class World:
    """Accuracies and latencies of a space's codes, drawn from a seed."""

    def __init__(self, codes: SpaceCodes, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self._codes = codes
        one = codes.features(np.zeros((1, len(codes.listed)), dtype=np.int32))
        columns = one.points.shape[1]
        self._effects, self._interactions = rng.normal(0, 0.15, columns), rng.normal(0, 0.25, PAIRS)
        self._pairs = rng.integers(0, columns, (2, PAIRS))
        self._costs = rng.normal(0, 0.25, columns)

    def latency(self, codes: Codes) -> Floats:
        """Milliseconds."""
        return np.asarray(2.0 * np.exp(0.5 * self._codes.features(codes).points @ self._costs))

    def accuracy(self, codes: Codes) -> Floats:
        points = self._codes.features(codes).points
        good = points @ self._effects + (points[:, self._pairs[0]] * points[:, self._pairs[1]]) @ self._interactions
        slower = np.log(self.latency(codes) / 2.0)
        return np.asarray(1 - np.clip(0.55 * np.exp(-0.25 * good - 0.15 * slower), 0.01, 0.99))


@dataclass(frozen=True)
class Found:
    """What one search has found."""

    third: float
    hypervolume: float
    best: float
    proposal_ms: float


def search(codes: SpaceCodes, seed: int, trials: int, sampler: str, *, limited: bool) -> Found:
    """One search of one world."""
    world, space = World(codes, seed), codes.space
    many = world.latency(codes.draw(20_000, np.random.default_rng(seed)))
    limit = float(np.quantile(many, SHARE)) if limited else None
    frame = Frame(0.8 * float(many.min()), limit or float(np.quantile(many, 0.9)), limit, reference_error=1.0)
    architectures: dict[int, Architecture] = {}
    results: dict[int, float] = {}

    def latency(rows: Codes) -> tuple[Floats, Floats, Floats]:
        ms = world.latency(rows)
        return ms, ms / KNOWN, ms * KNOWN

    candidates = SpaceCandidates(codes, latency, 640, lambda trial: architectures.get(trial.number))
    front = FrontSampler(candidates, frame, seed, result=lambda trial: (results[trial.number], 0.0))
    study, noise = optuna.create_study(directions=["maximize", "minimize"]), np.random.default_rng([seed, 1])
    errors, log_latencies, volumes, spent = np.empty(0), np.empty(0), [], 0.0
    for number in range(trials):
        chooser: BaseSampler = front if sampler == "front" else make_sampler(sampler, seed, number)
        study.sampler = chooser
        began, trial = time.process_time(), study.ask()
        drawn = space.draw(lambda name, choices, trial=trial: trial.suggest_categorical(name, list(choices)))
        spent += time.process_time() - began
        architectures[number], code = drawn, codes.code(drawn)[None]
        ms, true = float(world.latency(code)[0]), float(world.accuracy(code)[0])
        results[number] = min(0.99, max(0.01, true + float(noise.normal(0, NOISE))))
        study.tell(trial, [results[number], ms])
        errors, log_latencies = np.append(errors, 1 - true), np.append(log_latencies, math.log(ms))
        volumes.append(Steps.of(errors, log_latencies, 1.0, frame.end).area(math.log(frame.fastest_ms)))
    best = float(1 - errors[log_latencies < frame.end].min(initial=1.0))
    return Found(volumes[trials // 3 - 1], volumes[-1], best, 1e3 * spent / trials)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", default="yolo11n-blocks")
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--trials", type=int, default=160)
    parser.add_argument("--quick", action="store_true", help="two seeds, 30 trials")
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.trials = 2, 30
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    codes = SpaceCodes(read_space(find_space(options.space)))
    figures: dict[str, float] = {"seeds": options.seeds, "trials": options.trials}
    print(f"{'':24} {'a third':>8} {'hypervolume':>12} {'best':>7} {'ms':>7}")
    for limited in (False, True):
        for sampler in ("front", "random"):
            found = [search(codes, seed, options.trials, sampler, limited=limited) for seed in range(options.seeds)]
            third, volume, best, ms = np.mean([[f.third, f.hypervolume, f.best, f.proposal_ms] for f in found], axis=0)
            end = ("_limit" if limited else "") + ("_random" if sampler == "random" else "")
            figures |= {f"third{end}": third, f"hypervolume{end}": volume, f"best{end}": best, f"proposal_ms{end}": ms}
            name = f"{sampler}, {'under a limit' if limited else 'no limit'}"
            print(f"{name:24} {third:8.4f} {volume:12.4f} {best:7.4f} {ms:7.1f}", flush=True)
        end = "_limit" if limited else ""
        figures[f"hypervolume_ratio{end}"] = figures[f"hypervolume{end}"] / figures[f"hypervolume{end}_random"]
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2, default=float) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
