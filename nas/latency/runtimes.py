"""The runtimes behind the targets: each turns a model in inference form into a callable that runs it once."""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from nas.errors import UnreachableError
from nas.latency.target import Target
from nas.yolo.build import export_onnx, tensors

Array = npt.NDArray[np.float32]


class Session(ABC):
    """A model made ready on a target.

    Args:
        model: `nas.yolo.build.inference_form` of an architecture.
        target: threads, batch and precision to use.
        imgsz: side of the square input.

    Raises:
        UnreachableError: the target's device or runtime is not there.
    """

    @abstractmethod
    def __init__(self, model: nn.Module, target: Target, imgsz: int) -> None: ...

    @abstractmethod
    def infer(self, images: Array) -> list[Array]:
        """Predictions before NMS for images (batch, 3, imgsz, imgsz) in [0, 1], for segmentation with the mask prototypes:
        what the timed run computes."""

    @abstractmethod
    def run(self) -> None:
        """One complete inference of a fixed input that is on the device already."""


class OnnxRuntimeSession(Session):
    """ONNX Runtime on the CPU, sequential execution, graph fully optimised."""

    def __init__(self, model: nn.Module, target: Target, imgsz: int) -> None:
        import onnxruntime  # noqa: PLC0415  (only when this target is used)

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = target.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        with tempfile.TemporaryDirectory(prefix="nas-") as folder:
            path = Path(folder) / "model.onnx"
            export_onnx(model, path, imgsz, batch=target.batch)
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._feed = {"images": _image(target.batch, imgsz).numpy()}

    def infer(self, images: Array) -> list[Array]:
        outputs: list[Array] = self._session.run(None, {"images": images})
        return outputs

    def run(self) -> None:
        self._session.run(None, self._feed)


class TorchCpuSession(Session):
    """Eager PyTorch on the CPU in channels_last, as Ultralytics predicts there."""

    def __init__(self, model: nn.Module, target: Target, imgsz: int) -> None:
        torch.set_num_threads(target.threads)
        self._model = model.to(memory_format=torch.channels_last)
        self._image = _image(target.batch, imgsz).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def infer(self, images: Array) -> list[Array]:
        output = self._model(torch.from_numpy(images).to(memory_format=torch.channels_last))
        return [tensor.numpy() for tensor in tensors(output)]

    @torch.inference_mode()
    def run(self) -> None:
        self._model(self._image)


class TorchCudaSession(Session):
    """PyTorch on a GPU in half precision, replayed as one CUDA graph."""

    def __init__(self, model: nn.Module, target: Target, imgsz: int) -> None:
        if not torch.cuda.is_available():
            raise UnreachableError(f"target {target}: no CUDA device found", "use --target cpu:onnxruntime")
        self._model = model.half().cuda().to(memory_format=torch.channels_last)
        self._image = _image(target.batch, imgsz).half().cuda().to(memory_format=torch.channels_last)
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        with torch.inference_mode(), torch.cuda.stream(stream):
            for _ in range(3):
                self._model(self._image)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.graph(self._graph):
            self._outputs = tensors(self._model(self._image))

    def infer(self, images: Array) -> list[Array]:
        self._image.copy_(torch.from_numpy(images))
        self.run()
        return [output.float().cpu().numpy() for output in self._outputs]

    def run(self) -> None:
        self._graph.replay()
        torch.cuda.synchronize()


SESSIONS: dict[str, type[Session]] = {
    "cpu:onnxruntime": OnnxRuntimeSession,
    "cpu:torch": TorchCpuSession,
    "cuda:torch-fp16": TorchCudaSession,
}


def _image(batch: int, imgsz: int) -> torch.Tensor:
    return torch.rand(batch, 3, imgsz, imgsz, generator=torch.Generator().manual_seed(0))
