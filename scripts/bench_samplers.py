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
import csv
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
from optuna.trial import TrialState

from nas.errors import InputError, did_you_mean
from nas.search.choose import Frame
from nas.search.front_sampler import FrontSampler, TableCandidates
from nas.seeds import derive
from nas.space.features import encode

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


class Table:
    """Rows with features, accuracy (points, or in [0, 1]) and latency (ms).

    Raises:
        InputError: a file that is no such table, or a column that it lacks.
    """

    def __init__(self, path: Path, accuracy: str, latency: str, features: list[str] | None) -> None:
        try:
            with path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"{path}: cannot be read: {error}", "give a CSV file with one architecture per row") from error
        if len(rows) < 2:
            raise InputError(f"{path}: holds fewer than two rows", "give a CSV file with one architecture per row")
        names = [name for name in rows[0] if name is not None]
        if features is None:
            features = [name for name in names[1:] if not name.startswith(("acc", "lat"))]
        for name in (accuracy, latency, *features):
            if name not in names:
                raise InputError(f"{path}: has no column '{name}'", did_you_mean(name, names))
        self.accuracy, self.latency = (self._numbers(path, rows, name) for name in (accuracy, latency))
        if np.any(self.latency <= 0):
            raise InputError(f"{path}: a latency in column '{latency}' is not above 0", "latencies are milliseconds")
        columns = {name: _column([row[name] for row in rows]) for name in features}
        self.features = encode(list(columns.values()))
        self.levels, self.codes = _codes(columns)
        self.params = [
            {
                name: own[code] if isinstance(own[0], str) else int(code)
                for (name, own), code in zip(self.levels.items(), row, strict=True)
            }
            for row in self.codes
        ]
        self.row = {tuple(row): number for number, row in reversed(list(enumerate(self.codes.tolist())))}
        self.ceiling = 100.0 if self.accuracy.max() > 1 else 1.0
        x = np.log(self.latency)
        self._x = (x - x.min()) / np.ptp(x)
        self._y = (self.accuracy - self.accuracy.min()) / np.ptp(self.accuracy)
        self._whole = self._area(np.arange(len(x)))

    @staticmethod
    def _numbers(path: Path, rows: list[dict[str, str]], name: str) -> np.ndarray:
        try:
            values = np.array([float(row[name]) for row in rows])
        except (TypeError, ValueError) as error:
            raise InputError(f"{path}: column '{name}': {error}", "every row needs a number there") from error
        if not np.all(np.isfinite(values)):
            raise InputError(f"{path}: column '{name}' holds a number that is not finite", "every row needs a number there")
        return values

    def _area(self, rows: np.ndarray) -> float:
        order = rows[np.lexsort((-self._y[rows], self._x[rows]))]
        return float(np.sum(np.maximum.accumulate(self._y[order]) * np.diff(np.append(self._x[order], 1.0))))

    def share(self, rows: list[int]) -> float:
        """Hypervolume of the rows as a share of the whole table's."""
        return self._area(np.unique(rows)) / self._whole

    def distributions(self) -> dict[str, BaseDistribution]:
        return {
            name: CategoricalDistribution(levels) if isinstance(levels[0], str) else IntDistribution(0, len(levels) - 1)
            for name, levels in self.levels.items()
        }

    def nearest(self, params: dict[str, Any]) -> int:
        """The row with these parameters, or else the one with the fewest other categories and the nearest numbers."""
        code = [own.index(params[name]) if isinstance(own[0], str) else params[name] for name, own in self.levels.items()]
        if tuple(code) in self.row:
            return self.row[tuple(code)]
        away = np.abs(self.codes - code)
        text = np.array([isinstance(own[0], str) for own in self.levels.values()])
        widths = np.array([1 if t else max(1, len(own) - 1) for t, own in zip(text, self.levels.values(), strict=True)])
        return int(np.argmin(np.sum(np.where(text, away > 0, away / widths), axis=1)))


def _column(cells: list[str]) -> list[float | str | None]:
    """Numbers where every cell that is not empty is one, else text."""
    try:
        return [float(cell) if cell else None for cell in cells]
    except ValueError:
        return [cell or None for cell in cells]


def _codes(columns: dict[str, list[float | str | None]]) -> tuple[dict[str, list[Any]], np.ndarray]:
    """Levels of each column, and every row in numbers of levels; columns without which rows differ as well are left out."""
    levels: dict[str, list[Any]] = {}
    codes: dict[str, np.ndarray] = {}
    for name, column in columns.items():
        own = sorted({value for value in column if value is not None})
        if len(own) > 1 or (own and None in column):
            index = {level: number for number, level in enumerate(own)} | {None: 0}
            levels[name], codes[name] = own, np.array([index[value] for value in column])

    def kinds(names: list[str]) -> int:
        return len(np.unique(np.column_stack([codes[name] for name in names]), axis=0)) if names else 1

    names = list(codes)
    for name in reversed(list(codes)):
        rest = [other for other in names if other != name]
        if kinds(rest) == kinds(names):
            names = rest
    return {name: levels[name] for name in names}, np.column_stack([codes[name] for name in names])


def search(
    table: Table, name: str, seed: int, evaluations: int, limit_ms: float | None, noise: float
) -> tuple[list[int], float]:
    """Rows that a sampler had evaluated until 99% (or, under a limit, the winner) was reached, and seconds per proposal."""
    known = table.latency * np.exp(noise * np.random.default_rng(derive(seed, 0, "noise")).standard_normal(len(table.latency)))
    if name == "front":
        frame = Frame(float(table.latency.min()), float(table.latency.max()), limit_ms)
        sampler: BaseSampler = FrontSampler(
            TableCandidates(table.features, known, table.params, noise), frame, seed, table.ceiling
        )
    else:
        sampler = STOCK[name](derive(seed, 0, "sampler"))
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    distributions, random = table.distributions(), np.random.default_rng(derive(seed, 0, "fallback"))
    within = np.flatnonzero(table.latency <= (limit_ms or math.inf))
    best = table.accuracy[within].max()
    rows: list[int] = []
    spent, proposals, misses = 0.0, 0, 0
    while len(rows) < evaluations:
        if misses >= MISSES:
            study.enqueue_trial(table.params[int(random.choice(within))])
        began = time.perf_counter()
        trial = study.ask()
        params = {key: _suggest(trial, key, own) for key, own in distributions.items()}
        spent, proposals = spent + time.perf_counter() - began, proposals + 1
        row = table.nearest(params)
        if limit_ms is not None and table.latency[row] > limit_ms:
            misses += 1
            study.tell(trial, state=TrialState.FAIL)
            continue
        misses = 0
        rows.append(row)
        latency = table.latency[row]
        study.tell(trial, [table.accuracy[row], latency if name == "front" else math.log(latency)])
        if limit_ms is None and table.share(rows) >= GOALS[-1] / 100:
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


def measure(table: Table, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of one sampler."""
    evaluations = min(options.evaluations, GP_EVALUATIONS) if name == "gp" else options.evaluations
    limit_ms = float(np.percentile(table.latency, options.limit_percentile))
    within = table.latency <= limit_ms
    goals: dict[int, list[float | None]] = {goal: [] for goal in GOALS}
    winners: list[float | None] = []
    seconds, shares, regrets = [], [], []
    for seed in range(options.seeds):
        rows, spent = search(table, name, seed, evaluations, None, options.latency_noise)
        curve = np.array([table.share(rows[: n + 1]) for n in range(len(rows))])
        for goal, counts in goals.items():
            reached = np.flatnonzero(curve >= goal / 100)
            counts.append(float(reached[0]) + 1 if reached.size else None)
        shares.append(np.concatenate((curve, np.full(evaluations - curve.size, curve[-1]))))
        rows, _ = search(table, name, seed, evaluations, limit_ms, options.latency_noise)
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
        table = Table(
            options.table, options.accuracy, options.latency, options.features.split(",") if options.features else None
        )
    except InputError as error:
        parser.error(f"{error} ({error.hint})" if error.hint else str(error))
    print(f"{len(table.latency)} rows, {', '.join(table.levels)}; medians over {options.seeds} seeds")
    print(
        f"{'':18}{'to 90%':>8}{'to 95%':>8}{'to 99%':>8}{'winner':>8}{'s/proposal':>12}   hypervolume after "
        + " ".join(map(str, SHOWN))
    )
    figures: dict[str, dict[str, Any]] = {}
    for name in names:
        own = figures[name] = measure(table, name, options)
        counts = "".join(f"{'-' if own[key] is None else f'{own[key]:g}':>8}" for key in ("to_90", "to_95", "to_99", "winner"))
        curve = " ".join(f"{share:.3f}" for share in own["hypervolume"].values())
        print(f"{name:18}{counts}{own['seconds_per_proposal']:>12.3f}   {curve}", flush=True)
        if options.json:
            options.json.write_text(json.dumps(figures, indent=1) + "\n")
    if options.picture:
        draw(figures, f"{options.table.stem}, {options.latency}", options.picture)


if __name__ == "__main__":
    main()
