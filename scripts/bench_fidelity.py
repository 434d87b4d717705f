#!/usr/bin/env python
"""Does a cheap proxy rank architectures as a long training does?

    scripts/bench_fidelity.py [--data YAML] [--imgsz 160] [--architectures 16] [--long 40] [--hours 1] [--json OUT]

Takes diverse architectures of the default space (the skeleton, and random ones evenly spread over multiply-adds), trains
each for `--long` epochs with two seeds, and compares every proxy's ranking with the mean of the two: Kendall's tau-b with a
90% bootstrap interval over architectures, and the CPU seconds that an architecture costs. Proxies are shorter trainings
(also at a smaller image size, with half the data, of a third seed), zero-cost scores, and a combination. `noise` is the tau
between the two long seeds: no proxy can be expected to do better.

Finished trainings are kept in a file, so a second call goes on where the first one ended (`--hours` bounds a
call), its table grows, and a last line says how much is done.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

VERSION = 1  # of the trainer, as far as results go: raise it to train anew
SHORT = (1, 3, 5, 10)
BOOTSTRAPS = 1000
IDENTITY = ("model", "imgsz", "rungs", "batch", "lr0", "held_out", "split_seed")  # what a result depends on, beside the data

Job = dict[str, Any]


def train(job: Job) -> dict[str, float]:
    """mAP and CPU seconds of one training, in a warm process."""
    import torch

    from nas.execution import work
    from nas.seeds import derive

    torch.set_num_threads(1)
    began = time.process_time()
    told = work.train(job["train"], derive(job["seed"], 0, "train"), lambda _: None)
    return {"map": told["map"], "cpu": time.process_time() - began}


def scores(job: Job) -> dict[str, float]:
    """Zero-cost scores and the CPU seconds of all of them."""
    from nas.execution import work
    from nas.seeds import derive

    began = time.process_time()
    told = work.scores(job["scores"], derive(job["seed"], 0, "train"), lambda _: None)
    return {**told, "cpu": time.process_time() - began}


class Kept:
    """Results by job, one JSON line each; a torn last line is skipped."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, dict[str, float]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
            try:
                entry = json.loads(line)
                self._known[entry["key"]] = entry["result"]
            except (ValueError, LookupError, TypeError):
                continue

    @staticmethod
    def key(job: Job) -> str:
        return hashlib.sha256(json.dumps([VERSION, job["identity"]], sort_keys=True).encode()).hexdigest()[:20]

    def get(self, job: Job) -> dict[str, float] | None:
        return self._known.get(self.key(job))

    def put(self, job: Job, result: dict[str, float]) -> None:
        self._known[self.key(job)] = result
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"\n{json.dumps({'key': self.key(job), 'result': result})}\n")


def plan(options: argparse.Namespace) -> list[dict[str, Job]]:
    """Per architecture its jobs by name, the most telling first."""
    from nas.cache import cache_root
    from nas.dataset.builtin import builtin_dataset
    from nas.dataset.description import read_dataset
    from nas.execution.work import TrainJob
    from nas.seeds import derive
    from nas.space.architecture import model_yaml
    from nas.space.reader import find_space, read_space
    from nas.training import zero_cost

    dataset = read_dataset(builtin_dataset() if options.data is None else options.data)
    space = read_space(find_space(options.space))
    jobs = []
    for architecture in diverse(space, options.architectures, options.imgsz):

        def job(epochs: int, seed: int, architecture: Any = architecture, **more: Any) -> Job:
            whole = TrainJob(
                model_yaml(space.skeleton, architecture, dataset.nc),
                data=str(dataset.yaml),
                root=str(dataset.root),
                cache=str(cache_root()),
                imgsz=more.get("imgsz", options.imgsz),
                rungs=[epochs],
                batch=8,
                lr0=0.004,
                held_out=0.2,
                split_seed=derive(0, 0, "split"),
                device=options.device,
                threads=1,
                fraction=more.get("fraction", 1.0),
            )
            told = {name: value for name, value in asdict(whole).items() if name in IDENTITY}
            identity = [told, whole.fraction, dataset.digest, seed]
            return {"what": architecture.id, "seed": seed, "identity": identity, "train": asdict(whole)}

        smaller = max(64, options.imgsz // 2 // 32 * 32)
        named = {f"long{seed}": job(options.long, seed) for seed in (0, 1)}
        named |= {f"{epochs}_epochs": job(epochs, 2) for epochs in SHORT}
        named |= {f"10_epochs_{smaller}px": job(10, 2, imgsz=smaller), "10_epochs_half_data": job(10, 2, fraction=0.5)}
        whole = named["long0"]
        identity = ["zero-cost", zero_cost.BATCH, zero_cost.SIDE, whole["identity"]]
        named["zero_cost"] = {"what": architecture.id, "seed": 2, "identity": identity, "scores": for_scores(whole["train"])}
        jobs.append(named)
    return jobs


def for_scores(whole: Job) -> Job:
    """What `work.scores` reads of a training's job."""
    from dataclasses import fields

    from nas.execution.work import ScoreJob

    return {entry.name: whole[entry.name] for entry in fields(ScoreJob) if entry.name in whole}


def diverse(space: Any, count: int, imgsz: int) -> list[Any]:
    """The skeleton, and random architectures evenly spread over multiply-adds."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from nas.space.architecture import model_yaml
    from nas.yolo.build import build

    def size(architecture: Any) -> float:
        """Operations of a small image, of convolutions and products: trainings that are kept were chosen by these."""
        model = build(model_yaml(space.skeleton, architecture, 3)).eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, 3, 64, 64))
        return float(counter.get_total_flops())

    rng = random.Random(0)
    drawn = list(dict.fromkeys(space.sample(rng, imgsz) for _ in range(4 * count)))
    drawn.sort(key=size)
    places = np.linspace(0, len(drawn) - 1, count - 1).round().astype(int)
    return [space.baseline, *(drawn[place] for place in places)]


def work_through(jobs: list[dict[str, Job]], kept: Kept, workers: int, seconds: float) -> None:
    """Do what is not done yet, architecture by architecture, until the time is over."""
    ends = time.monotonic() + seconds
    todo = [job for named in jobs for job in named.values() if kept.get(job) is None]
    todo.sort(key=lambda job: "train" in job)  # scores take a second each
    running: dict[Future[dict[str, float]], Job] = {}
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        while todo or running:
            while todo and len(running) < workers and time.monotonic() < ends:
                job = todo.pop(0)
                running[pool.submit(train if "train" in job else scores, job)] = job
            if not running:
                return
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(done)
                kept.put(job, done.result())
                print(f"{len(todo)} to go; {job['what']}: {done.result()}", file=sys.stderr, flush=True)


def table(jobs: list[dict[str, Job]], kept: Kept) -> dict[str, Any]:
    """Taus of every proxy over the architectures that have all they need."""
    found = [{name: kept.get(job) for name, job in named.items()} for named in jobs]
    whole = [row for row in found if row["long0"] and row["long1"]]
    figures: dict[str, Any] = {"architectures": len(whole), "of": len(jobs)}
    if len(whole) < 4:
        return figures
    seeds = np.array([[row[name]["map"] for name in ("long0", "long1")] for row in whole])
    truth = seeds.mean(1)
    figures["noise"] = tau(seeds[:, 0], seeds[:, 1])
    figures["seed_sd"] = float(np.sqrt(np.mean((seeds[:, 0] - seeds[:, 1]) ** 2) / 2))
    figures["map_sd"] = float(truth.std())
    columns: dict[str, tuple[list[float | None], float]] = {}
    for name in jobs[0]:
        if name.startswith("long"):
            continue
        if name != "zero_cost":
            columns[name] = ([row[name]["map"] if row[name] else None for row in whole], _cost(whole, name))
            continue
        known = [row[name] for row in whole if row[name]]
        for score in sorted(set(known[0]) - {"cpu"}) if known else ():
            columns[score] = ([row[name][score] if row[name] else None for row in whole], _cost(whole, name))
    columns |= combined(columns)
    print(f"{'proxy':26} {'tau':>6} {'90% interval':>16} {'CPU s':>8} {'n':>3}")
    for name, (values, cost) in columns.items():
        have = [index for index, value in enumerate(values) if value is not None]
        if len(have) < 4:
            continue
        x, y = np.array([values[i] for i in have], float), truth[have]
        low, high = interval(x, y)
        figures[f"tau_{name}"], figures[f"interval_{name}"], figures[f"cpu_{name}"] = tau(x, y), [low, high], cost
        print(f"{name:26} {figures[f'tau_{name}']:6.2f} {f'[{low:.2f}, {high:.2f}]':>16} {cost:8.1f} {len(have):3}")
    low, high = interval(seeds[:, 0], seeds[:, 1])
    print(
        f"{'noise (long, two seeds)':26} {figures['noise']:6.2f} {f'[{low:.2f}, {high:.2f}]':>16} {_cost(whole, 'long0'):8.1f}"
    )
    print(f"mAP50-95 of the long trainings: sd over architectures {figures['map_sd']:.4f}, over seeds {figures['seed_sd']:.4f}")
    return figures


def _cost(rows: list[dict[str, Any]], name: str) -> float:
    return float(np.mean([row[name]["cpu"] for row in rows if row[name]] or [0.0]))


def combined(columns: dict[str, tuple[list[float | None], float]]) -> dict[str, tuple[list[float | None], float]]:
    """Mean rank of a short training and the zero-cost scores that are not about size alone."""
    found = {}
    for base in ("3_epochs", "5_epochs"):
        parts = [columns[name] for name in (base, "nwot", "log_macs") if name in columns]
        if len(parts) == 3 and all(value is not None for values, _ in parts for value in values):
            ranks = np.mean([np.argsort(np.argsort(np.array(values, float))) for values, _ in parts], axis=0)
            found[f"{base}+nwot+log_macs"] = (list(ranks), parts[0][1] + parts[1][1])
    return found


def tau(x: np.ndarray, y: np.ndarray) -> float:
    """Kendall's tau-b; 0 where one of both is constant."""
    a, b = (np.sign(v[:, None] - v[None, :])[np.triu_indices(len(v), 1)] for v in (x, y))
    scale = np.sqrt((a != 0).sum() * (b != 0).sum())
    return float((a * b).sum() / scale) if scale else 0.0


def interval(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """90% bootstrap interval of tau over architectures."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(x), size=(BOOTSTRAPS, len(x)))
    low, high = np.percentile([tau(x[rows], y[rows]) for rows in drawn], [5, 95])
    return float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="dataset YAML; the built-in set where none is given")
    parser.add_argument("--space", default="yolo11n-blocks")
    parser.add_argument("--imgsz", type=int, default=160)
    parser.add_argument("--architectures", type=int, default=16)
    parser.add_argument("--long", type=int, default=40, help="epochs of the reference")
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--kept", type=Path, help="where finished trainings are kept; a file in the cache folder by default")
    parser.add_argument("--quick", action="store_true", help="five architectures, a reference of 10 epochs")
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    if options.quick:
        options.architectures, options.long = 5, 10
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    os.environ |= {"YOLO_OFFLINE": "1", "YOLO_AUTOINSTALL": "False", "YOLO_VERBOSE": "False"}

    from nas.cache import cache_root

    jobs, kept = plan(options), Kept(options.kept or cache_root() / "fidelity.jsonl")
    work_through(jobs, kept, options.workers, 3600 * options.hours)
    figures = table(jobs, kept)
    left = sum(kept.get(job) is None for named in jobs for job in named.values())
    print(f"{figures['architectures']} of {figures['of']} architectures have both long trainings; {left} jobs are left")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
