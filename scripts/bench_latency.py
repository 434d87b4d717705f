#!/usr/bin/env python
"""How well the latency model predicts architectures that it has not seen, how fast, and what it costs to calibrate it.

    scripts/bench_latency.py [--target cpu:onnxruntime] [--space yolo11n-blocks] [--imgsz 160] [--calibration 20]
                             [--held-out 60] [--rounds 20] [--kept FILE] [--quick] [--json OUT]

First the calibration set is priced with rows, one after the other, as a search does at its start; the time that takes is
`calibration_seconds` (CPU: `calibration_cpu_seconds`). Then all architectures, also the held-out ones (random, none of them in
the calibration set), are measured once more in interleaved rounds: in each round every model runs 11 times, and its median
counts (CPU time where one thread computes). A model's latency is its median over the rounds, each round divided by how slow
it was for all models; so a busy neighbour slows all models alike instead of a few. `mape`, `spearman` and `coverage` (share of
the held-out figures inside the predicted 90% intervals) compare predictions with these, calibrated on such figures too;
`mape_priced` is calibrated on the prices of the first pass instead, each a moment of its own.

Beside it, on the same calibration set: a line through multiply-adds, a line through parameters, and a lookup (one coefficient
for each slot's block, channels and depth, fitted to whole models with ridge regression). `repeat_spread`: how far ten
measurements of the baseline lie apart. `--kept FILE` keeps what was measured: a second run only adds what is missing.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import nas.yolo  # noqa: F401  (imported before anything is timed)
from nas.execution.work import PriceJob, price
from nas.latency.calibrate import calibration_set
from nas.latency.model import LatencyModel, spearman
from nas.latency.runtimes import SESSIONS
from nas.latency.target import Target
from nas.latency.timing import repeat_spread, repeated
from nas.seeds import derive
from nas.space.architecture import KEEP, Architecture, model_yaml
from nas.space.reader import find_space, read_space
from nas.space.search_space import SearchSpace
from nas.yolo.build import build, inference_form, multiply_adds, parameters

GOALS = {"mape": 3.0, "spearman": 0.99, "calibration_seconds": 60.0, "predict_seconds_100k": 1.0, "repeat_spread": 0.03}
# Zhang et al., "nn-Meter: Towards Accurate Latency Prediction of Deep-Learning Model Inference on Diverse Edge Devices",
# MobiSys 2021; figures as on the project's page.
NN_METER = (
    "nn-Meter (MobiSys 2021) reports, over 26,000 classification models, this share within 10% of the measured latency: 99.0% "
    "on a mobile CPU (Cortex-A76), 99.1% and 99.0% on mobile GPUs (Adreno 640, 630), 83.4% on a VPU (Movidius)"
)
RUNS = 10
PREDICTED = 100_000


class Kept:
    """What was measured, by architecture: the price with its seconds, parameters and multiply-adds, and a time per round."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.entries: dict[str, dict[str, Any]] = {}
        if path is not None and path.is_file():
            lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
            self.entries = {line["id"]: line for line in lines}

    def of(self, architecture: Architecture) -> dict[str, Any]:
        new = {"id": architecture.id, "architecture": architecture.to_dict(), "rounds": []}
        return self.entries.setdefault(architecture.id, new)

    def save(self) -> None:
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fresh = self.path.with_suffix(".new")
            fresh.write_text("".join(json.dumps(entry) + "\n" for entry in self.entries.values()), encoding="utf-8")
            fresh.replace(self.path)


def held_out(space: SearchSpace, imgsz: int, seed: int, count: int, known: Sequence[Architecture]) -> list[Architecture]:
    """Random architectures, none of them among the `known`."""
    found: dict[Architecture, None] = {}
    for index in range(100 * count):
        drawn = space.sample(random.Random(derive(seed, index, "held out")), imgsz)
        if drawn is not None and drawn not in known and len(found) < count:
            found[drawn] = None
    return list(found)


def price_all(space: SearchSpace, chosen: Sequence[Architecture], target: Target, imgsz: int, kept: Kept) -> None:
    for architecture in chosen:
        entry = kept.of(architecture)
        if "price" not in entry:
            job = PriceJob(model_yaml(space.skeleton, architecture), str(target), imgsz, allow_noisy=True, rows=True)
            wall, cpu = time.perf_counter(), time.process_time()
            entry["price"] = price(vars(job), 0, lambda _: None)
            entry |= {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
            entry |= {"params": entry["price"]["params"], "gmacs": entry["price"]["gmacs"]}
            kept.save()


def rounds(space: SearchSpace, all_of_them: Sequence[Architecture], target: Target, count: int, kept: Kept) -> None:
    """Interleaved: every model a few times in each round, until each has been measured in `count` of them."""
    done = min(len(kept.of(architecture)["rounds"]) for architecture in all_of_them)
    if done >= count:
        return
    clock = time.process_time if target.device == "cpu" and target.threads == 1 else time.perf_counter
    sessions = []
    for architecture in all_of_them:
        torch.manual_seed(0)
        model = inference_form(build(model_yaml(space.skeleton, architecture)))
        entry = kept.of(architecture)
        if "params" not in entry:
            entry |= {"params": parameters(model), "gmacs": multiply_adds(model, (target.height, target.width)) / 1e9}
        sessions.append(SESSIONS[target.kind](model, target))
    order = list(range(len(sessions)))
    for number in range(done, count):
        random.Random(number).shuffle(order)
        for index in order:
            sessions[index].run()
            entry = kept.of(all_of_them[index])
            entry["rounds"] = [*entry["rounds"][:number], statistics.median(_times(sessions[index].run, clock))]
        kept.save()
        print(f"round {number + 1} of {count}", flush=True)


def _times(run: Callable[[], object], clock: Callable[[], float]) -> Iterator[float]:
    for _ in range(RUNS):
        before = clock()
        run()
        yield (clock() - before) * 1e3


def levelled(times: np.ndarray) -> np.ndarray:
    """Latency of each model from its times (models, rounds): medians, each round divided by its slowness for all models."""
    logs = np.log(times)
    slowness = np.zeros(logs.shape[1])
    for _ in range(20):
        levels = np.median(logs - slowness, axis=1)
        slowness = np.median(logs - levels[:, None], axis=0)
    return np.exp(levels + slowness.min())


def line(x: Sequence[float], y: np.ndarray, known: int) -> np.ndarray:
    """Predictions of a line fitted to the first `known`."""
    return np.polyval(np.polyfit(x[:known], y[:known], 1), x)


def lookup(space: SearchSpace, architectures: Sequence[Architecture], y: np.ndarray, known: int) -> np.ndarray:
    """Predictions of one coefficient per slot's block, channels and depth, fitted to the first `known` by ridge regression."""
    names: dict[tuple[object, ...], int] = {}
    lists = []
    for architecture in architectures:
        placed = {p.slot: (p.block, p.channels, p.depth) for p in architecture.placements}
        own = [(c.slot.name, *placed.get(c.slot.name, (KEEP, c.slot.row.c2, c.slot.depth))) for c in space.slots]
        lists.append([names.setdefault((s, word, v), len(names)) for s, *held in own for word, v in enumerate(held)])
    x = np.zeros((len(lists), len(names)))
    for index, ones in enumerate(lists):
        x[index, ones] = 1.0
    mean = y[:known].mean()
    inner = x[:known] @ x[:known].T
    return mean + x @ x[:known].T @ np.linalg.solve(inner + np.eye(known), y[:known] - mean)


def mape(predicted: np.ndarray, measured: np.ndarray) -> float:
    return 100 * float(np.mean(np.abs(predicted / measured - 1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="cpu:onnxruntime")
    parser.add_argument("--space", default="yolo11n-blocks")
    parser.add_argument("--imgsz", type=int, default=160)
    parser.add_argument("--calibration", type=int, default=20)
    parser.add_argument("--held-out", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kept", type=Path, help="JSON lines with what was measured; goes on from there")
    parser.add_argument("--quick", action="store_true", help="12 and 8 architectures, 4 rounds")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.quick:
        given.calibration, given.held_out, given.rounds = 12, 8, 4

    space = read_space(find_space(given.space))
    target = Target.parse(given.target).at(given.imgsz)
    kept = Kept(given.kept)
    calibration = calibration_set(space, given.imgsz, given.seed, given.calibration)
    others = held_out(space, given.imgsz, given.seed, given.held_out, calibration)
    everything, known = [*calibration, *others], len(calibration)
    price_all(space, calibration, target, given.imgsz, kept)
    rounds(space, everything, target, given.rounds, kept)

    entries = [kept.of(architecture) for architecture in everything]
    y = levelled(np.array([entry["rounds"][: given.rounds] for entry in entries]))
    prices = [entry["price"] for entry in entries[:known]]
    rows = [{int(row): ms / p["ms"] for row, ms in p["rows"].items()} if "rows" in p else None for p in prices]

    def fitted(ms: Sequence[float], *, with_rows: bool = True) -> LatencyModel:
        scaled = [
            {row: share * t for row, share in r.items()} if r and with_rows else None for r, t in zip(rows, ms, strict=True)
        ]
        return LatencyModel.fit(space, zip(calibration, ms, scaled, strict=True))

    before = time.process_time()
    model = fitted(y[:known].tolist())
    fit_seconds = time.process_time() - before
    truth = y[known:]
    ms, low, high = model.predict(others)
    many = [a for i in range(PREDICTED) if (a := space.sample(random.Random(i), given.imgsz)) is not None]
    before, before_cpu = time.perf_counter(), time.process_time()
    model.predict(many)
    predict_seconds, predict_cpu = time.perf_counter() - before, time.process_time() - before_cpu
    figures: dict[str, Any] = {
        "target": str(target),
        "space": given.space,
        "calibration": known,
        "held_out": len(others),
        "mape": mape(ms, truth),
        "spearman": spearman(ms, truth),
        "coverage": float(np.mean((low <= truth) & (truth <= high))),
        "within_10_percent": 100 * float(np.mean(np.abs(ms / truth - 1) <= 0.1)),
        "width": float(np.mean((high - low) / ms / 2)),
        "mape_own": model.error.mape,
        "calibration_seconds": sum(entry["seconds"] for entry in entries[:known]),
        "calibration_cpu_seconds": sum(entry["cpu_seconds"] for entry in entries[:known]),
        "fit_cpu_seconds": fit_seconds,
        "predict_seconds_100k": predict_seconds,
        "predict_cpu_seconds_100k": predict_cpu,
        "truth_noise": _truth_noise(np.array([entry["rounds"][: given.rounds] for entry in entries])),
    }
    for name, other in (
        ("no_rows", fitted(y[:known].tolist(), with_rows=False)),
        ("priced", fitted([p["ms"] for p in prices])),
    ):
        predicted = other.predict(others)[0]
        predicted *= np.median(y[:known] / [p["ms"] for p in prices]) if name == "priced" else 1.0
        figures |= {f"mape_{name}": mape(predicted, truth), f"spearman_{name}": spearman(predicted, truth)}
    for name, guess in (
        ("macs", line([entry["gmacs"] for entry in entries], y, known)),
        ("params", line([entry["params"] for entry in entries], y, known)),
        ("additive", lookup(space, everything, y, known)),
    ):
        figures |= {f"mape_{name}": mape(guess[known:], truth), f"spearman_{name}": spearman(guess[known:], truth)}
    baseline = inference_form(build(model_yaml(space.skeleton, space.baseline)))
    figures["repeat_spread"] = repeat_spread(repeated(baseline, target, 3 if given.quick else 10, allow_noisy=True))

    for name, figure in figures.items():
        goal = f"  (goal {GOALS[name]:g})" if name in GOALS else ""
        print(f"{name:26} {figure:.4g}{goal}" if isinstance(figure, float) else f"{name:26} {figure}")
    print(NN_METER)
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def _truth_noise(times: np.ndarray) -> float:
    """Mean relative difference between the figures of the even and the odd rounds, in percent; the figures of all are nearer
    to the truth than that."""
    even, odd = levelled(times[:, ::2]), levelled(times[:, 1::2])
    logs = np.log(even / odd)
    return 100 * float(np.mean(np.abs(logs - np.median(logs))))


if __name__ == "__main__":
    main()
