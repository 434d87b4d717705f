"""What a latency is measured on: device, runtime, precision, threads and batch, all in one name. No torch.

    cpu:onnxruntime              one thread, batch 1, float32
    cpu:onnxruntime,threads=4
    cpu:torch                    eager PyTorch on the CPU
    cuda:torch-fp16              a CUDA graph in half precision

What is timed is the fused model from a ready input to decoded boxes; pre-processing, copies to and from a GPU, and NMS
are left out.
"""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from nas.errors import InputError, did_you_mean
from nas.hardware import gpus

# target -> precision and the package that runs it
_RUNTIMES = {
    "cpu:onnxruntime": ("fp32", "onnxruntime"),
    "cpu:torch": ("fp32", "torch"),
    "cuda:torch-fp16": ("fp16", "torch"),
}
_MAX_THREADS, _MAX_BATCH = 1024, 1024


@dataclass(frozen=True)
class Target:
    """One place to be fast on. `kind` is `device:runtime`; `str()` gives the full name, which parses back."""

    kind: str
    threads: int = 1
    batch: int = 1

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read a target's name; `auto` is `cpu:onnxruntime`. Raises InputError with the nearest name."""
        kind, *options = (part.strip() for part in text.split(","))
        kind = "cpu:onnxruntime" if kind == "auto" else kind
        if kind not in _RUNTIMES:
            raise InputError(f"unknown target '{kind}'", did_you_mean(kind, _RUNTIMES))
        values: dict[str, int] = {}
        limits = {"batch": _MAX_BATCH} | ({"threads": _MAX_THREADS} if kind.startswith("cpu:") else {})
        for option in options:
            name, _, number = option.partition("=")
            if name not in limits:
                raise InputError(f"target '{text}': unknown option '{name}'", did_you_mean(name, limits))
            if name in values:
                raise InputError(f"target '{text}': {name} is given twice", "give it once")
            if not re.fullmatch("[0-9]{1,9}", number) or not 1 <= int(number) <= limits[name]:
                raise InputError(f"target '{text}': {name} is '{number}'", f"give a whole number from 1 to {limits[name]}")
            values[name] = int(number)
        return cls(kind, **values)

    @property
    def device(self) -> str:
        return self.kind.partition(":")[0]

    @property
    def precision(self) -> str:
        return _RUNTIMES[self.kind][0]

    @property
    def packages(self) -> tuple[str, ...]:
        """The packages whose versions a latency depends on."""
        return tuple(dict.fromkeys((_RUNTIMES[self.kind][1], "torch", "ultralytics", "yolo-placement-search")))

    def __str__(self) -> str:
        threads = f",threads={self.threads}" if self.device == "cpu" else ""
        return f"{self.kind}{threads},batch={self.batch}"

    def stamp(self) -> dict[str, str]:
        """Everything but the architecture that a latency depends on: the machine and the versions in use."""
        versions = {}
        for package in self.packages:
            try:
                versions[package] = version(package)
            except PackageNotFoundError:
                versions[package] = "missing"
        gpu = {"gpu": next(iter(gpus().values()), "missing")} if self.device == "cuda" else {}
        return {"target": str(self), "machine": machine_name(), **gpu, **versions}


@lru_cache(maxsize=1)
def machine_name() -> str:
    """The processor's name and this host's, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model")))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return f"{model} ({platform.node()})"
