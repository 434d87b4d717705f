"""Work of `bench_imitation.py` that no search does: an assembled network's loss, and what memory learning takes."""

from __future__ import annotations

import ctypes
import multiprocessing
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

Report = Callable[[Any], None]


def loss(payload: Mapping[str, Any], seed: int, report: Report) -> dict[str, Any]:  # noqa: ARG001  (draws nothing)
    """The mean loss of a kept network (`weights`) on the held-out images of a `TeacherJob`'s data."""
    import torch

    from nas.execution.work import images_of
    from nas.imitation.judge import Judge
    from nas.yolo.weights import read_weights

    where = [payload[name] for name in ("data", "root", "cache", "imgsz", "held_out", "split_seed")]
    _, held_out, _ = images_of(*where, False, 1.0)
    device = torch.device(payload["device"])
    model = read_weights(Path(payload["weights"])).float().to(device, memory_format=torch.channels_last).eval()
    return {"loss": float(Judge(model, held_out, device, 16, len(held_out)).own.mean())}


def memory(payload: Mapping[str, Any], seed: int, report: Report) -> dict[str, Any]:  # noqa: ARG001
    """The most memory that each kind of work (`train` and `imitate`, one epoch each) takes in a process of its own, in MB: on
    a GPU what is allocated there, else what the process holds beyond what it does before it begins."""
    found = {}
    shutil.rmtree(payload["imitate"]["library"], ignore_errors=True)
    for name, kind in (("train", "nas.execution.work:train"), ("imitate", "nas.execution.imitate:imitate")):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            found[f"{name}_mb"] = pool.submit(_peak, kind, payload[name], seed).result()
    shutil.rmtree(payload["imitate"]["library"], ignore_errors=True)
    return found


def _peak(kind: str, payload: Mapping[str, Any], seed: int) -> float:
    import importlib

    import torch
    import ultralytics.nn.tasks  # noqa: F401  (what any work imports)

    torch.set_num_threads(1)
    module, _, function = kind.partition(":")
    work = getattr(importlib.import_module(module), function)
    ctypes.CDLL(None).malloc_trim(0)  # what importing has left would hide what the work takes
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _held("VmRSS")
    told = work(payload, seed, lambda _: None)
    if "fault" in told:
        raise SystemExit(f"{told['fault']}\n  {told['cure']}")
    if payload["device"] == "cuda":
        return float(torch.cuda.max_memory_allocated()) / 1e6
    return _held("VmHWM") - before


def _held(name: str) -> float:
    """What Linux says of this process's memory, in MB."""
    found = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(found.split()[1]) * 1024 / 1e6
