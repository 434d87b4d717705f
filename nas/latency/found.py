"""What this machine can measure on: runtimes that are installed, GPUs, and what its processor computes natively. No torch."""

from __future__ import annotations

import re
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from nas.hardware import gpus

# The module of each runtime -> what it is called, and what installs it.
RUNTIMES = {
    "onnxruntime": ("ONNX Runtime", "onnxruntime"),
    "openvino": ("OpenVINO", "'yolo-placement-search[openvino]'"),
    "tensorrt": ("TensorRT", "'yolo-placement-search[tensorrt]'"),
    "torch": ("PyTorch", "torch"),
}
# Processor flags that say that it multiplies in this precision itself (x86, ARM).
NATIVE = {
    "bf16": ("avx512_bf16", "amx_bf16", "bf16"),
    "fp16": ("avx512_fp16", "amx_fp16", "asimdhp"),
}


def installed(runtime: str) -> bool:
    return find_spec(runtime) is not None


def computes(precision: str) -> bool:
    """Whether this machine's processor computes in a precision without emulating it, as far as the system tells."""
    return precision not in NATIVE or bool(cpu_flags() & set(NATIVE[precision]))


def best(*, cpu: bool = False) -> tuple[str, str]:
    """The fastest kind of target that this machine has, and why it was taken, in words.

    OpenVINO is made for Intel's processors; on others ONNX Runtime is the default.

    Args:
        cpu: leave GPUs aside.
    """
    if not cpu and (cards := list(gpus().values())):
        if installed("tensorrt"):
            return "cuda:tensorrt-fp16", f"{cards[0]} and TensorRT found"
        return "cuda:torch-fp16", f"{cards[0]} found, TensorRT not installed"
    where = "GPUs left aside" if cpu else "no NVIDIA GPU found"
    if installed("openvino") and "GenuineIntel" in _cpu_info():
        return "cpu:openvino", f"{where}; OpenVINO on an Intel processor"
    return "cpu:onnxruntime", f"{where}; ONNX Runtime is the default on a CPU"


def cpu_flags() -> frozenset[str]:
    """What the processor says that it can do; nothing where the system does not tell."""
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", _cpu_info(), re.MULTILINE)
    return frozenset(flags[1].split()) if flags else frozenset()


@lru_cache(maxsize=1)
def _cpu_info() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""
