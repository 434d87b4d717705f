"""The arithmetic to train with: float32 or bfloat16, whichever takes less time on this processor."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from nas.alive import locked
from nas.files import write_whole

GAIN = 0.9  # bfloat16 must take less than this share of the time: it costs a little accuracy
CHOICES = (torch.float32, torch.bfloat16)


def training_dtype(device: torch.device, cache: Path) -> torch.dtype:
    """Time one small training step of each kind, once per machine, torch and device: the choice is kept in `cache`.

    Processors that have bfloat16 train 1.5 to 2 times faster with it, those that only emulate it ten times slower. The
    choice is kept because two timings on a busy machine might differ, and with them the results of equal trainings.
    """
    path = cache / "precision" / f"{_stamp(device)}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path):
            with suppress(OSError, ValueError, LookupError, TypeError):  # not there yet, or torn: timed again
                known = json.loads(path.read_text(encoding="utf-8"))["dtype"]
                return next(dtype for dtype in CHOICES if str(dtype) == known)
            chosen = faster(device)
            write_whole(path, json.dumps({"dtype": str(chosen)}))
            return chosen
    except OSError:  # a home that cannot be written: the choice is this process's own
        return faster(device)


def faster(device: torch.device) -> torch.dtype:
    """The dtype whose training step takes less time now."""
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float32
    seconds = {dtype: step_seconds(device, dtype) for dtype in CHOICES}
    return torch.bfloat16 if seconds[torch.bfloat16] < GAIN * seconds[torch.float32] else torch.float32


def step_seconds(device: torch.device, dtype: torch.dtype) -> float:
    """Seconds of a forward and backward pass through a few layers as a YOLO has them: the fastest of three."""
    layers = [(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.SiLU()) for width in (64, 64, 64)]
    model = nn.Sequential(*(layer for group in layers for layer in group)).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.zeros(4, 64, 40, 40, device=device).contiguous(memory_format=torch.channels_last)
    times = []
    for _ in range(4):  # the first one warms up
        began = time.perf_counter()
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = model(images).float().square().mean()
        loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return min(times[1:])


def _stamp(device: torch.device) -> str:
    """Names everything that the choice depends on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    known = [torch.__version__, device.type, name, torch.get_num_threads()]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:12]


def _processor() -> str:
    """The processor's kind and features, as far as the system tells."""
    features = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return json.dumps([platform.processor(), dict(features)], sort_keys=True, default=str)
