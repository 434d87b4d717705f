"""ONNX Runtime on the CPU."""

from __future__ import annotations

import tempfile
from pathlib import Path

from torch import nn

from nas.latency.measure import onnx_rows, onnx_session
from nas.latency.runtimes.session import Array, Session, fixed_image
from nas.latency.target import Target
from nas.yolo.build import export_onnx

PROVIDERS = ["CPUExecutionProvider"]


class OnnxRuntimeSession(Session):
    """ONNX Runtime with sequential execution and the graph fully optimised, as `measure.py` has it on other devices."""

    def __init__(self, model: nn.Module, target: Target) -> None:
        import onnxruntime  # noqa: PLC0415  (only when this target is used)

        self._threads, self._model = target.threads, onnx_bytes(model, target)
        self._session = onnx_session(onnxruntime, self._model, target.threads, PROVIDERS)
        self._feed = {"images": fixed_image(target).numpy()}

    def infer(self, images: Array) -> list[Array]:
        outputs: list[Array] = self._session.run(None, {"images": images})
        return outputs

    def run(self) -> None:
        self._session.run(None, self._feed)

    def rows(self) -> dict[int, float]:
        import onnxruntime  # noqa: PLC0415

        return onnx_rows(onnxruntime, self._model, self._threads, PROVIDERS, self._feed)


def onnx_bytes(model: nn.Module, target: Target) -> bytes:
    """The model as an ONNX file holds it, of the target's batch and image size."""
    with tempfile.TemporaryDirectory(prefix="nas-") as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(model, path, (target.height, target.width), batch=target.batch)
        return path.read_bytes()
