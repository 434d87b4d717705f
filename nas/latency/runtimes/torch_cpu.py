"""PyTorch on the CPU."""

from __future__ import annotations

import statistics
import time
from functools import partial
from typing import Any

import torch
from torch import nn

from nas.latency.measure import PROFILED_RUNS
from nas.latency.runtimes.session import Array, Session, fixed_image
from nas.latency.target import Target
from nas.yolo.build import tensors

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class TorchCpuSession(Session):
    """Eager PyTorch in channels_last, as Ultralytics predicts on a CPU."""

    def __init__(self, model: nn.Module, target: Target) -> None:
        target.require()
        torch.set_num_threads(target.threads)
        self._how: dict[str, Any] = {"memory_format": torch.channels_last, "dtype": _DTYPES[target.precision]}
        self._model = model.to(**self._how)
        self._image = fixed_image(target).to(**self._how)

    @torch.inference_mode()
    def infer(self, images: Array) -> list[Array]:
        output = self._model(torch.from_numpy(images).to(**self._how))
        return [tensor.float().numpy() for tensor in tensors(output)]

    @torch.inference_mode()
    def run(self) -> None:
        self._model(self._image)

    def rows(self) -> dict[int, float]:
        began: dict[int, float] = {}
        times: dict[int, list[float]] = {}

        def before(row: int, *_: object) -> None:
            began[row] = time.perf_counter()

        def after(row: int, *_: object) -> None:
            times.setdefault(row, []).append((time.perf_counter() - began[row]) * 1e3)

        layers: Any = self._model.model
        hooks = [layer.register_forward_pre_hook(partial(before, row)) for row, layer in enumerate(layers)]
        hooks += [layer.register_forward_hook(partial(after, row)) for row, layer in enumerate(layers)]
        try:
            for _ in range(2 * PROFILED_RUNS):
                self.run()
        finally:
            for hook in hooks:
                hook.remove()
        return {row: statistics.median(seen[-PROFILED_RUNS:]) for row, seen in times.items()}
