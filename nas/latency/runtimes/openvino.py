"""OpenVINO on the CPU."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
from torch import nn

from nas.errors import UnreachableError
from nas.latency.measure import PROFILED_RUNS, by_row
from nas.latency.runtimes.onnxruntime import onnx_bytes
from nas.latency.runtimes.session import Array, Session, fixed_image
from nas.latency.target import Target

_PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


class OpenVinoSession(Session):
    """OpenVINO with its latency hint: one stream, one request after another."""

    def __init__(self, model: nn.Module, target: Target) -> None:
        target.require()
        import openvino  # noqa: PLC0415  (only when this target is used)

        self._core, self._target = openvino.Core(), target
        self._network = self._core.read_model(onnx_bytes(model, target))
        compiled = self._compiled()
        got = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        if got != _PRECISIONS[target.precision]:
            raise UnreachableError(
                f"target {target}: OpenVINO computes in {got} on this processor", "use --target cpu:openvino"
            )
        self._request = compiled.create_infer_request()
        self._image = openvino.Tensor(fixed_image(target).numpy(), shared_memory=True)
        self._request.set_input_tensor(self._image)

    def infer(self, images: Array) -> list[Array]:
        self._image.data[:] = images
        self.run()
        return [np.array(tensor.data, np.float32) for tensor in self._request.output_tensors]

    def run(self) -> None:
        self._request.start_async()
        self._request.wait()

    def rows(self) -> dict[int, float]:
        request = self._compiled(PERF_COUNT=True).create_infer_request()
        request.set_input_tensor(self._image)
        nodes: dict[str, list[float]] = {}  # in the order in which they run
        for _ in range(2 * PROFILED_RUNS):
            request.start_async()
            request.wait()
            for node in request.profiling_info:
                nodes.setdefault(node.node_name, []).append(node.real_time.total_seconds() * 1e3)
        return by_row([(name, statistics.median(times[-PROFILED_RUNS:])) for name, times in nodes.items()])

    def _compiled(self, **more: Any) -> Any:
        how = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": self._target.threads,
            "INFERENCE_PRECISION_HINT": _PRECISIONS[self._target.precision],
        }
        return self._core.compile_model(self._network, "CPU", {**how, **more})
