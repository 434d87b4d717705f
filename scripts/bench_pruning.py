#!/usr/bin/env python
"""Does it pay not to evaluate what the additive estimate says is dominated (`nas.search.prune`)?

    scripts/bench_pruning.py [--data YAML] [--imgsz 128] [--architectures 80]

A table of architectures drawn at random, each with its sum of rises, the mAP of the assembled network and its
multiply-accumulates in the place of a latency. In many random orders, evaluated until 99% of the table's hypervolume is there:
how many evaluations that takes with and without pruning, how many candidates are pruned, and how many of these wrongly (they
would have been better than all that was known to be as fast). Teacher and library are those of `bench_distillation.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
from bench_fidelity import Kept
from bench_imitation import Plan, work_through

ORDERS = 400


def table(plan: Plan, kept: Kept, count: int, hours: float) -> np.ndarray:
    """Rows of (sum of rises, mAP, MACs)."""
    from nas.imitation.alternatives import alternative_of, differences
    from nas.imitation.library import Library
    from nas.space.architecture import Architecture, model_yaml
    from nas.yolo.build import build, multiply_adds

    library, rng = Library(plan.library()), random.Random(1)
    learned = []
    for choices in plan.space.slots:
        options = [o for o in choices.options if o is None or library.usable(alternative_of(plan.space, o))]
        learned.append(options)
    found: dict[Any, Any] = {}
    while len(found) < count:
        placed = [option for option in (rng.choice(options) for options in learned) if option is not None]
        architecture = Architecture(plan.space.skeleton.name, tuple(sorted(placed, key=lambda p: p.layer)))
        found[architecture.id] = model_yaml(plan.space.skeleton, architecture, plan.dataset.nc)
    jobs = {}
    for name, yaml in found.items():
        payload = {**plan._shared(), "model": yaml, "library": str(plan.library())}
        jobs[name] = plan.job(f"assemble {name}", "nas.execution.imitate:assemble", payload, [plan.library().name, yaml])
    work_through([list(jobs.values())], kept, 1, 3600 * hours)
    rows = []
    for name, yaml in found.items():
        told, rise = kept.get(jobs[name]), library.rise(differences(yaml, plan.skeleton))
        if told is not None and rise is not None:
            rows.append((rise, told["map"], multiply_adds(build(yaml).eval(), 64)))
    return np.array(rows)


def play(rows: np.ndarray, order: np.ndarray, prunes: bool) -> tuple[int, int, int]:
    """Evaluations to 99% of the hypervolume, candidates pruned on the way, wrongly pruned ones."""
    from nas.search.front import hypervolume
    from nas.search.prune import best_case

    box = {"reference_ms": 1.001 * rows[:, 2].max(), "fastest_ms": rows[:, 2].min()}
    goal = 0.99 * volume(rows, hypervolume, box)
    known: list[int] = []
    pruned = wrong = 0
    for row in order:
        seen = rows[known]
        best = best_case(seen[:, 0], seen[:, 1], rows[row : row + 1, 0]) if prunes else None
        if best is not None and ((seen[:, 1] > best[0]) & (seen[:, 2] <= rows[row, 2])).any():
            pruned += 1
            wrong += not ((seen[:, 1] >= rows[row, 1]) & (seen[:, 2] <= rows[row, 2])).any()
            continue
        known.append(row)
        if volume(rows[known], hypervolume, box) >= goal:
            break
    return len(known), pruned, wrong


def volume(rows: np.ndarray, hypervolume: Any, box: dict[str, float]) -> float:
    from nas.search.front import front_indices

    at = front_indices(rows[:, 1].tolist(), rows[:, 2].tolist())
    return float(hypervolume(rows[at, 1].tolist(), rows[at, 2].tolist(), **box))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="dataset YAML; the built-in set where none is given")
    parser.add_argument("--skeleton", default="yolo11n.yaml")
    parser.add_argument("--slots", default="backbone.P[345],neck.*", help="slots that may hold another block")
    parser.add_argument("--narrow", default="backbone.P[45]", help="slots that may have half their width")
    parser.add_argument("--imgsz", type=int, default=128)
    parser.add_argument("--architectures", type=int, default=80)
    parser.add_argument("--teacher", type=int, default=40, help="epochs of the teacher")
    parser.add_argument("--rounds", type=lambda text: [int(n) for n in text.split(",")], default=[2, 4])
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--kept", type=Path, help="where results are kept; a file in the cache folder by default")
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    os.environ |= {"YOLO_OFFLINE": "1", "YOLO_AUTOINSTALL": "False", "YOLO_VERBOSE": "False"}

    from nas.cache import cache_root

    count, options.architectures = options.architectures, 1
    plan = Plan(options)
    rows = table(plan, Kept(options.kept or cache_root() / "pruning.jsonl"), count, options.hours)
    from bench_fidelity import interval, tau

    low, high = interval(-rows[:, 0], rows[:, 1])
    figures: dict[str, Any] = {"architectures": len(rows), "tau_additive_assembled": tau(-rows[:, 0], rows[:, 1])}
    print(
        f"{len(rows)} architectures: mAP {rows[:, 1].min():.3f} to {rows[:, 1].max():.3f}; "
        f"tau of the sums with it {low:.2f} to {high:.2f}"
    )
    rng = np.random.default_rng(0)
    orders = [rng.permutation(len(rows)) for _ in range(ORDERS)]
    for prunes in (False, True):
        played = np.array([play(rows, order, prunes) for order in orders])
        evaluations, pruned, wrong = played.mean(0)
        figures["pruned" if prunes else "all"] = {"evaluations": evaluations, "pruned": pruned, "wrong": wrong}
        print(
            f"{'with' if prunes else 'without'} pruning: {evaluations:.1f} evaluations to 99%, "
            f"{pruned:.1f} pruned, {wrong:.2f} wrongly"
        )
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2, default=float) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
