"""The runtimes behind the targets, one file each, all of them a `Session`."""

from nas.latency.runtimes.onnxruntime import OnnxRuntimeSession
from nas.latency.runtimes.openvino import OpenVinoSession
from nas.latency.runtimes.session import Session
from nas.latency.runtimes.tensorrt import TensorRtSession
from nas.latency.runtimes.torch_cpu import TorchCpuSession
from nas.latency.runtimes.torch_cuda import TorchCudaSession

SESSIONS: dict[str, type[Session]] = {
    "cpu:onnxruntime": OnnxRuntimeSession,
    "cpu:openvino": OpenVinoSession,
    "cpu:openvino-bf16": OpenVinoSession,
    "cpu:openvino-fp16": OpenVinoSession,
    "cpu:torch": TorchCpuSession,
    "cpu:torch-bf16": TorchCpuSession,
    "cuda:torch-fp16": TorchCudaSession,
    "cuda:tensorrt-fp16": TensorRtSession,
}

__all__ = ("SESSIONS", "Session")
