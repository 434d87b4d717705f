"""PyTorch on an NVIDIA GPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from nas.errors import UnreachableError
from nas.latency.measure import PROFILED_RUNS
from nas.latency.runtimes.session import Array, Session, fixed_image
from nas.latency.target import Target
from nas.yolo.build import tensors


class TorchCudaSession(Session):
    """PyTorch in half precision and channels_last, replayed as one CUDA graph."""

    def __init__(self, model: nn.Module, target: Target) -> None:
        require_cuda(target)
        self._model = model.half().cuda().to(memory_format=torch.channels_last)
        image = fixed_image(target).half().contiguous(memory_format=torch.channels_last)
        self._images = HostCopies(image, target.copy)
        self._graph, self._outputs = captured(lambda: tensors(self._model(self._images.device)))
        self._images.answer_with(self._outputs)

    def infer(self, images: Array) -> list[Array]:
        self._images.put(images)
        self.run()
        return [output.float().cpu().numpy() for output in self._outputs]

    def run(self) -> None:
        self._images.to_device()
        self._graph.replay()
        self._images.to_host()
        torch.cuda.synchronize()

    def rows(self) -> dict[int, float]:
        """Each row as a CUDA graph of its own that holds it ten times."""
        given: dict[int, Any] = {}

        def keep(row: int, _: nn.Module, args: Any) -> None:
            given[row] = args

        layers: Any = self._model.model
        hooks = [layer.register_forward_pre_hook(partial(keep, row)) for row, layer in enumerate(layers)]
        with torch.inference_mode():
            self._model(self._images.device)
        for hook in hooks:
            hook.remove()
        return {row: _milliseconds(partial(layer, *given[row])) for row, layer in enumerate(layers)}


class HostCopies:
    """The input on the GPU and, where copies are timed, in page-locked memory of the host; there the answers go too."""

    def __init__(self, image: torch.Tensor, timed: bool) -> None:
        self.device = image.cuda()
        self._timed, self._host = timed, image.pin_memory()
        self._answers: list[tuple[torch.Tensor, torch.Tensor]] = []

    def answer_with(self, outputs: list[torch.Tensor]) -> None:
        self._answers = [(torch.empty_like(output, device="cpu").pin_memory(), output) for output in outputs]

    def put(self, images: Array) -> None:
        self._host.copy_(torch.from_numpy(images))
        self.device.copy_(self._host)

    def to_device(self) -> None:
        if self._timed:
            self.device.copy_(self._host, non_blocking=True)

    def to_host(self) -> None:
        for host, output in self._answers if self._timed else ():
            host.copy_(output, non_blocking=True)


def require_cuda(target: Target) -> None:
    """Raises UnreachableError where torch has no GPU to use."""
    if not torch.cuda.is_available():
        raise UnreachableError(f"target {target}: no CUDA device found", "use --target cpu:onnxruntime")


def captured(run: Callable[[], list[torch.Tensor]]) -> tuple[torch.cuda.CUDAGraph, list[torch.Tensor]]:
    """`run` as a CUDA graph, and the tensors that a replay of it fills."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.inference_mode(), torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode(), torch.cuda.graph(graph):
        outputs = run()
    return graph, outputs


def _milliseconds(layer: Callable[[], Any]) -> float:
    graph, _ = captured(lambda: [tensor for _ in range(PROFILED_RUNS) for tensor in tensors(layer())])
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    graph.replay()
    torch.cuda.synchronize()
    start.record()
    graph.replay()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / PROFILED_RUNS
