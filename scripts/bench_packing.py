#!/usr/bin/env python
"""Several trainings at once on one device, and one training on several, through the `local` executor: trainings per hour and
how busy the devices are.

    scripts/bench_packing.py [--quick] [--data YAML] [--device cuda] [--imgsz 320] [--model yolo11n] [--epochs 5]
                             [--at-once 1,2,4,8] [--trials 8] [--together 2,4] [--batch 8] [--json OUT]

The same trainings are run one at a time and so many at once, in warm workers, each with the same settings as in a search;
what they need of the data is decoded before. On a GPU `busy` is the driver's share of time in which a kernel ran, looked at
every second; on a CPU the device is all cores, and `busy` the share of their time that was spent by anybody. Names in the
JSON: `speed_up_N`, `per_hour_N` and `busy_N` for N at once.

`--together` is for a host with so many GPUs, and says what `--gpus-per-trial` is worth: one training after the other, each on
one GPU and then on N of them (`together_speed_up_N`, `together_seconds_N` a training). Left out, it is 2, 4 and 8 as far as
there are GPUs. A batch is divided among them: with a small one (`--batch`) they have little to do.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path

from nas.cache import cache_root
from nas.dataset.builtin import builtin_dataset
from nas.dataset.description import read_dataset
from nas.execution.executor import Attempt, Progress, Result
from nas.execution.local import LocalExecutor
from nas.execution.work import TRAIN, TrainJob
from nas.hardware import GpuMeter, cores, cuda_devices, most_gpus_alike, threads_per_worker, worker_environment
from nas.space.architecture import Architecture, model_yaml
from nas.space.skeleton import read_skeleton


class Busy:
    """How busy the device is between two moments, 0..1; None where nobody tells."""

    def __init__(self, device: str) -> None:
        self._meter = GpuMeter(seconds=1.0) if device == "cuda" else None
        self._spent, self._began = _cpu_seconds(), time.monotonic()

    def look(self) -> None:
        if self._meter is not None:
            self._meter.update()

    @property
    def share(self) -> float | None:
        if self._meter is not None:
            return self._meter.mean
        spent, now = _cpu_seconds(), time.monotonic()
        return None if spent is None or self._spent is None else (spent - self._spent) / (now - self._began) / cores()


def _cpu_seconds() -> float | None:
    """That all processes of this host have spent."""
    stat = Path("/proc/stat")
    if not stat.is_file():
        return None
    user, nice, system, _, _, irq, softirq = map(int, stat.read_text().split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def measured(job: TrainJob, at_once: int, trials: int) -> tuple[float, float | None]:
    """Seconds that `trials` trainings take, so many at once, once all workers are warm; how busy the devices were meanwhile.

    Raises:
        SystemExit: a training fails.
    """
    environments, names = worker_environment(at_once, job.device, gpus_per_trial=job.devices), iter(range(10**6))
    with tempfile.TemporaryDirectory() as logs, closing(LocalExecutor(environments, {}, Path(logs))) as executor:

        def run(count: int, epochs: int, busy: Busy | None = None) -> None:
            left, running = count, 0
            while left or running:
                while left and executor.free:
                    payload = {
                        **asdict(job),
                        "rungs": [epochs],
                        "threads": threads_per_worker(at_once * job.devices, job.device),
                    }
                    executor.start(Attempt(str(next(names)), TRAIN, payload, seed=left))
                    left, running = left - 1, running + 1
                for event in executor.poll(0.2):
                    if isinstance(event, Result):
                        running -= 1
                    elif not isinstance(event, Progress):
                        raise SystemExit(f"a training ended without a result: {event.reason}")
                if busy is not None:
                    busy.look()

        run(at_once, 1)  # imports, kernels, pixels
        busy, began = Busy(job.device), time.monotonic()
        run(trials, job.rungs[-1], busy)
        return time.monotonic() - began, busy.share


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="1 and 2 at once, 4 trainings of 1 epoch at 64 px")
    parser.add_argument("--data", type=Path, help="dataset YAML; the built-in set where none is given")
    parser.add_argument("--device", default="cuda" if cuda_devices() else "cpu", choices=["cuda", "cpu"])
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--model", default="yolo11n")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--at-once", default="1,2,4,8")
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--together", help="devices for one training; CPUs, where --device cpu asks for them")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--json", type=Path, metavar="OUT")
    options = parser.parse_args()
    if options.quick:
        options.at_once, options.trials, options.epochs, options.imgsz = "1,2", 4, 1, 64
    dataset, skeleton = read_dataset(options.data or builtin_dataset()), read_skeleton(f"{options.model}.yaml")
    job = TrainJob(
        model_yaml(skeleton, Architecture(skeleton.name), dataset.nc),
        data=str(dataset.yaml),
        root=str(dataset.root),
        cache=str(cache_root()),
        imgsz=options.imgsz,
        rungs=[options.epochs],
        batch=options.batch,
        lr0=0.004,
        held_out=0.2,
        split_seed=0,
        device=options.device,
        threads=1,
    )
    figures: dict[str, float | None] = {}
    alone = 0.0
    for at_once in map(int, options.at_once.split(",")):
        seconds, busy = measured(job, at_once, options.trials)
        alone = alone or seconds
        figures |= {
            f"speed_up_{at_once}": alone / seconds,
            f"per_hour_{at_once}": 3600 * options.trials / seconds,
            f"busy_{at_once}": busy,
        }
        share = "?" if busy is None else f"{busy:.0%}"
        print(
            f"{at_once} at once: {3600 * options.trials / seconds:6.0f} trainings an hour, "
            f"{alone / seconds:.2f} times one at a time; {options.device} {share} busy"
        )
    together = [int(word) for word in options.together.split(",")] if options.together else []
    if options.together is None and options.device == "cuda":
        together = [count for count in (2, 4, 8) if count <= most_gpus_alike()]
    if together:
        alone, _ = measured(job, 1, options.trials)
        for count in together:
            seconds, busy = measured(replace(job, devices=count), 1, options.trials)
            each = seconds / options.trials
            figures |= {f"together_speed_up_{count}": alone / seconds, f"together_seconds_{count}": each}
            print(f"{count} devices for one training: {each:.1f} s each, {alone / seconds:.2f} times one device")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
