"""What this host offers, and the environment its workers get. No torch: the search process must stay light."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import lru_cache

from nas.cache import cache_root


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@lru_cache(maxsize=1)
def cuda_devices() -> int:
    """Number of NVIDIA GPUs, as the driver's own tool counts them; 0 without it."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return 0
    try:
        done = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in done.stdout.splitlines()) if done.returncode == 0 else 0


def default_workers(gpus: int) -> int:
    """One per GPU; without a GPU one per core: two processes of one thread beat one of two threads."""
    return gpus or cores()


def threads_per_worker(workers: int, device: str) -> int:
    """Threads for the arithmetic of each of `workers` processes."""
    return max(1, cores() // workers) if device == "cpu" else 1


def worker_environment(workers: int, device: str, threads: int | None = None) -> list[dict[str, str]]:
    """Environment variables of each of `workers` processes: threads, GPUs in turn, and a quiet, offline Ultralytics."""
    gpus = max(1, cuda_devices())
    threads = threads if threads is not None else threads_per_worker(workers, device)
    common = {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        "YOLO_CONFIG_DIR": str(cache_root() / "ultralytics"),
        "YOLO_OFFLINE": "1",
        "YOLO_AUTOINSTALL": "False",
        "YOLO_VERBOSE": "False",
    }
    visible = [{"CUDA_VISIBLE_DEVICES": str(index % gpus) if device == "cuda" else ""} for index in range(workers)]
    return [common | mask for mask in visible]
