#!/usr/bin/env python
"""Does imitation rank architectures, and does it train them?

    scripts/bench_imitation.py [--data YAML] [--imgsz 160] [--parts a,b] [--hours 1] [--json OUT]

A teacher is trained, all alternatives of a space learn from it, and architectures with equally many replaced slots are drawn
(so that "stay near the teacher" cannot rank them). Final is what a user gets: the assembled network, trained on.

a: Kendall's tau-b of every cheap score with the final mAP, 90% bootstrap interval over architectures, the partial tau given
   the number of replaced slots, the CPU seconds that an architecture costs, and tau with the trainings from scratch of part b.
   The final of another seed stands beside them: no score can rank better than what it is to foretell does itself.
   Also what an assembled evaluation takes beside a validation, and imitation's memory beside that of the teacher's training.
b: mAP and cost of the final beside trainings from scratch, and of some architectures beside trainings to convergence, of two
   seeds; these are also trained on for a third of those epochs: that is what `final_gain_map` (mAP beyond the converged
   training) and `final_cost_ratio` (its CPU seconds over ours) are of.
c: whole searches at equal budgets under a latency limit (`bench_imitation_searches.py`). Give it the machine alone.

What is finished is kept in a file, so a second call goes on where the first one ended (`--hours` bounds a call), its
table grows, and a last line says how much is done.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import random
import sys
import time
from collections import Counter, defaultdict
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from bench_fidelity import Kept, interval, tau
from bench_imitation_searches import Searches

from nas.pace import GROUP

VERSION = 1  # of all that is measured here: raise it to do everything anew
NAMED = ("tau_assembled_final", "tau_scratch_final", "tau_partial", "final_gain_map", "final_cost_ratio", "hypervolume_ratio")
Job = dict[str, Any]


def do(job: Job) -> dict[str, Any]:
    """A job's result and its CPU seconds (on a GPU those of the clock), in a warm process."""
    import torch

    from nas.seeds import derive

    torch.set_num_threads(1)
    module, _, function = job["kind"].partition(":")
    clock = time.perf_counter if job["payload"].get("device") == "cuda" else time.process_time
    began = clock()
    told = getattr(importlib.import_module(module), function)(job["payload"], derive(job["seed"], 0, "train"), lambda _: None)
    if "fault" in told:
        raise SystemExit(f"{told['fault']}\n  {told['cure']}")
    return {**told, "cpu": clock() - began}


class Plan:
    """All jobs, by name, in stages: what a stage needs, an earlier one has made."""

    def __init__(self, options: argparse.Namespace) -> None:
        from nas.cache import cache_root
        from nas.dataset.builtin import builtin_dataset
        from nas.dataset.description import read_dataset
        from nas.imitation.alternatives import alternatives_of
        from nas.imitation.learn import Lessons
        from nas.space.architecture import model_yaml
        from nas.space.reader import read_space
        from nas.yolo.build import build, multiply_adds, parameters

        self.options = options
        self.dataset = read_dataset(builtin_dataset() if options.data is None else options.data)
        self.folder = cache_root() / "bench_imitation"
        self.folder.mkdir(parents=True, exist_ok=True)
        choices = {"block": ["keep", "riformer", "efficientvit", "repvit", "irmb", "mobile_mqa"], "depth": [1]}
        slots = {slot: dict(choices) for slot in options.slots.split(",")} | {options.narrow: {**choices, "width": [0.5, 1.0]}}
        text = json.dumps({"skeleton": options.skeleton, "slots": slots})  # JSON is YAML
        (self.folder / "space.yaml").write_text(text, encoding="utf-8")
        self.space = read_space(self.folder / "space.yaml")
        self.skeleton = model_yaml(self.space.skeleton, self.space.baseline, self.dataset.nc)
        self.lessons = Lessons(rounds=tuple(options.rounds))
        self.alternatives = [a for slot in alternatives_of(self.space).values() for a in slot.values() if a is not None]
        self.architectures = drawn(self.space, options.architectures)
        self.yaml = {a.id: model_yaml(self.space.skeleton, a, self.dataset.nc) for a in self.architectures}
        self.known = {}
        for architecture in self.architectures:
            model = build(self.yaml[architecture.id]).eval()
            replaced = len(architecture.placements)
            self.known[architecture.id] = {"macs": multiply_adds(model, 64), "params": parameters(model), "replaced": replaced}

    def teacher(self) -> Job:
        return self._train("teacher", self.skeleton, self.options.teacher, 0, None, self._file("teacher"))

    def meet(self) -> Job:
        return self.job("meet", "nas.execution.imitate:meet", self._shared(), [self.teacher()["identity"]])

    def library(self) -> Path:
        from nas.imitation.library import Library

        depends = [VERSION, self.teacher()["identity"], self.lessons.plain()]
        return Library.of(self.folder, bench=depends).folder

    def imitate(self) -> list[Job]:
        """One job per slot, so that a call can end between two."""
        slots = defaultdict(list)
        for alternative in self.alternatives:
            slots[alternative.layer].append(alternative.plain())
        jobs = []
        for layer, plain in slots.items():
            payload = {**self._shared(), "alternatives": plain, "library": str(self.library()), "lessons": self.lessons.plain()}
            identity = [str(self.library().name), plain]
            told = self.job(f"imitate layer {layer}", "nas.execution.imitate:imitate", payload, identity)
            jobs.append({**told, "file": str(self.library())})
        return jobs

    def assemble(self, architecture: Any, settle: int) -> Job:
        payload = {**self._shared(), "model": self.yaml[architecture.id], "library": str(self.library()), "settle": settle}
        payload |= {"keep": str(self._file(architecture.id))} if not settle else {}
        identity = [str(self.library().name), self.yaml[architecture.id], settle]
        told = self.job(f"assemble {architecture.id} {settle}", "nas.execution.imitate:assemble", payload, identity)
        return {**told, "file": payload.get("keep")}

    def loss(self, architecture: Any) -> Job:
        payload = {**self._shared(), "weights": str(self._file(architecture.id))}
        identity = ["loss", str(self.library().name), self.yaml[architecture.id]]
        return self.job(f"loss {architecture.id}", "bench_imitation_jobs:loss", payload, identity)

    def memory(self) -> Job:
        """Of an epoch of the teacher's training, and of as many alternatives as learn together at most."""
        train = {**self.teacher()["payload"], "rungs": [1], "keep": None}
        lessons = {**self.lessons.plain(), "rounds": [1], "enough": -1e9}  # all of them learn
        common = {**self._shared(), "lessons": lessons, "library": str(self.folder / "memory")}
        imitate = {**common, "alternatives": [a.plain() for a in self.alternatives[:GROUP]]}
        identity = ["memory", 2, self.teacher()["identity"], lessons, imitate["alternatives"]]
        return self.job("memory", "bench_imitation_jobs:memory", {"train": train, "imitate": imitate}, identity)

    def final(self, architecture: Any, epochs: int, seed: int) -> Job:
        start = self._file(architecture.id)
        job = self._train(f"final {architecture.id}", self.yaml[architecture.id], epochs, seed, str(start), None)
        return {**job, "identity": [job["identity"], str(self.library().name)]}

    def scratch(self, architecture: Any, epochs: int, seed: int) -> Job:
        return self._train(f"scratch {architecture.id}", self.yaml[architecture.id], epochs, seed, None, None)

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}-{self.dataset.digest[:12]}-{self.options.imgsz}-{self.options.teacher}.pt"

    def data(self) -> dict[str, Any]:
        from nas.cache import cache_root
        from nas.seeds import derive

        data, root, cache = str(self.dataset.yaml), str(self.dataset.root), str(cache_root())
        split = {"held_out": 0.2, "split_seed": derive(0, 0, "split")}
        where = {"data": data, "root": root, "cache": cache, "imgsz": self.options.imgsz}
        return {**where, **split, "device": self.options.device, "threads": 1, "names": list(self.dataset.names)}

    def _shared(self) -> dict[str, Any]:
        return {**self.data(), "skeleton": self.skeleton, "teacher": str(self._file("teacher"))}

    def _train(self, name: str, yaml: Any, epochs: int, seed: int, weights: str | None, keep: Path | None) -> Job:
        from nas.execution.work import TrainJob

        kept = None if keep is None else str(keep)
        job = asdict(TrainJob(yaml, rungs=[epochs], batch=8, lr0=0.004, weights=weights, keep=kept, **self.data()))
        told = self.job(f"{name}: {epochs} epochs, seed {seed}", "nas.execution.work:train", job, [yaml, epochs], seed)
        return {**told, "file": kept}

    def job(self, name: str, kind: str, payload: Any, identity: Any, seed: int = 0) -> Job:
        whole = [VERSION, kind, self.dataset.digest, self.options.imgsz, self.options.device, identity, seed]
        return {"name": name, "kind": kind, "payload": payload, "seed": seed, "identity": whole}


def drawn(space: Any, count: int) -> list[Any]:
    """Architectures one with a single slot replaced, and equally many with 2, 4 and 6."""
    from nas.space.architecture import Architecture

    rng = random.Random(0)
    slots = [c for c in space.slots if len(c.options) > 1]
    sizes = [min(size, len(slots)) for size in (2, 4, 6)]
    found: dict[Any, None] = {}
    for _ in range(1000 * count):
        if len(found) == count:
            return list(found)
        size = 1 if len(found) == 0 else sizes[len(found) % len(sizes)]
        chosen = rng.sample(slots, size)
        placed = [rng.choice([option for option in choices.options if option is not None]) for choices in chosen]
        found[Architecture(space.skeleton.name, tuple(sorted(placed, key=lambda p: p.layer)))] = None
    raise SystemExit(f"there are too few architectures in these slots: --architectures {len(found)}")


def stages(plan: Plan) -> list[list[Job]]:
    """What a call works through, the most telling first."""
    options = plan.options
    found = [[plan.teacher()], [plan.meet()], plan.imitate()]
    found.append([plan.assemble(a, 0) for a in plan.architectures])
    some = plan.architectures[:: max(1, len(plan.architectures) // options.converged)][: options.converged]
    if "a" in options.parts:
        found.append([plan.loss(a) for a in plan.architectures])
    found.append([plan.final(a, options.final, 1) for a in plan.architectures])
    if "a" in options.parts:
        found.append([plan.assemble(a, 4) for a in plan.architectures])
        found.append([plan.scratch(a, options.short, 2) for a in plan.architectures])
        found.append([plan.final(a, 1, 3) for a in plan.architectures] + [plan.memory()])
    found.append([plan.final(a, options.final, 2) for a in plan.architectures])
    if "b" in options.parts:
        found.append([plan.scratch(a, options.scratch, 1) for a in plan.architectures])
        for seed in (1, 2):  # the longest first
            long = [plan.scratch(a, options.long, seed) for a in some]
            found.append(long + [plan.final(a, options.long // 3, seed) for a in some])
        found.append([plan.scratch(a, options.scratch, 2) for a in plan.architectures])
    return found


def left_its_file(job: Job) -> bool:
    """False where what later jobs read is gone: results travel between machines, weights do not."""
    return job.get("file") is None or Path(job["file"]).exists()


def work_through(found: list[list[Job]], kept: Kept, workers: int, seconds: float) -> None:
    """Do what is not done yet, stage by stage, until the time is over."""
    ends = time.monotonic() + seconds
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        for at, stage in enumerate(found):
            more = any(kept.get(job) is None for later in found[at:] for job in later)
            todo = [job for job in stage if kept.get(job) is None or (more and not left_its_file(job))]
            running: dict[Future[dict[str, Any]], Job] = {}
            while todo or running:
                while todo and len(running) < workers and time.monotonic() < ends:
                    job = todo.pop(0)
                    running[pool.submit(do, job)] = job
                if not running:
                    return
                for done in wait(running, return_when=FIRST_COMPLETED).done:
                    job = running.pop(done)
                    kept.put(job, done.result())
                    told = {n: v for n, v in done.result().items() if n in {"map", "cpu", "unfit", "transferred"}}
                    print(f"{job['name']}: {told}", file=sys.stderr, flush=True)


def partial(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> float:
    """Kendall's partial tau of x and y given z."""
    xy, xz, yz = tau(x, y), tau(x, z), tau(y, z)
    scale = np.sqrt((1 - xz**2) * (1 - yz**2))
    return float((xy - xz * yz) / scale) if scale > 0 else 0.0


def cost_of(plan: Plan, kept: Kept) -> dict[str, Any]:
    """What the teacher and the library are worth and cost."""
    from nas.imitation.library import Library

    figures: dict[str, Any] = {}
    if (teacher := kept.get(plan.teacher())) is not None:
        figures |= {"teacher_map": teacher["map"], "teacher_cpu": teacher["cpu"]}
    if (meeting := kept.get(plan.meet())) is not None:
        assembled = [job["cpu"] for a in plan.architectures if (job := kept.get(plan.assemble(a, 0))) is not None]
        figures["assembled_over_validation"] = float(np.mean(assembled or [float("nan")])) / meeting["cpu"]
    if (memory := kept.get(plan.memory())) is not None:
        figures |= {"training_mb": memory["train_mb"], "imitation_mb": memory["imitate_mb"]}
        figures["imitation_memory_ratio"] = memory["imitate_mb"] / memory["train_mb"]
    library = Library(plan.library())
    told = [kept.get(job) for job in plan.imitate()]
    entries = [entry for entry in map(library.get, plan.alternatives) if entry is not None]
    if entries and all(told):
        figures |= {"alternatives": len(entries), "imitation_cpu": sum(job["cpu"] for job in told if job)}
        figures["starts"] = dict(Counter(entry.start for entry in entries))
        errors = np.array([[entry.drawn, entry.began, entry.error] for entry in entries if not entry.dropped])
        names = ("error_drawn", "error_began", "error_learned")
        figures |= dict(zip(names, np.median(errors, 0).tolist(), strict=True)) | {"error_drawn_worst": errors[:, 0].max()}
        for module in sorted({entry.row[2] for entry in entries}):
            rows = np.array([[e.drawn, e.began, e.error] for e in entries if e.row[2] == module and not e.dropped])
            middle, worst = (", ".join(f"{value:.2f}" for value in row) for row in (np.median(rows, 0), rows.max(0)))
            print(f"{module}: error as drawn, as begun, as learned: median {middle}; worst {worst}")
        figures["dropped"] = sum(bool(entry.dropped) for entry in entries)
        figures["second_round"] = sum(entry.epochs > plan.lessons.rounds[0] for entry in entries)
        print_map(plan, library)
    return figures


def print_map(plan: Plan, library: Any) -> None:
    """Per slot and alternative how much the loss rises, in percent of the teacher's."""
    from nas.imitation.alternatives import alternatives_of

    for slot, options in alternatives_of(plan.space).items():
        words = []
        for option, alternative in options.items():
            entry = library.get(alternative) if alternative is not None else None
            if option is not None and entry is not None:
                share = [100 * value / entry.loss for value in (entry.rise, entry.low, entry.high)] if entry.loss else [0.0] * 3
                words.append(
                    f"{option.text(plan.space.skeleton.slot(slot))} {share[0]:+.1f} [{share[1]:+.1f}, {share[2]:+.1f}]"
                )
        print(f"{slot:20} " + " · ".join(words))


def table_a(plan: Plan, kept: Kept) -> dict[str, Any]:
    """Every cheap score beside the finals."""
    from nas.imitation.alternatives import differences
    from nas.imitation.library import Library

    library, options = Library(plan.library()), plan.options
    rows = [(a, final["map"]) for a in plan.architectures if (final := kept.get(plan.final(a, options.final, 1))) is not None]
    figures: dict[str, Any] = {"architectures": len(rows), "of": len(plan.architectures)}
    if len(rows) < 4:
        return figures
    scores: dict[str, list[tuple[int, float, float]]] = defaultdict(list)  # name -> (row, score, CPU seconds)
    for row, (architecture, _) in enumerate(rows):
        rise = library.rise(differences(plan.yaml[architecture.id], plan.skeleton))
        if rise is not None:
            scores["additive"].append((row, -rise, 0.0))
        jobs = {"assembled": plan.assemble(architecture, 0), "assembled_settled": plan.assemble(architecture, 4)}
        jobs["assembled_and_1_epoch"] = plan.final(architecture, 1, 3)
        jobs["scratch"] = plan.scratch(architecture, options.short, 2)
        jobs["final_again"] = plan.final(architecture, options.final, 2)
        for name, job in jobs.items():
            if (told := kept.get(job)) is not None:
                scores[name].append((row, told["map"], told["cpu"]))
        if (told := kept.get(plan.loss(architecture))) is not None:
            scores["assembled_loss"].append((row, -told["loss"], told["cpu"]))
        known = plan.known[architecture.id]
        scores["fewer_replaced"].append((row, -known["replaced"], 0.0))
        scores["macs"].append((row, known["macs"], 0.0))
        scores["params"].append((row, known["params"], 0.0))
        scores["widths_kept"].append((row, -narrowed(plan, architecture), 0.0))
    final = np.array([value for _, value in rows])
    replaced = np.array([float(len(a.placements)) for a, _ in rows])
    trained = [kept.get(plan.scratch(a, options.scratch, 1)) for a, _ in rows]
    scratch = np.array([told["map"] if told else np.nan for told in trained])
    print(f"{'score':22} {'tau':>6} {'90% interval':>16} {'partial':>8} {'CPU s':>7} {'n':>3} {'tau with scratch':>17}")
    for name, found in scores.items():
        if len(found) < 4:
            continue
        at, values, cpu = [row for row, _, _ in found], np.array([v for _, v, _ in found]), np.mean([c for _, _, c in found])
        low, high = interval(values, final[at])
        figures[f"tau_{name}_final"], figures[f"interval_{name}"] = tau(values, final[at]), [low, high]
        figures[f"partial_{name}"], figures[f"cpu_{name}"] = partial(values, final[at], replaced[at]), float(cpu)
        beside = ""
        if len(both := np.flatnonzero(~np.isnan(scratch[at]))) >= 4:
            figures[f"tau_{name}_scratch"] = tau(values[both], scratch[at][both])
            beside = f"{figures[f'tau_{name}_scratch']:17.2f}"
        print(
            f"{name:22} {figures[f'tau_{name}_final']:6.2f} {f'[{low:.2f}, {high:.2f}]':>16} "
            f"{figures[f'partial_{name}']:8.2f} {cpu:7.1f} {len(found):3} {beside}"
        )
    figures["tau_partial"] = figures.get("partial_assembled")
    mixed = [row for row, (a, _) in enumerate(rows) if narrowed(plan, a)]
    told = {row: value for row, value, _ in scores["assembled"]}
    if len(mixed) >= 4 and all(row in told for row in mixed):
        values = np.array([told[row] for row in mixed])
        figures["tau_mixed_widths"], figures["mixed_widths"] = tau(values, final[mixed]), len(mixed)
        figures["interval_mixed_widths"] = list(interval(values, final[mixed]))
        print(f"assembled, the {len(mixed)} architectures with a narrower slot: tau {figures['tau_mixed_widths']:.2f}")
    return figures


def narrowed(plan: Plan, architecture: Any) -> int:
    """How many slots are narrower than the skeleton's."""
    return sum(p.channels != plan.space.skeleton.slot(p.slot).row.c2 for p in architecture.placements)


def table_b(plan: Plan, kept: Kept) -> dict[str, Any]:
    """Final networks beside trainings from scratch, over architectures that have both."""
    options, figures, converged = plan.options, {}, []
    print(f"{'trained':46} {'mAP':>6} {'final':>6} {'gain of imitation':>21} {'cost ratio':>11} {'n':>3}")
    for seed in (1, 2):
        for final_epochs, epochs in (
            (options.final, options.scratch),
            (options.final, options.long),
            (options.long // 3, options.long),
        ):
            pairs = [
                (final, scratch)
                for a in plan.architectures
                if (final := kept.get(plan.final(a, final_epochs, seed)))
                and (scratch := kept.get(plan.scratch(a, epochs, seed)))
            ]
            if not pairs:
                continue
            gains = np.array([final["map"] - scratch["map"] for final, scratch in pairs])
            ratio = float(np.mean([scratch["cpu"] for _, scratch in pairs]) / np.mean([final["cpu"] for final, _ in pairs]))
            drawn_gains = np.random.default_rng(0).choice(gains, (1000, len(gains))).mean(1)
            low, high = np.percentile(drawn_gains, [5, 95])
            name = f"{epochs} epochs from scratch, {final_epochs} on, seed {seed}"
            final_map, mean = (float(np.mean([pair[at]["map"] for pair in pairs])) for at in (0, 1))
            gain = f"{gains.mean():+.3f} [{low:+.3f}, {high:+.3f}]"
            print(f"{name:46} {mean:6.3f} {final_map:6.3f} {gain:>21} {ratio:11.1f} {len(pairs):3}")
            figures[f"scratch_{epochs}_final_{final_epochs}_seed{seed}"] = {
                "map": mean,
                "final": final_map,
                "gain": gains.mean(),
                "interval": [low, high],
                "ratio": ratio,
            }
            if (final_epochs, epochs) == (options.long // 3, options.long):
                converged += pairs
    if converged:
        final, scratch = ([pair[at] for pair in converged] for at in (0, 1))
        figures["final_gain_map"] = float(np.mean([told["map"] for told in final]) - np.mean([told["map"] for told in scratch]))
        figures["final_cost_ratio"] = sum(told["cpu"] for told in scratch) / sum(told["cpu"] for told in final)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="dataset YAML; the built-in set where none is given")
    parser.add_argument("--skeleton", default="yolo11n.yaml")
    parser.add_argument("--slots", default="*", help="slots that may hold another block")
    parser.add_argument("--narrow", default="*.P4*", help="slots that may have half their width")
    parser.add_argument("--imgsz", type=int, default=160)
    parser.add_argument("--parts", default="a,b", help="a: do cheap scores rank; b: what finals are worth; c: searches")
    parser.add_argument("--architectures", type=int, default=16)
    parser.add_argument("--teacher", type=int, default=80, help="epochs of the teacher")
    parser.add_argument("--rounds", type=lambda text: [int(n) for n in text.split(",")], default=[6, 12])
    parser.add_argument("--final", type=int, default=10, help="epochs that an assembled network is trained for")
    parser.add_argument("--short", type=int, default=5, help="epochs of the proxy from scratch")
    parser.add_argument("--scratch", type=int, default=30, help="epochs of the training from scratch")
    parser.add_argument("--converged", type=int, default=4, help="architectures that are trained to convergence")
    parser.add_argument("--long", type=int, help="epochs of a training to convergence; the teacher's by default")
    parser.add_argument("--budgets", help="GPU-minutes of each search of part c; 12 of the built-in set, 8,16,32 of others")
    parser.add_argument("--after", type=int, default=20, help="epochs that each member of a search's front is trained for")
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--kept", type=Path, help="where results are kept; a file in the cache folder by default")
    parser.add_argument("--quick", action="store_true", help="five architectures, one round, short trainings")
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    if options.quick:
        options.architectures, options.teacher, options.rounds, options.imgsz = 5, 6, [1], 64
        options.final, options.short, options.scratch, options.converged, options.after = 1, 1, 2, 1, 1
        options.budgets = options.budgets or "2"
    options.parts = options.parts.split(",")
    options.long = options.long or options.teacher
    options.budgets = [float(text) for text in (options.budgets or ("12" if options.data is None else "8,16,32")).split(",")]
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    os.environ |= {"YOLO_OFFLINE": "1", "YOLO_AUTOINSTALL": "False", "YOLO_VERBOSE": "False"}

    from nas.cache import cache_root

    plan, kept = Plan(options), Kept(options.kept or cache_root() / "imitation.jsonl")
    ends = time.monotonic() + 3600 * options.hours
    jobs = stages(plan) if set(options.parts) & {"a", "b"} else []
    work_through(jobs, kept, options.workers, 3600 * options.hours)
    figures: dict[str, Any] = dict.fromkeys(NAMED)  # what is not measured yet, or was not asked for, is null
    figures |= cost_of(plan, kept) if jobs else {}
    searches = Searches(plan, kept) if "c" in options.parts else None
    if searches is not None:
        searches.work(work_through, lambda: ends - time.monotonic())
    if "a" in options.parts:
        figures |= table_a(plan, kept)
    if "b" in options.parts:
        figures |= table_b(plan, kept)
    if searches is not None:
        figures |= searches.table()
    print({name: value for name, value in figures.items() if isinstance(value, int | float)})
    left = sum(kept.get(job) is None for stage in jobs for job in stage)
    print(f"{sum(map(len, jobs)) - left} of {sum(map(len, jobs))} jobs are done")
    if searches is not None:
        print(f"part c: {searches.left} jobs are left, a search's trainings counted once it is done")
    figures = {name: None if isinstance(value, float) and not np.isfinite(value) else value for name, value in figures.items()}
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2, default=float) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
