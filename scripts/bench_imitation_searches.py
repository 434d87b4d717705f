"""Part c of `bench_imitation.py`: whole searches at equal budgets, under a limit that the stock skeleton breaks.

By imitation (teacher and imitation charged to the budget), by proxies from scratch, and by random search from scratch. What
each of them calls its front (six members at most, spread along it, fastest and best among them) is then trained equally long
from the weights that the search kept, on the same images, and scored on `val`, which no search has seen.

Latencies of two machines do not compare, so a search is known by the machine it ran on; a table has one machine's searches.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from bench_fidelity import Kept

Job = dict[str, Any]

METHODS: Mapping[str, list[str]] = {
    "imitation": ["--imitate"],
    "proxies": ["--from-scratch"],
    "random": ["--from-scratch", "--sampler", "random"],
}
NAS = [sys.executable, "-c", "from nas.cli import main; main()"]
MEMBERS = 6
STRICT = 0.85  # of the stock skeleton's latency: the limit


def stock_latency(payload: Mapping[str, Any], seed: int, report: Callable[[Any], None]) -> dict[str, Any]:  # noqa: ARG001
    """`ms` of a skeleton at `imgsz`."""
    from nas.quote import quote

    return {"ms": quote(payload["skeleton"], imgsz=str(payload["imgsz"])).price["ms"]}


def searched(payload: Mapping[str, Any], seed: int, report: Callable[[Any], None]) -> dict[str, Any]:  # noqa: ARG001
    """The members of a search's front, `[{id, ms, map, yaml, weights}]`; a search that was cut off goes on."""
    from nas.outcome import architecture_of
    from nas.run import Run
    from nas.space.architecture import model_yaml

    folder = Path(payload["folder"])
    run = folder / "results" / payload["name"]
    folder.mkdir(parents=True, exist_ok=True)
    begun = ["--resume", str(run)] if (run / "study.db").is_file() else [*payload["arguments"], "--name", payload["name"]]
    told = subprocess.run([*NAS, "search", *begun, "--quiet"], cwd=folder, check=False)
    if told.returncode not in {0, 3}:
        raise SystemExit(f"nas search ended with {told.returncode}: see {run}")
    found = Run(run)
    members = []
    for record in chosen(found.front):
        _, *kept = found.export(str(record.trial))  # none of one that came to the front late: it begins with drawn weights
        yaml = model_yaml(found.space.skeleton, architecture_of(found.entries, record), len(found.summary.classes))
        members.append(
            {
                "id": record.id,
                "ms": record.latency_ms,
                "map": record.map,
                "yaml": yaml,
                "weights": str(kept[0]) if kept else None,
            }
        )
    states = [record.state for record in found.records]
    return {
        "members": members,
        "front": len(found.front),
        "trained": states.count("done"),
        "rejected": states.count("rejected"),
    }


def chosen(front: list[Any]) -> list[Any]:
    """Six members at most, spread along a front, both ends among them."""
    if len(front) <= MEMBERS:
        return front
    return [front[round(at)] for at in np.linspace(0, len(front) - 1, MEMBERS)]


def finished(payload: Mapping[str, Any], seed: int, report: Callable[[Any], None]) -> dict[str, Any]:
    """mAP on `val` of a `TrainJob`'s model once it is trained."""
    from nas.execution.work import train
    from nas.yolo.full import map_on_val

    told = train(payload, seed, report)
    weights = Path(payload["keep"])
    place = weights.parent / f"val-{weights.stem}"
    score = map_on_val(weights, data=Path(payload["data"]), imgsz=payload["imgsz"], device=payload["device"], folder=place)
    weights.unlink()
    return {"map": score, "held_out": told["map"]}


class Searches:
    """The jobs of part c; a job's identity says all that its result depends on."""

    def __init__(self, plan: Any, kept: Kept) -> None:
        from nas.latency.target import Target, machine_name

        options = plan.options
        self._plan, self._kept = plan, kept
        self.machine = machine_name()
        self.target = str(Target.parse("auto").at(options.imgsz))
        self.budgets: list[float] = options.budgets
        self._folder = plan.folder / "searches"

    def stock(self) -> Job:
        payload = {"skeleton": self._plan.options.skeleton, "imgsz": self._plan.options.imgsz}
        return self._job("stock latency", "stock_latency", payload, [payload, self.machine, self.target])

    def search(self, method: str, minutes: float) -> Job | None:
        """None before the limit is known."""
        if (stock := self._kept.get(self.stock())) is None:
            return None
        options, dataset = self._plan.options, self._plan.dataset
        limit = f"{STRICT * stock['ms']:.4g}ms"
        settings = ["--epochs", str(options.short), "--set", "batch=8", "--set", "lr0=0.004", "--confirm", "1"]
        data = [] if options.data is None else ["--data", str(dataset.yaml)]
        what = ["--imgsz", str(options.imgsz), "--budget", f"{minutes:g}gpu-min", "--max-latency", limit, *settings]
        workers = max(1, options.workers - 1) if options.device == "cpu" else options.workers  # a core is left for measuring
        arguments = [*data, *what, "--workers", str(workers), "--device", options.device, *METHODS[method]]
        identity = [self.machine, self.target, *what, *METHODS[method], workers]
        name = f"{method}-{minutes:g}-{dataset.digest[:8]}-{options.imgsz}"
        payload = {"folder": str(self._folder), "name": name, "arguments": arguments}
        return self._job(f"search: {method}, {minutes:g} GPU-min", "searched", payload, identity)

    def finals(self, method: str, minutes: float) -> list[Job]:
        """A training for each member; none before the search is done."""
        from nas.execution.work import TrainJob

        search = self.search(method, minutes)
        found = None if search is None else self._kept.get(search)
        jobs = []
        for member in [] if search is None or found is None else found["members"]:
            kept = self._folder / f"final-{method}-{minutes:g}-{member['id']}.pt"
            common = {**self._plan.data(), "batch": 8, "lr0": 0.004}
            training = TrainJob(
                member["yaml"], rungs=[self._plan.options.after], weights=member["weights"], keep=str(kept), **common
            )
            identity = [search["identity"], member["id"], self._plan.options.after] if search else []
            name = f"final: {member['id']} of {method}, {minutes:g} GPU-min"
            jobs.append({**self._job(name, "finished", asdict(training), identity, 3), "member": member})
        return jobs

    def _job(self, name: str, function: str, payload: Any, identity: Any, seed: int = 0) -> Job:
        return self._plan.job(name, f"bench_imitation_searches:{function}", payload, identity, seed)

    def work(self, work_through: Callable[..., None], seconds: Callable[[], float]) -> None:
        """Budget by budget, so that a call which ends early leaves whole comparisons."""
        os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        work_through([[self.stock()]], self._kept, 1, seconds())
        for minutes in self.budgets:
            # a search has the machine to itself: its workers are its own
            found = [job for method in METHODS if (job := self.search(method, minutes)) is not None]
            work_through([[job] for job in found], self._kept, 1, seconds())
            finals = [job for method in METHODS for job in self.finals(method, minutes)]
            work_through([finals], self._kept, self._plan.options.workers, seconds())

    def table(self) -> dict[str, Any]:
        """Hypervolume (mAP 0 at the limit is none; log latency) and best mAP of what was trained in the end."""
        from nas.search.front import hypervolume

        figures: dict[str, Any] = {"limit_share_of_stock": STRICT}
        ratios = []
        print(f"{'search':28} {'trained':>8} {'front':>6} {'final best mAP':>15} {'fastest ms':>11} {'hypervolume':>12}")
        for minutes in self.budgets:
            points: dict[str, tuple[list[float], list[float]]] = {}
            for method in METHODS:
                done = [(self._kept.get(job), job["member"]) for job in self.finals(method, minutes)]
                if done and all(told is not None for told, _ in done):
                    points[method] = [told["map"] for told, _ in done if told], [member["ms"] for _, member in done]
            stock = self._kept.get(self.stock())
            if not points or stock is None:
                continue
            fastest = min(min(ms) for _, ms in points.values())
            volumes = {}
            for method, (maps, ms) in points.items():
                search = self.search(method, minutes)
                told = (search and self._kept.get(search)) or {}
                volumes[method] = hypervolume(maps, ms, reference_ms=STRICT * stock["ms"], fastest_ms=fastest)
                figures[f"{method}_{minutes:g}"] = {"hypervolume": volumes[method], "mean_map": float(np.mean(maps))}
                figures[f"{method}_{minutes:g}"] |= {"best_map": max(maps), "least_map": min(maps), "members": len(maps)}
                print(
                    f"{f'{method}, {minutes:g} GPU-min':28} {told['trained']:8} {told['front']:6} {max(maps):15.3f} "
                    f"{min(ms):11.3f} {volumes[method]:12.3f}"
                )
            if volumes.get("proxies"):
                ratios.append(volumes.get("imitation", float("nan")) / volumes["proxies"])
                figures[f"hypervolume_ratio_{minutes:g}"] = ratios[-1]
        if ratios:
            figures["hypervolume_ratio"] = float(np.nanmean(ratios))
            print(f"hypervolume by imitation over that by proxies: {figures['hypervolume_ratio']:.2f}")
        return figures

    @property
    def left(self) -> int:
        """Jobs that are known to be left; a search that is not done counts as one."""
        wanted = [(method, minutes) for minutes in self.budgets for method in METHODS]
        open_searches = sum((job := self.search(*one)) is None or self._kept.get(job) is None for one in wanted)
        return open_searches + sum(self._kept.get(job) is None for one in wanted for job in self.finals(*one))
