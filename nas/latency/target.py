"""What a latency is measured on, all in one name: device, runtime, precision, threads, batch and image size. No torch.

    cpu:onnxruntime                     one thread, batch 1, float32
    cpu:onnxruntime,threads=4,batch=2
    cpu:openvino                        also cpu:openvino-bf16 and -fp16, where the processor has them
    cpu:torch                           eager PyTorch, also cpu:torch-bf16
    cuda:torch-fp16                     a CUDA graph in half precision
    cuda:tensorrt-fp16,copy=in          with the copies to and from the GPU, which are otherwise left out
    cpu:onnxruntime,imgsz=384x640       height x width, where it is not the run's own square
    cpu:onnxruntime@paced=33ms          after 33 ms of idleness, as between the images of a camera
    table:jetson.csv                    measured on another device (see `nas.latency.measure`)
    auto                                the best of them that this machine has

Precision is a part of the runtime's name; without a suffix it is float32.
"""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from nas.errors import InputError, UnreachableError, did_you_mean
from nas.hardware import gpus
from nas.latency.found import RUNTIMES, best, computes, installed

KINDS = (
    "cpu:onnxruntime",
    "cpu:openvino",
    "cpu:openvino-bf16",
    "cpu:openvino-fp16",
    "cpu:torch",
    "cpu:torch-bf16",
    "cuda:torch-fp16",
    "cuda:tensorrt-fp16",
)
TABLE = "table"
OWN = "yolo-placement-search"  # our own package
PACED_MS = 33.0
_MAX_THREADS, _MAX_BATCH, _MAX_PACED_MS = 1024, 1024, 10_000.0
_STRIDE, _MAX_SIDE = 32, 4096


@dataclass(frozen=True)
class Target:
    """One place to be fast on. `str()` gives the full name, which parses back.

    Args:
        kind: `device:runtime-precision`, one of `KINDS`, or `table`.
        threads: of the runtime; 1 on a GPU.
        batch: images per inference.
        imgsz: height and width of the input in pixels; None where the run's own square is meant (see `at`).
        paced_ms: idle time before each inference in ms; None for one inference after another.
        copy: whether the copies to and from a GPU are timed too.
        file: of a table.
    """

    kind: str
    threads: int = 1
    batch: int = 1
    imgsz: tuple[int, int] | None = None
    paced_ms: float | None = None
    copy: bool = False
    file: str = ""

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read a target's name. Raises InputError with the nearest right one."""
        text = text.strip()
        if text.startswith(f"{TABLE}:"):
            if not (file := text.removeprefix(f"{TABLE}:")):
                raise InputError(f"target '{text}' names no file", "for example table:jetson.csv")
            return cls(TABLE, file=file)
        name, at, pace = text.partition("@")
        kind, *options = (part.strip() for part in name.split(","))
        if kind == "auto":
            kind = best(cpu="threads=" in name)[0]
        if kind not in KINDS:
            raise _unknown(kind)
        known: dict[str, Callable[[str], int | bool | tuple[int, int]]] = {
            "batch": lambda value: _whole(text, "batch", value, _MAX_BATCH),
            "imgsz": parse_imgsz,
        }
        if kind.startswith("cpu:"):
            known["threads"] = lambda value: _whole(text, "threads", value, _MAX_THREADS)
        else:
            known["copy"] = lambda value: _in_or_out(text, value)
        values: dict[str, int | bool | tuple[int, int]] = {}
        for option in options:
            word, _, value = option.partition("=")
            if word not in known:
                raise InputError(f"target '{text}': unknown option '{word}'", did_you_mean(word, known))
            if word in values:
                raise InputError(f"target '{text}': {word} is given twice", "give it once")
            values[word] = known[word](value)
        return replace(cls(kind, paced_ms=_pace(text, pace.strip()) if at else None), **values)  # type: ignore[arg-type]

    def at(self, imgsz: int | tuple[int, int]) -> Target:
        """The target with this image size (a side or height and width), unless it names its own or is a table."""
        if self.imgsz is not None or self.kind == TABLE:
            return self
        return replace(self, imgsz=(imgsz, imgsz) if isinstance(imgsz, int) else imgsz)

    @property
    def device(self) -> str:
        """`cpu`, `cuda`, or `table` for another machine's."""
        return self.kind.partition(":")[0]

    @property
    def runtime(self) -> str:
        """The package that computes; empty for a table."""
        return self.kind.partition(":")[2].partition("-")[0]

    @property
    def precision(self) -> str:
        return self.kind.partition("-")[2] or "fp32"

    @property
    def height(self) -> int:
        return self._size[0]

    @property
    def width(self) -> int:
        return self._size[1]

    @property
    def _size(self) -> tuple[int, int]:
        if self.imgsz is None:
            raise ValueError(f"{self}: the image size is not known yet")
        return self.imgsz

    @property
    def packages(self) -> tuple[str, ...]:
        """The packages whose versions a latency depends on."""
        runtime = (self.runtime,) if self.runtime else ()
        return tuple(dict.fromkeys((*runtime, "torch", "ultralytics", OWN)))

    def __str__(self) -> str:
        if self.kind == TABLE:
            return f"{TABLE}:{self.file}"
        parts = [self.kind, *([f"threads={self.threads}"] if self.device == "cpu" else []), f"batch={self.batch}"]
        if self.imgsz is not None:
            height, width = self.imgsz
            parts.append(f"imgsz={height}" if height == width else f"imgsz={height}x{width}")
        if self.device == "cuda":
            parts.append(f"copy={'in' if self.copy else 'out'}")
        return ",".join(parts) + (f"@paced={self.paced_ms:.15g}ms" if self.paced_ms is not None else "")

    def scope(self, *, end2end: bool) -> str:
        """What a figure of this target holds and what not, as a sentence for reports.

        Args:
            end2end: the model's head picks its final boxes itself (YOLOv10, YOLO26).
        """
        until = "final boxes (its head needs no NMS)" if end2end else "decoded boxes, NMS left out"
        copies = {"cuda": f", copies to and from the GPU {'included' if self.copy else 'left out'}"}.get(self.device, "")
        pace = f", each after {self.paced_ms:g} ms of idleness" if self.paced_ms is not None else ""
        return f"The fused model from a ready input to {until}{copies}; pre-processing left out{pace}."

    def require(self) -> None:
        """Whether this machine can measure on it.

        Raises:
            InputError: no such table.
            UnreachableError: no such device, the runtime is not installed, or the precision would be emulated.
        """
        if self.kind == TABLE:
            _digest(Path(self.file))
            return
        if self.device == "cuda" and not gpus():
            raise UnreachableError(f"target {self}: no CUDA device found", "use --target cpu:onnxruntime")
        if not installed(self.runtime):
            called, package = RUNTIMES[self.runtime]
            nearest = "cpu:onnxruntime" if self.device == "cpu" else "cuda:torch-fp16"
            hint = f"pip install {package}, or use --target {nearest}"
            raise UnreachableError(f"target {self}: {called} is not installed", hint)
        if self.device == "cpu" and not computes(self.precision):
            what = f"target {self}: this processor does not compute in {self.precision}, which would be emulated"
            raise UnreachableError(what, f"use --target {self.kind.partition('-')[0]}")

    def stamp(self) -> dict[str, str]:
        """Everything but the architecture that a latency depends on: the machine and the versions in use, or the table."""
        if self.kind == TABLE:
            return {"target": str(self), "table": _digest(Path(self.file))}
        versions = {package: _version(package) for package in self.packages}
        gpu = {"gpu": next(iter(gpus().values()), "missing")} if self.device == "cuda" else {}
        return {"target": str(self), "machine": machine_name(), **gpu, **versions}


def own_version() -> str:
    """The version of our own code that is installed here."""
    return _version(OWN)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def chosen_because(name: str) -> str:
    """Why `auto` became what it did, to be put behind the target; empty for a name that says itself what it means."""
    return f": {best(cpu='threads=' in name)[1]}" if name.strip().startswith("auto") else ""


def parse_imgsz(text: str) -> tuple[int, int]:
    """Read `640` or `384x640`, height x width in pixels. Raises InputError with the nearest right size."""
    if not re.fullmatch("[0-9]{1,9}(x[0-9]{1,9})?", text):
        raise InputError(f"imgsz is '{text}'", "give a side, for example 640, or height x width: 384x640")
    sides = [int(side) for side in text.split("x")]
    near = [min(_MAX_SIDE, max(_STRIDE, round(side / _STRIDE) * _STRIDE)) for side in sides]
    if sides != near:
        raise InputError(
            f"imgsz {text} is not made of multiples of {_STRIDE} up to {_MAX_SIDE}", f"use {'x'.join(map(str, near))}"
        )
    return sides[0], sides[-1]


def _unknown(kind: str) -> InputError:
    """Says which part of a kind is wrong: often only the precision."""
    plain, _, precision = kind.partition("-")
    same = [known for known in KINDS if known.partition("-")[0] == plain]
    if same and precision:
        called = RUNTIMES[plain.partition(":")[2]][0]
        device = "a GPU" if plain.startswith("cuda") else "a CPU"
        return InputError(
            f"target '{kind}': on {device}, {called} is not timed in {precision}: it would be emulated or is not there",
            f"use {' or '.join(same)}",
        )
    return InputError(f"unknown target '{kind}'", did_you_mean(kind, (*KINDS, f"{TABLE}:FILE", "auto")))


def _whole(text: str, word: str, value: str, highest: int) -> int:
    if not re.fullmatch("[0-9]{1,9}", value) or not 1 <= int(value) <= highest:
        raise InputError(f"target '{text}': {word} is '{value}'", f"give a whole number from 1 to {highest}")
    return int(value)


def _in_or_out(text: str, value: str) -> bool:
    if value not in {"in", "out"}:
        raise InputError(f"target '{text}': copy is '{value}'", "give copy=in (copies are timed) or copy=out (they are not)")
    return value == "in"


def _pace(text: str, pace: str) -> float:
    """`paced` or `paced=33ms` in ms."""
    found = re.fullmatch(r"paced(?:=([0-9]{1,9}(?:\.[0-9]{1,9})?)ms)?", pace)
    ms = float(found[1] or PACED_MS) if found else 0.0
    if not 0 < ms <= _MAX_PACED_MS:
        raise InputError(f"target '{text}': '@{pace}' is no pace", f"write @paced or, up to {_MAX_PACED_MS:g} ms, @paced=33ms")
    return ms


def _digest(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"target {TABLE}:{file}: {error.strerror}", "give a CSV that measure.py wrote") from error


@lru_cache(maxsize=1)
def machine_name() -> str:
    """The processor's name and this host's, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model")))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    return f"{model} ({platform.node()})"
