"""TensorRT on an NVIDIA GPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from nas.errors import UnreachableError
from nas.latency.runtimes.onnxruntime import onnx_bytes
from nas.latency.runtimes.session import Array, Session, fixed_image
from nas.latency.runtimes.torch_cuda import HostCopies, captured, require_cuda
from nas.latency.target import Target


class TensorRtSession(Session):
    """TensorRT (10 or later), replayed as one CUDA graph.

    The model is exported in half precision and the network strongly typed, so it computes in what its name says: flags that
    let TensorRT choose the precision are gone since version 11.
    """

    def __init__(self, model: nn.Module, target: Target) -> None:
        require_cuda(target)
        target.require()
        import tensorrt  # noqa: PLC0415  (only when this target is used)

        head: Any = model.model[-1]  # type: ignore[index]
        head.format = "engine"  # Ultralytics then writes a top-k that suits TensorRT
        model.half().cuda()
        logger = tensorrt.Logger(tensorrt.Logger.ERROR)
        builder = tensorrt.Builder(logger)
        typed = getattr(tensorrt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        network = builder.create_network(0 if typed is None else 1 << int(typed))
        parser = tensorrt.OnnxParser(network, logger)
        plan = None
        if parser.parse(onnx_bytes(model, target)):
            plan = builder.build_serialized_network(network, builder.create_builder_config())
        if plan is None:
            why = parser.get_error(0).desc() if parser.num_errors else "no engine could be built"
            raise UnreachableError(f"target {target}: TensorRT refuses the model: {why}", "use --target cuda:torch-fp16")
        self._engine = tensorrt.Runtime(logger).deserialize_cuda_engine(plan)
        self._context = self._engine.create_execution_context()
        self._images = HostCopies(fixed_image(target).half(), target.copy)
        self._outputs: list[torch.Tensor] = []
        for index in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(index)
            tensor = self._images.device
            if self._engine.get_tensor_mode(name) == tensorrt.TensorIOMode.OUTPUT:
                shape = tuple(self._engine.get_tensor_shape(name))
                single = self._engine.get_tensor_dtype(name) == tensorrt.float32
                tensor = torch.empty(shape, dtype=torch.float32 if single else torch.float16, device="cuda")
                self._outputs.append(tensor)
            self._context.set_tensor_address(name, tensor.data_ptr())
        self._graph, _ = captured(self._enqueue)
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

    def rows(self) -> None:
        """TensorRT joins layers across rows."""

    def _enqueue(self) -> list[torch.Tensor]:
        if not self._context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise RuntimeError("TensorRT could not enqueue the inference")
        return self._outputs
