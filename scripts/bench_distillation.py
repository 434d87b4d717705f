#!/usr/bin/env python
"""Does it pay to let the teacher's outputs teach while an assembled network is trained on (`nas.training.distil`)?

    scripts/bench_distillation.py [--data YAML] [--imgsz 128] [--architectures 6] [--json OUT]

Every architecture is assembled and trained on for `--epochs` with the teacher's term in the loss, as a search does it, and
without. The teacher's forward pass costs, so without the term there is also a training of two epochs more: the gain at equal
CPU seconds is against the line through both. mAP50-95 is that of `val`, CPU seconds are those of the training alone. What is
finished is kept, so a second call goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from bench_fidelity import Kept
from bench_imitation import Plan, work_through

MORE = 2  # epochs
KIND, OUTPUTS = "bench_distillation:tune", "outputs"


def tune(payload: dict[str, Any], seed: int, report: Any) -> dict[str, float]:  # noqa: ARG001  (as all kinds of work)
    """mAP on `val` and CPU seconds of one training."""
    from copy import deepcopy
    from dataclasses import replace

    import torch

    from nas.dataset.description import read_dataset
    from nas.dataset.labels import read_labels
    from nas.execution.imitate import AssembleJob, _images, _teacher
    from nas.imitation.assemble import assembler_of
    from nas.training.proxy import Training
    from nas.training.recipe import Recipe
    from nas.yolo.decode import decode
    from nas.yolo.metrics import evaluate

    job, cpu = AssembleJob(**payload["assemble"]), torch.device("cpu")
    fit, _, nc = _images(job)
    teacher = _teacher(job).model
    model = assembler_of(job.skeleton, teacher, Path(job.library)).assemble(job.model).model
    epochs, tutor = payload["epochs"], deepcopy(teacher) if payload["match"] else None
    recipe = replace(Recipe(), batch=8, lr=payload["lr"])
    training = Training(model, fit, recipe, [epochs], seed, cpu, torch.float32, teacher=tutor)
    began = time.process_time()
    for _ in range(epochs):
        training.run_epoch()
    training.average.apply()
    seconds = time.process_time() - began
    dataset = read_dataset(Path(job.data), Path(job.root))
    val = decode(dataset.val, [read_labels(p, nc) for p in dataset.val], job.imgsz, Path(job.cache) / "images")
    return {"map": evaluate(model, val, nc, batch=32, device=cpu).fitness.map, "train_cpu": seconds}


def trainings(plan: Plan, architecture: Any) -> dict[tuple[str, int], Any]:
    """The trainings of an architecture, by what is matched ("" for nothing) and epochs."""
    options, found = plan.options, {}
    assemble = {**plan._shared(), "model": plan.yaml[architecture.id], "library": str(plan.library())}
    for match, epochs in (("", options.epochs), (OUTPUTS, options.epochs), ("", options.epochs + MORE)):
        payload = {"assemble": assemble, "match": match, "epochs": epochs, "lr": options.lr}
        identity = [plan.library().name, plan.yaml[architecture.id], match, epochs, float(bool(match)), options.lr]
        found[match, epochs] = plan.job(f"{architecture.id}: {match or 'plain'}, {epochs} epochs", KIND, payload, identity)
    return found


def gains(plan: Plan, kept: Kept) -> dict[str, Any]:
    """What the term is worth, over the architectures that have all three trainings."""
    few, rows = plan.options.epochs, []
    for architecture in plan.architectures:
        jobs = trainings(plan, architecture)
        told = [kept.get(jobs[kind]) for kind in ((OUTPUTS, few), ("", few), ("", few + MORE))]
        if all(told):
            rows.append([(each["map"], each["train_cpu"]) for each in told if each])
    if not rows:
        return {}
    (own, short, long), (own_cpu, short_cpu, long_cpu) = np.array(rows).transpose(2, 1, 0)
    cost = own_cpu.sum() / few / ((short_cpu + long_cpu).sum() / (2 * few + MORE))  # of an epoch; one training alone is noisy
    at = (cost * few - few) / MORE
    print(f"{len(rows)} architectures, an epoch takes {cost:.2f} times the CPU seconds; mAP without {short.mean():.4f}")
    figures = {"architectures": len(rows), "cost": float(cost), "map": float(short.mean())}
    for name, values in (("equal_epochs", own - short), ("equal_seconds", own - (1 - at) * short - at * long)):
        drawn = np.random.default_rng(0).choice(values, (1000, len(values))).mean(1)
        low, high = np.percentile(drawn, [5, 95])
        print(f"{name.replace('_', ' ')}: {values.mean():+.4f} [{low:+.4f}, {high:+.4f}]; {(values > 0).sum()} better")
        figures[name] = [float(values.mean()), float(low), float(high)]
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="dataset YAML; the built-in set where none is given")
    parser.add_argument("--skeleton", default="yolo11n.yaml")
    parser.add_argument("--slots", default="backbone.P[345],neck.*", help="slots that may hold another block")
    parser.add_argument("--narrow", default="backbone.P[45]", help="slots that may have half their width")
    parser.add_argument("--imgsz", type=int, default=128)
    parser.add_argument("--architectures", type=int, default=6)
    parser.add_argument("--teacher", type=int, default=40, help="epochs of the teacher")
    parser.add_argument("--rounds", type=lambda text: [int(n) for n in text.split(",")], default=[2, 4])
    parser.add_argument("--epochs", type=int, default=5, help="that an assembled network is trained for")
    parser.add_argument("--lr", type=float, default=0.004)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--kept", type=Path, help="where results are kept; a file in the cache folder by default")
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    os.environ |= {"YOLO_OFFLINE": "1", "YOLO_AUTOINSTALL": "False", "YOLO_VERBOSE": "False"}

    from nas.cache import cache_root

    plan, kept = Plan(options), Kept(options.kept or cache_root() / "distillation.jsonl")
    needed = {a.key for yaml in plan.yaml.values() for a in differences_of(plan, yaml)}
    plan.alternatives = [a for a in plan.alternatives if a.key in needed]
    stages = [[plan.teacher()], [plan.meet()], plan.imitate()]
    stages += [list(trainings(plan, a).values()) for a in plan.architectures]
    work_through(stages, kept, 1, 3600 * options.hours)
    figures = gains(plan, kept)
    left = sum(kept.get(job) is None for stage in stages for job in stage)
    print(f"{sum(map(len, stages)) - left} of {sum(map(len, stages))} jobs are done", file=sys.stderr)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def differences_of(plan: Plan, yaml: Any) -> Any:
    from nas.imitation.alternatives import differences

    return differences(yaml, plan.skeleton)


if __name__ == "__main__":
    main()
