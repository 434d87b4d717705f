"""What this host offers, and the environment its workers get. No torch: the search process must stay light."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from nas.cache import cache_root

# What a worker process takes with Ultralytics, torch and a small model in training.
WORKER_BYTES = 3 * 2**29
# glibc gives large arrays back and takes them anew in every pass: page faults, up to a tenth of a training's CPU time.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**30)}


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cuda_devices() -> int:
    """Number of NVIDIA GPUs that this process may use."""
    return len(gpus())


def gpus() -> dict[str, str]:
    """The NVIDIA GPUs that this process may use: what CUDA_VISIBLE_DEVICES calls them -> their model.

    A batch system or the user may have set that variable: then only what it names counts.
    """
    found = _listed_gpus()
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return {str(index): _model(line) for index, line in enumerate(found)}
    usable: dict[str, str] = {}
    for name in map(str.strip, chosen.split(",")):
        known = int(name) < len(found) if name.isdecimal() else bool(found) and name.startswith(("GPU-", "MIG-"))
        if not known:
            break  # CUDA ignores it and all after it
        line = found[int(name)] if name.isdecimal() else next((line for line in found if name in line), name)
        usable[name] = _model(line)
    return usable


@lru_cache(maxsize=1)
def _listed_gpus() -> tuple[str, ...]:
    """A line for each NVIDIA GPU of this host, as the driver's own tool lists them; none without it."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    try:
        done = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return tuple(line for line in done.stdout.splitlines() if line.startswith("GPU ")) if done.returncode == 0 else ()


def _model(line: str) -> str:
    """`GPU 0: NVIDIA H100 (UUID: GPU-…)` -> `NVIDIA H100`."""
    return line.partition(" (UUID")[0].rpartition(": ")[2]


class GpuMeter:
    """How busy the GPUs that this process may use are, as the driver counts: the share of time in which a kernel ran.

    Args:
        seconds: between two looks.
    """

    def __init__(self, seconds: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = seconds, clock
        self._next = clock()
        self._look: subprocess.Popen[str] | None = None
        self._seen: list[float] = []

    def update(self) -> None:
        """Look again if it is time; to be called often. Never waits: what the driver says is taken in at a later call."""
        if self._look is not None and self._look.poll() is not None:
            told = self._look.communicate()[0].split()
            shares = [float(word) / 100 for word in told if word.replace(".", "", 1).isdecimal()]
            self._seen += [sum(shares) / len(shares)] if shares else []
            self._look = None
        if self._look is None and self._clock() >= self._next and (tool := shutil.which("nvidia-smi")):
            self._next = self._clock() + self._seconds
            asked = [tool, "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", f"--id={','.join(gpus())}"]
            self._look = subprocess.Popen(asked, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    @property
    def latest(self) -> float | None:
        """The last look, 0..1; None before the first."""
        return self._seen[-1] if self._seen else None

    @property
    def mean(self) -> float | None:
        """Over all looks, 0..1; None before the first."""
        return sum(self._seen) / len(self._seen) if self._seen else None


def gpu_places(per_trial: float = 1.0) -> list[str]:
    """What CUDA_VISIBLE_DEVICES says to each training that this host has GPUs for at once.

    Args:
        per_trial: a share of a GPU, or how many GPUs; those of one training are of one model, and no parts of a GPU (MIG).
    """
    if per_trial < 1:
        return list(gpus()) * int(1 / per_trial + 1e-9)
    size, alike = int(per_trial), defaultdict[str, list[str]](list)
    for name, model in gpus().items():
        if size == 1 or not name.startswith("MIG-"):
            alike[model].append(name)
    return [",".join(names[at : at + size]) for names in alike.values() for at in range(0, len(names) - size + 1, size)]


def most_gpus_alike() -> int:
    """How many GPUs of this host one training can use."""
    return max((count for count in range(1, cuda_devices() + 1) if gpu_places(count)), default=0)


def default_workers(places: int = 0) -> int:
    """One per place for a training on a GPU; without any one per core, as far as memory goes: two processes of one thread
    beat one of two.
    """
    return places or max(1, min(cores(), _free_memory() // WORKER_BYTES))


def _free_memory() -> int:
    """Bytes of memory that new processes can have, caches given back, as far as the system tells; plenty where not."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        return int(text.partition("MemAvailable:")[2].split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        return 2**50


def threads_per_worker(workers: int, device: str) -> int:
    """Threads for the arithmetic of each of `workers` processes."""
    return max(1, cores() // workers) if device == "cpu" else 1


def worker_environment(
    workers: int, device: str, threads: int | None = None, gpus_per_trial: float = 1.0
) -> list[dict[str, str]]:
    """Environment variables of each of `workers` processes: threads, memory, GPUs in turn, and a quiet, offline Ultralytics."""
    masks = (gpu_places(gpus_per_trial) if device == "cuda" else []) or [""]
    threads = threads if threads is not None else threads_per_worker(workers, device)
    common = KEEP_MEMORY | {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        "YOLO_CONFIG_DIR": str(cache_root() / "ultralytics"),
        "YOLO_OFFLINE": "1",
        "YOLO_AUTOINSTALL": "False",
        "YOLO_VERBOSE": "False",
    }
    return [common | {"CUDA_VISIBLE_DEVICES": masks[index % len(masks)]} for index in range(workers)]
