#!/usr/bin/env python
"""Where a proxy's time goes: a training pass, in both precisions and its parts; a validation; zero-cost scores.

    scripts/profile_proxy.py [--data YAML] [--imgsz 160] [--model yolo11n] [--batch 16] [--device cpu] [--give-back]
                             [--json OUT]

Runs in the environment of a search's workers, with `--give-back` without its settings of memory. Figures of CPUs are CPU
time of one thread; on a GPU `busy` is the share of the wall clock in which a kernel ran.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

import nas.yolo  # noqa: F401
from nas.cache import cache_root
from nas.dataset.builtin import builtin_dataset
from nas.dataset.description import read_dataset
from nas.execution.work import images_of
from nas.hardware import KEEP_MEMORY
from nas.space.architecture import Architecture, model_yaml, place
from nas.space.skeleton import read_skeleton
from nas.training.augment import Augmentation
from nas.training.proxy import Training
from nas.training.recipe import Recipe
from nas.training.zero_cost import score_batch, zero_cost_scores
from nas.yolo.build import build
from nas.yolo.metrics import evaluate

GROUPS = {
    "convolutions, backward": ("convolution_backward",),
    "convolutions, forward": ("mkldnn_convolution", "cudnn_convolution", "_conv_depthwise2d"),
    "batch norm": ("native_batch_norm", "cudnn_batch_norm"),
    "activations": ("silu", "sigmoid", "gelu", "hardswish"),
    "copies and casts": ("copy_", "_to_copy", "empty", "clone"),
    "augmentation": ("grid_sampler", "affine_grid", "bmm", "flip", "where"),
    "optimizer and average": ("adamw", "lerp", "foreach", "vector_norm", "Optimizer", "zero_grad"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="dataset YAML; the built-in set where none is given")
    parser.add_argument("--imgsz", type=int, default=160)
    parser.add_argument("--model", default="yolo11n")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--give-back", action="store_true", help="let the allocator give freed memory back")
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    if not options.give_back and KEEP_MEMORY.items() - os.environ.items():  # they count from the start of a process
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | KEEP_MEMORY)
    torch.set_num_threads(1)
    dataset = read_dataset(builtin_dataset() if options.data is None else options.data)
    fit, held_out, nc = images_of(str(dataset.yaml), str(dataset.root), str(cache_root()), options.imgsz, 0.2, 0, False)
    skeleton, device = read_skeleton(f"{options.model}.yaml"), torch.device(options.device)
    clock = time.process_time if device.type == "cpu" else time.perf_counter

    def fresh(precision: torch.dtype, **changes: Any) -> tuple[Training, Any]:
        torch.manual_seed(0)
        model = build(model_yaml(skeleton, Architecture(skeleton.name), nc))
        training = Training(model, fit, replace(Recipe(), batch=options.batch, **changes), [20], 0, device, precision)
        training.run_epoch()
        return training, model

    figures: dict[str, float] = {}
    strong = Augmentation(1.0, 0.5, 0.1, 0.5, 0.015, 0.7, 0.4)
    for name, precision, changes in (
        ("float32", torch.float32, {}),
        ("bfloat16", torch.bfloat16, {}),
        ("bfloat16, mosaic and colours", torch.bfloat16, {"augmentation": strong, "close_mosaic": 0.0}),
    ):
        training, model = fresh(precision, **changes)
        began, before, passes = clock(), resource.getrusage(resource.RUSAGE_SELF), 3 * (len(fit) // options.batch)
        for _ in range(3):
            training.run_epoch()
        figures[f"ms a pass, {name}"] = 1e3 * (clock() - began) / passes
        after = resource.getrusage(resource.RUSAGE_SELF)
        figures[f"of these in the system, {name}"] = 1e3 * (after.ru_stime - before.ru_stime) / passes
        figures[f"page faults a pass, {name}"] = (after.ru_minflt - before.ru_minflt) / passes
    began = clock()
    evaluate(model, held_out, nc, batch=4 * options.batch, device=device)
    figures[f"seconds of a validation of {len(held_out)} images"] = clock() - began

    batch = score_batch(fit, 0)
    for block in ("keep", "repvit", "irmb", "mobile_mqa", "efficientvit"):
        placements = [place(slot, block, 1.0, None, None, {}) for slot in skeleton.slots if block != "keep"]
        architecture = Architecture(skeleton.name, tuple(placed for placed in placements if placed is not None))
        torch.manual_seed(0)
        model = build(model_yaml(skeleton, architecture, nc))
        zero_cost_scores(model, batch)
        began = time.process_time()
        zero_cost_scores(model, batch)
        figures[f"CPU seconds of zero-cost scores, {block}"] = time.process_time() - began

    training, _ = fresh(torch.bfloat16)
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    began = time.perf_counter()
    with profile(activities=activities) as seen:
        training.run_epoch()
    wall = time.perf_counter() - began
    events = seen.key_averages()
    if device.type == "cuda":
        figures["busy"] = sum(event.self_device_time_total for event in events) / 1e6 / wall
    shares: dict[str, float] = defaultdict(float)
    for event in events:
        group = next((g for g, words in GROUPS.items() if any(word in event.key for word in words)), "the rest")
        shares[group] += event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
    whole = sum(shares.values())
    figures |= {f"share: {group}": shares[group] / whole for group in (*GROUPS, "the rest")}
    for name, value in figures.items():
        print(f"{name:55} {value:10.3f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
