"""Timing a session as its target asks for: clocks, pace and what may slow the device down; and how well figures repeat."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from torch import nn

from nas.latency.measure import CoreWatch, GpuWatch, Latency, measure
from nas.latency.runtimes import SESSIONS, Session
from nas.latency.target import Target


def timed(session: Session, target: Target, limit_ms: float | None = None, *, allow_noisy: bool = False) -> Latency:
    """The latency of a session. Raises `nas.latency.measure.Unstable`."""
    on_cpu = target.device == "cpu"
    return measure(
        session.run,
        limit_ms,
        cpu_clock=time.process_time if on_cpu and target.threads == 1 else None,
        paced_ms=target.paced_ms,
        allow_noisy=allow_noisy,
        watch=CoreWatch(paced=target.paced_ms is not None) if on_cpu else GpuWatch(_first_gpu()),
    )


def repeated(model: nn.Module, target: Target, times: int = 10, *, allow_noisy: bool = False) -> list[Latency]:
    """The same model (in inference form) measured again and again, each time in a session of its own."""
    latencies = []
    for _ in range(times):
        session = SESSIONS[target.kind](model, target)
        latencies.append(timed(session, target, allow_noisy=allow_noisy))
    return latencies


def repeat_spread(latencies: Sequence[Latency]) -> float:
    """How far the highest of several figures of one model lies above the lowest: 0.03 is 3%."""
    figures = [latency.ms for latency in latencies]
    return max(figures) / min(figures) - 1


def _first_gpu() -> str:
    """The GPU that CUDA calls the first, by index or UUID."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip() or "0"
