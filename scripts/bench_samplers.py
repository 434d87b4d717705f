#!/usr/bin/env python
"""Evaluations that samplers need on a table of architectures whose accuracy and latency are all known.

    scripts/bench_samplers.py TABLE.csv --accuracy COLUMN --latency COLUMN [--features A,B,…] [--limit-percentile 30]
        [--latency-noise 0.1] [--seeds 20] [--evaluations 320] [--samplers front,gp,tpe,…] [--quick] [--json OUT]
        [--picture OUT.png]

Every sampler runs in the same ask/tell loop through Optuna. Printed are medians over the seeds: evaluations to 90, 95 and 99%
of the exhaustive front's hypervolume; `winner`, the evaluations until within 0.5 points of the best under the limit (a
percentile of latency; runs of their own, in which what is over the limit costs nothing); seconds per proposal.

Hypervolume: accuracy and log latency, each scaled to [0, 1] over the table; reference point (smallest accuracy, largest
latency). Features are all columns but the first, `acc*` and `lat*`, unless named; an empty cell is a parameter that the
row does not have. Stock samplers are told log latency; they are offered the features that tell the rows apart, numbers as
ordered, and get the nearest row where a combination does not exist. An evaluation of a row seen before is charged like any
other. A run ends at 99%, or after --evaluations; `gp` after 60. With --latency-noise, `front` knows latencies before an
evaluation only with such an error (of the logarithm), as those of a latency model.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the arrays are small: more threads only wait for each other

import json
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from nas.errors import InputError, did_you_mean
from nas.search.belief import Frame
from nas.search.front_sampler import FrontSampler, TableCandidates
from nas.seeds import derive
from nas.simulate.share import Share
from nas.simulate.table import Table, is_text, read_table

GOALS = (90, 95, 99)
SHOWN = (5, 10, 20, 40, 80, 160, 320)
GP_EVALUATIONS = 60
MISSES = 50  # proposals over the limit in a row, after which a random row under it is evaluated
STOCK: dict[str, Callable[[int], BaseSampler]] = {
    "gp": lambda seed: GPSampler(seed=seed),
    "tpe": lambda seed: TPESampler(seed=seed),
    "tpe-multivariate": lambda seed: TPESampler(multivariate=True, group=True, seed=seed),
    "nsga2": lambda seed: NSGAIISampler(population_size=20, seed=seed),
    "random": lambda seed: RandomSampler(seed=seed),
}
SAMPLERS = ("front", *STOCK)


class Board:
    """A table as a sampler plays on it: parameters (a number is the place of its value), and what a row is worth."""

    def __init__(self, table: Table) -> None:
        self.table, self.share = table, Share(table).of
        self.text = {name: is_text(own) for name, own in table.levels.items()}
        self.params = [self._params(row) for row in range(len(table))]
        self._rows = {tuple(own.values()): row for row, own in enumerate(self.params)}

    def _params(self, row: int) -> dict[str, Any]:
        places = dict(zip(self.table.levels, self.table.codes[row].tolist(), strict=True))
        return {name: self._level(name, place) if self.text[name] else place for name, place in places.items()}

    def _level(self, name: str, place: int) -> str:
        return str(self.table.levels[name][place] or "")

    def row(self, trial: FrozenTrial) -> int | None:
        """That a trial draws exactly."""
        return self._rows.get(tuple(trial.params.get(name) for name in self.table.levels))

    def distributions(self) -> dict[str, BaseDistribution]:
        return {
            name: CategoricalDistribution([self._level(name, place) for place in range(len(own))])
            if self.text[name]
            else IntDistribution(0, len(own) - 1)
            for name, own in self.table.levels.items()
        }

    def nearest(self, params: dict[str, Any]) -> int:
        levels = self.table.levels
        return self.table.nearest(
            {name: (params[name] or None) if self.text[name] else levels[name][params[name]] for name in levels}
        )


def search(
    board: Board, name: str, seed: int, evaluations: int, limit_ms: float | None, noise: float
) -> tuple[list[int], float]:
    """Rows that a sampler had evaluated until 99% (or, under a limit, the winner) was reached, and seconds per proposal."""
    table = board.table
    known = table.latency * np.exp(noise * np.random.default_rng(derive(seed, 0, "noise")).standard_normal(len(table.latency)))
    if name == "front":
        frame = Frame(float(table.latency.min()), float(table.latency.max()), limit_ms)
        sampler: BaseSampler = FrontSampler(
            TableCandidates(table.features, known, board.row, board.params.__getitem__, noise), frame, seed, table.ceiling
        )
    else:
        sampler = STOCK[name](derive(seed, 0, "sampler"))
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    distributions, random = board.distributions(), np.random.default_rng(derive(seed, 0, "fallback"))
    within = np.flatnonzero(table.latency <= (limit_ms or math.inf))
    best = table.accuracy[within].max()
    rows: list[int] = []
    spent, proposals, misses = 0.0, 0, 0
    while len(rows) < evaluations:
        if misses >= MISSES:
            study.enqueue_trial(board.params[int(random.choice(within))])
        began = time.perf_counter()
        trial = study.ask()
        params = {key: _suggest(trial, key, own) for key, own in distributions.items()}
        spent, proposals = spent + time.perf_counter() - began, proposals + 1
        row = board.nearest(params)
        if limit_ms is not None and table.latency[row] > limit_ms:
            misses += 1
            study.tell(trial, state=TrialState.FAIL)
            continue
        misses = 0
        rows.append(row)
        latency = table.latency[row]
        study.tell(trial, [table.accuracy[row], latency if name == "front" else math.log(latency)])
        if limit_ms is None and board.share(rows) >= GOALS[-1] / 100:
            break
        if limit_ms is not None and table.accuracy[row] >= best - table.ceiling / 200:
            break
    return rows, spent / proposals


def _suggest(trial: optuna.Trial, name: str, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(name, distribution.choices)
    assert isinstance(distribution, IntDistribution)
    return trial.suggest_int(name, distribution.low, distribution.high)


def median(values: list[float | None]) -> float | None:
    """None counts as later than all."""
    found = float(np.median([math.inf if value is None else value for value in values]))
    return found if math.isfinite(found) else None


def measure(board: Board, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of one sampler."""
    evaluations = min(options.evaluations, GP_EVALUATIONS) if name == "gp" else options.evaluations
    table = board.table
    limit_ms = float(np.percentile(table.latency, options.limit_percentile))
    within = table.latency <= limit_ms
    goals: dict[int, list[float | None]] = {goal: [] for goal in GOALS}
    winners: list[float | None] = []
    seconds, shares, regrets = [], [], []
    for seed in range(options.seeds):
        rows, spent = search(board, name, seed, evaluations, None, options.latency_noise)
        curve = np.array([board.share(rows[: n + 1]) for n in range(len(rows))])
        for goal, counts in goals.items():
            reached = np.flatnonzero(curve >= goal / 100)
            counts.append(float(reached[0]) + 1 if reached.size else None)
        shares.append(np.concatenate((curve, np.full(evaluations - curve.size, curve[-1]))))
        rows, _ = search(board, name, seed, evaluations, limit_ms, options.latency_noise)
        regret = table.accuracy[within].max() - np.maximum.accumulate(table.accuracy[rows])
        winners.append(float(len(rows)) if regret[-1] <= table.ceiling / 200 else None)
        regrets.append(np.concatenate((regret, np.full(evaluations - regret.size, regret[-1]))))
        seconds.append(spent)
    shown = [n for n in SHOWN if n <= evaluations]
    return {
        **{f"to_{goal}": median(counts) for goal, counts in goals.items()},
        "winner": median(winners),
        "seconds_per_proposal": round(float(np.median(seconds)), 4),
        "hypervolume": {n: round(float(np.median([curve[n - 1] for curve in shares])), 4) for n in shown},
        "regret": {n: round(float(np.median([curve[n - 1] for curve in regrets])), 3) for n in shown},
        "seeds": options.seeds,
        "evaluations": evaluations,
        "curve": [round(float(v), 4) for v in np.median(shares, axis=0)],
    }


def draw(figures: dict[str, dict[str, Any]], title: str, path: Path) -> None:
    """Median hypervolume against evaluations, a line per sampler."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2))
    for name, own in figures.items():
        axes.plot(range(1, len(own["curve"]) + 1), own["curve"], label=name, linewidth=2.5 if name == "front" else 1.2)
    for goal in GOALS[1:]:
        axes.axhline(goal / 100, color="0.8", linewidth=0.8, zorder=0)
    axes.set(
        xscale="log", xlabel="evaluations", ylabel="share of the exhaustive front's hypervolume", ylim=(0.5, 1.0), title=title
    )
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", type=Path, metavar="TABLE.csv")
    parser.add_argument("--accuracy", required=True, metavar="COLUMN")
    parser.add_argument("--latency", required=True, metavar="COLUMN")
    parser.add_argument("--features", metavar="A,B,…", help="columns (all but the first, acc* and lat*)")
    parser.add_argument("--limit-percentile", type=float, default=30.0)
    parser.add_argument("--latency-noise", type=float, default=0.0)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--evaluations", type=int, default=320)
    parser.add_argument("--samplers", default=",".join(SAMPLERS))
    parser.add_argument("--quick", action="store_true", help="2 seeds, 40 evaluations")
    parser.add_argument("--json", type=Path, metavar="OUT")
    parser.add_argument("--picture", type=Path, metavar="OUT.png")
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.evaluations = 2, 40
    if options.seeds < 1 or options.evaluations < 1:
        parser.error("--seeds and --evaluations are at least 1")
    if not 0 < options.limit_percentile <= 100:
        parser.error("--limit-percentile lies in (0, 100]")
    if not 0 <= options.latency_noise < 1:
        parser.error("--latency-noise lies in [0, 1)")
    names = options.samplers.split(",")
    for name in names:
        if name not in SAMPLERS:
            parser.error(f"unknown sampler '{name}': {did_you_mean(name, SAMPLERS)}")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    try:
        features = options.features.split(",") if options.features else None
        board = Board(read_table(options.table, options.accuracy, options.latency, features))
    except InputError as error:
        parser.error(f"{error} ({error.hint})" if error.hint else str(error))
    print(f"{len(board.table)} rows, {', '.join(board.table.levels)}; medians over {options.seeds} seeds")
    print(
        f"{'':18}{'to 90%':>8}{'to 95%':>8}{'to 99%':>8}{'winner':>8}{'s/proposal':>12}   hypervolume after "
        + " ".join(map(str, SHOWN))
    )
    figures: dict[str, dict[str, Any]] = {}
    for name in names:
        own = figures[name] = measure(board, name, options)
        counts = "".join(f"{'-' if own[key] is None else f'{own[key]:g}':>8}" for key in ("to_90", "to_95", "to_99", "winner"))
        curve = " ".join(f"{share:.3f}" for share in own["hypervolume"].values())
        print(f"{name:18}{counts}{own['seconds_per_proposal']:>12.3f}   {curve}", flush=True)
        if options.json:
            options.json.write_text(json.dumps(figures, indent=1) + "\n")
    if options.picture:
        draw(figures, f"{options.table.stem}, {options.latency}", options.picture)


if __name__ == "__main__":
    main()
