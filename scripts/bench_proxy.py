#!/usr/bin/env python
"""The proxy trainer beside Ultralytics' own `train()`: the same architectures on the same images, in one run.

    scripts/bench_proxy.py [--data YAML] [--imgsz 160] [--architectures 3] [--seeds 3] [--device cpu] [--quick] [--json OUT]

Four ways to train each architecture with each seed, one after the other, so that what slows the machine slows all:

    theirs          YOLO(yaml).train(...) for 12 epochs with its own recipe; plots off, images in memory, no loader processes
    ours, same work the proxy trainer's engine for as many epochs of the same batches, augmentation, optimizer, rates, warm-up,
                    steps and weight average
    ours            the proxy recipe, for the fewest epochs whose mean mAP reaches that of `theirs`
    theirs, recipe  Ultralytics with that recipe and those epochs, as far as its settings go: what the engine alone is worth

Every training runs in a warm process of one thread (both libraries imported, the data known), so that imports count for
neither; ours with the environment of a search's workers. Seconds are CPU seconds of that process. mAP50-95 is taken by one
and the same evaluation on the held-out part: of the last weights, and where Ultralytics sets the mark that `ours` has to
reach, of its best epoch. For two cores, Ultralytics gets two threads, ours two processes of one thread, on whatever cores the
machine has; these are wall-clock seconds per architecture and mean something only on a quiet machine.

    same_work_per_core     theirs / ours, same work           map_difference     mean mAP of ours, same work, less theirs, with
                                                              a 90% interval over the pairs (Student's t)
    to_same_map_per_core   theirs / ours                      engine_share       theirs, recipe / ours
    to_same_map_two_cores  the same on two cores, wall clock  recipe_share       theirs / theirs, recipe
    fixed_seconds_warm     what a trial costs without its epochs (one validation included): the intercept over 1 and 3 epochs
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from nas.hardware import worker_environment

THEIR_EPOCHS = 12
OUR_EPOCHS = (1, 2, 3, 4, 5, 6, 8, 10)
THEIR_BATCH = 16

Job = dict[str, Any]


class Process:
    """A warm process that trains; jobs and results are JSON lines."""

    def __init__(self, threads: int, how: str) -> None:
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        quiet = {"YOLO_OFFLINE": "1", "YOLO_AUTOINSTALL": "False", "YOLO_VERBOSE": "False"}
        environment = os.environ | {name: str(threads) for name in names} | quiet
        if how == "ours":
            environment |= {name: value for name, value in worker_environment(1, "cpu", threads)[0].items() if value}
        command = [sys.executable, __file__, "--serve", str(threads)]
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def run(self, job: Job) -> dict[str, float]:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("{"):
                result: dict[str, float] = json.loads(line)
                return result
        raise SystemExit(f"a training died: {job['how']} (run it alone to see why)")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def serve(threads: int) -> None:
    """Train what stdin asks for, answer with mAP, seconds and peak memory."""
    import torch

    import nas.yolo  # noqa: F401

    torch.set_num_threads(threads)
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        job = json.loads(line)
        train = {"ours": ours, "theirs": theirs}[job["how"]]
        cpu, wall = time.process_time(), time.perf_counter()
        scores = train(job)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        out.write(json.dumps({**scores(), "cpu": cpu, "wall": wall, "peak_gb": peak}) + "\n")


def ours(job: Job) -> Any:
    """The proxy trainer."""
    from dataclasses import replace

    import torch

    from nas.training.augment import Augmentation
    from nas.training.precision import training_dtype
    from nas.training.proxy import train_proxy
    from nas.training.recipe import Recipe
    from nas.yolo.build import build
    from nas.yolo.metrics import evaluate

    fit, held_out, nc = _images(job)
    torch.manual_seed(job["seed"])
    model = build(job["model"])
    device = torch.device(job["device"])
    if job["recipe"] == "theirs":
        recipe = replace(Recipe(), **job["as_theirs"], augmentation=Augmentation(**job["augmentation"]))
        precision = training_dtype(device, Path(job["cache"]))
        training = their_loop()(model, fit, recipe, [job["epochs"]], job["seed"], device, precision)
        for _ in range(job["epochs"]):
            training.run_epoch()
        training.average.apply()
        found = evaluate(model, held_out, nc, batch=32, device=device).fitness.map
        return lambda: {"map": found}
    outcome = train_proxy(
        model,
        fit,
        held_out,
        nc=nc,
        rungs=[job["epochs"]],
        recipe=Recipe(),
        seed=job["seed"],
        device=device,
        precision=training_dtype(device, Path(job["cache"])),
        report=lambda _: None,
    )
    return lambda: {"map": outcome.map}


def their_loop() -> Any:
    """Our engine in Ultralytics' loop: an uneven last batch, and a warm-up of three epochs in which the
    rate and the passes to a step rise, while the rate's peak falls linearly over all epochs."""
    import math

    import torch

    from nas.training.augment import generator_of
    from nas.training.proxy import Training

    class TheirLoop(Training):
        _stepped = -1

        def run_epoch(self) -> float:
            (leg,) = self._legs
            recipe, images = self._recipe, len(self._batches.images)
            passes = -(-images // recipe.batch)
            warmup = min(3, leg.epochs - 1) * passes
            how = leg.augmentation(self.epoch, recipe)
            order = torch.randperm(images, generator=generator_of(self._seed, self.epoch))
            fall = 1 - (1 - recipe.final_lr) * self.epoch / leg.epochs
            self._model.train()
            for index, rows in enumerate(order.split(recipe.batch)):
                done = index + passes * self.epoch
                risen = min(1.0, done / warmup) if warmup else 1.0
                for group in self._optimizer.param_groups:
                    group["lr"] = recipe.lr * fall * risen
                self._pass(self._batches.make(rows, how, generator_of(self._seed, self.epoch, index + 1)))
                if done - self._stepped >= max(1, round(1 + (recipe.accumulate - 1) * risen)):
                    torch.nn.utils.clip_grad_norm_(self._weights, recipe.clip)
                    self._optimizer.step()
                    self._optimizer.zero_grad()
                    self.average.horizon = 1 / (1 - 0.9999 * (1 - math.exp(-(self.average.steps + 1) / 2000)))
                    self.average.update()
                    self._stepped = done
            self.epoch += 1
            return 0.0

    return TheirLoop


def theirs(job: Job) -> Any:
    """Ultralytics' own trainer; the score is taken afterwards by our evaluation of its final weights."""
    import torch
    from ultralytics import YOLO

    from nas.yolo.metrics import evaluate

    folder = Path(job["folder"]) / "runs"
    shutil.rmtree(folder, ignore_errors=True)
    recipe = job["theirs_as_ours"] if job["recipe"] == "ours" else {"batch": THEIR_BATCH}
    settings = dict(
        data=job["ultralytics_data"],
        epochs=job["epochs"],
        imgsz=job["imgsz"],
        seed=job["seed"],
        device=job["device"],
        project=str(folder),
        name="t",
        plots=False,
        cache="ram",
        workers=job["loaders"],
        verbose=False,
        amp=False,
        **recipe,
    )
    YOLO(job["yaml"]).train(**settings)

    def score(weights: str) -> float:
        model = YOLO(folder / "t" / "weights" / weights).model.float().to(job["device"])
        _, held_out, nc = _images(job)
        return evaluate(model, held_out, nc, batch=32, device=torch.device(job["device"])).fitness.map

    def scores() -> dict[str, float]:
        return {"map": score("last.pt"), "map_best": score("best.pt")}

    return scores


def _images(job: Job) -> tuple[Any, Any, int]:
    from nas.execution.work import images_of

    return images_of(job["data"], job["root"], job["cache"], job["imgsz"], 0.2, 0, False)


def prepare(options: argparse.Namespace, folder: Path) -> tuple[list[Job], Job]:
    """The architectures as partial jobs, and what all jobs share."""
    import yaml

    from nas.cache import cache_root
    from nas.dataset.builtin import builtin_dataset
    from nas.dataset.description import read_dataset
    from nas.dataset.labels import label_path
    from nas.space.architecture import model_yaml
    from nas.space.reader import find_space, read_space

    dataset = read_dataset(builtin_dataset() if options.data is None else options.data)
    parts = dict(zip(("train", "val"), dataset.split(0.2, 0), strict=True))
    for part, indices in parts.items():  # Ultralytics gets the same two parts, as folders of its own
        for kind in ("images", "labels"):
            (folder / kind / part).mkdir(parents=True)
        for index in indices:
            image = dataset.train[index]
            shutil.copy(image, folder / "images" / part)
            if (label := label_path(image)).is_file():
                shutil.copy(label, folder / "labels" / part)
    described = {"path": str(folder), "train": "images/train", "val": "images/val", "names": dict(enumerate(dataset.names))}
    (folder / "data.yaml").write_text(yaml.safe_dump(described), encoding="utf-8")

    space = read_space(find_space("yolo11n-blocks"))
    rng = random.Random(0)
    chosen = [space.baseline]
    while len(chosen) < options.architectures:
        drawn = space.sample(rng, options.imgsz)
        if drawn is not None and len({p.block for p in drawn.placements}) >= 4:  # mixed blocks
            chosen.append(drawn)
    jobs: list[Job] = []
    for architecture in chosen:
        model = model_yaml(space.skeleton, architecture, dataset.nc)
        path = folder / f"{architecture.id}.yaml"
        path.write_text(yaml.safe_dump(model), encoding="utf-8")
        jobs.append({"name": "yolo11n" if architecture.is_skeleton else architecture.id, "model": model, "yaml": str(path)})

    as_theirs = {
        "batch": THEIR_BATCH,
        "accumulate": 64 // THEIR_BATCH,  # to its nominal batch of 64
        "lr": round(0.002 * 5 / (4 + dataset.nc), 6),  # of AdamW, which its optimizer "auto" takes for so few steps
        "weight_decay": 0.0005,
        "close_mosaic": 10 / THEIR_EPOCHS,
    }
    theirs_as_ours = {
        "batch": 8,
        "nbs": 8,
        "optimizer": "AdamW",
        "lr0": 0.004,
        "cos_lr": True,
        "warmup_epochs": 0.5,
        "warmup_bias_lr": 0.0,
        "momentum": 0.9,
        "weight_decay": 0.01,
        "mosaic": 0.0,
        "scale": 0.0,
        "translate": 0.0,
        "hsv_h": 0.0,
        "hsv_s": 0.0,
        "hsv_v": 0.0,
        "erasing": 0.0,
    }
    shared = {
        "data": str(dataset.yaml),
        "root": str(dataset.root),
        "cache": str(cache_root()),
        "ultralytics_data": str(folder / "data.yaml"),
        "imgsz": options.imgsz,
        "device": options.device,
        "as_theirs": as_theirs,
        "theirs_as_ours": theirs_as_ours,
        "augmentation": {
            "mosaic": 1.0,
            "scale": 0.5,
            "translate": 0.1,
            "fliplr": 0.5,
            "hsv_h": 0.015,
            "hsv_s": 0.7,
            "hsv_v": 0.4,
        },
        "loaders": 0,
    }
    return jobs, shared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="dataset YAML; the built-in set where none is given")
    parser.add_argument("--imgsz", type=int, default=160)
    parser.add_argument("--architectures", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="one architecture, one seed")
    parser.add_argument("--json", type=Path, metavar="OUT")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return
    if options.quick:
        options.architectures = options.seeds = 1
    with tempfile.TemporaryDirectory(prefix="nas-bench-") as place:
        figures = compare(options, Path(place))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


def compare(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Run everything, print the table, return the figures."""
    architectures, shared = prepare(options, folder)
    pairs = [(architecture, seed) for architecture in architectures for seed in range(options.seeds)]
    us, them = Process(1, "ours"), Process(1, "theirs")
    beside = {"folder": str(folder / "a")}

    def run(
        process: Process, how: str, recipe: str, epochs: int, architecture: Job, seed: int, **more: Any
    ) -> dict[str, float]:
        return process.run(
            shared | beside | architecture | {"how": how, "recipe": recipe, "epochs": epochs, "seed": seed} | more
        )

    for process, how in ((us, "ours"), (them, "theirs")):  # imports, decoding, first calls
        run(process, how, "ours", 1, architectures[0], 0)
    rows: dict[str, list[dict[str, float]]] = {"theirs": [], "ours, same work": []}
    for architecture, seed in pairs:
        rows["theirs"].append(run(them, "theirs", "theirs", THEIR_EPOCHS, architecture, seed))
        rows["ours, same work"].append(run(us, "ours", "theirs", THEIR_EPOCHS, architecture, seed))
        latest = ", ".join(f"{name} {row[-1]['map']:.3f} in {row[-1]['cpu']:.1f} s" for name, row in rows.items())
        print(f"{architecture['name']} seed {seed}: {latest}", flush=True)
    wanted = _mean(rows["theirs"], "map_best")
    for epochs in OUR_EPOCHS:
        rows["ours"] = [run(us, "ours", "ours", epochs, *pair) for pair in pairs]
        if _mean(rows["ours"], "map") >= wanted:
            break
    rows["theirs, recipe"] = [run(them, "theirs", "ours", epochs, *pair) for pair in pairs]
    fixed = _fixed_seconds(lambda e: run(us, "ours", "ours", e, architectures[0], 0)["wall"])
    for process in (us, them):
        process.close()

    print(f"\n{'':16} {'epochs':>6} {'mAP50-95':>9} {'CPU s':>7} {'wall s':>7} {'peak GB':>8}")
    lengths = {"theirs": THEIR_EPOCHS, "ours, same work": THEIR_EPOCHS, "ours": epochs, "theirs, recipe": epochs}
    for name, row in rows.items():
        means = [_mean(row, what) for what in ("map", "cpu", "wall", "peak_gb")]
        print(f"{name:16} {lengths[name]:6} {means[0]:9.3f} {means[1]:7.1f} {means[2]:7.1f} {means[3]:8.2f}")
    cpu = {name: _mean(row, "cpu") for name, row in rows.items()}
    differences = [mine["map"] - other["map"] for mine, other in zip(rows["ours, same work"], rows["theirs"], strict=True)]
    figures = {
        "same_work_per_core": cpu["theirs"] / cpu["ours, same work"],
        "map_difference": statistics.fmean(differences),
        "to_same_map_per_core": cpu["theirs"] / cpu["ours"],
        "epochs_to_same_map": epochs,
        "map_theirs": _mean(rows["theirs"], "map"),
        "map_theirs_best_epoch": wanted,
        "map_ours": _mean(rows["ours"], "map"),
        "engine_share": cpu["theirs, recipe"] / cpu["ours"],
        "recipe_share": cpu["theirs"] / cpu["theirs, recipe"],
        "fixed_seconds_warm": fixed,
    }
    if len(differences) > 1:
        figures["map_difference_interval"] = _interval(differences)
    if options.device == "cpu":
        figures["to_same_map_two_cores"] = _two_cores(shared, architectures, folder, epochs)
    print()
    for name, value in figures.items():
        print(f"{name:22} {value:.3f}")
    return figures


def _mean(rows: list[dict[str, float]], what: str) -> float:
    return statistics.fmean(row[what] for row in rows)


def _interval(values: list[float]) -> float:
    """Half the width of the mean's 90% interval: Student's t, by its expansion around the normal."""
    freedom = len(values) - 1
    z = statistics.NormalDist().inv_cdf(0.95)
    t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return float(t * statistics.stdev(values) / len(values) ** 0.5)


def _fixed_seconds(wall: Any) -> float:
    """What a trial costs without its epochs: the line through 1 and 3 epochs at 0 (the lower of two tries each)."""
    one, three = (min(wall(epochs) for _ in range(2)) for epochs in (1, 3))
    return max(0.0, one - (three - one) / 2)


def _two_cores(shared: Job, architectures: list[Job], folder: Path, epochs: int) -> float:
    """Wall clock per architecture: Ultralytics with two threads, over two of our processes side by side."""
    if hasattr(os, "sched_setaffinity"):  # the call itself may be pinned to one core
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
    them = Process(2, "theirs")
    job = shared | {"folder": str(folder / "two")}
    them.run(job | architectures[0] | {"how": "theirs", "recipe": "ours", "epochs": 1, "seed": 0})
    theirs = [
        them.run(job | a | {"how": "theirs", "recipe": "theirs", "epochs": THEIR_EPOCHS, "seed": 0})["wall"]
        for a in architectures
    ]
    them.close()
    pair = [Process(1, "ours"), Process(1, "ours")]
    todo = [job | a | {"how": "ours", "recipe": "ours", "epochs": epochs, "seed": 0} for a in architectures]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda process: process.run(todo[0]), pair))  # warm
        began = time.perf_counter()
        list(pool.map(lambda process: [process.run(each) for each in todo], pair))  # each does all: two a turn
        ours = (time.perf_counter() - began) / (2 * len(todo))
    for process in pair:
        process.close()
    return statistics.fmean(theirs) / ours


if __name__ == "__main__":
    main()
