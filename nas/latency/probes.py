"""A folder to measure on another device: probe models as ONNX, the program that times them there, and what to type.

The device needs Python, numpy and onnxruntime; what comes back is a table (see `nas.latency.table`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas.errors import InputError
from nas.files import write_whole
from nas.latency import measure
from nas.space.architecture import Architecture, model_yaml
from nas.space.skeleton import Skeleton

PROGRAM, LIST, README = "measure.py", "probes.json", "README.txt"
# Loading a model and making it ready, on a small device.
LOAD_SECONDS = 1.5

_TEXT = """\
Probe models of {skeleton} at {imgsz} px, to be measured on the device that you search for.

1. Copy this folder to the device, which needs Python 3.8 or later with numpy and onnxruntime:

    scp -r {folder} DEVICE:{folder}

2. Measure there, about {quick} where an inference takes 10 ms, {slow} where it takes 100 ms. What is measured
   is kept: started again, it goes on where it was.{append}

    python3 measure.py --out {table}

   More threads, or a GPU: --threads 4, --providers CUDAExecutionProvider,CPUExecutionProvider

3. Bring {table} back, and type:

    {then}
"""


@dataclass(frozen=True)
class Probes:
    """What a probe folder holds.

    Args:
        imgsz: height and width of the input in pixels.
        nc: number of classes of the models.
        batch: images per inference.
        table: the CSV that the device writes; a second folder of the same device goes on with the first one's.
        then: what to type once the CSV is back.
    """

    skeleton: Skeleton
    architectures: Sequence[Architecture]
    imgsz: tuple[int, int]
    nc: int
    batch: int = 1
    table: str = "device.csv"
    then: str = "nas search --target table:device.csv"

    def text(self) -> str:
        """probes.json; `measure.py` copies all of an entry but its file into the table."""
        listed = {"rows": len(self.skeleton.rows), "probes": [self.entry(a) for a in self.architectures]}
        return json.dumps(listed, indent=1) + "\n"

    def entry(self, architecture: Architecture) -> dict[str, Any]:
        """What probes.json and, but for the file, a table say of an architecture."""
        height, width = self.imgsz
        return {
            "id": architecture.id,
            "file": f"{architecture.id}.onnx",
            "skeleton": self.skeleton.name,
            "imgsz": str(height) if height == width else f"{height}x{width}",
            "batch": self.batch,
            "nc": self.nc,
            "architecture": json.dumps(architecture.to_dict(), sort_keys=True, separators=(",", ":")),
        }

    def readme(self, folder: str, *, more: bool) -> str:
        """README.txt. `more`: the device has a table already, to which these are added."""
        entry = self.entry(self.architectures[0])
        count = len(self.architectures)
        return _TEXT.format(
            skeleton=self.skeleton.name,
            imgsz=entry["imgsz"],
            folder=folder,
            table=self.table,
            then=self.then,
            append=f"\n   Lay the {self.table} of before beside it first: lines are added to it." if more else "",
            quick=minutes(count * seconds_per_probe(10)),
            slow=minutes(count * seconds_per_probe(100)),
        )


def seconds_per_probe(ms: float) -> float:
    """About what `measure.py` takes for one model on a quiet device where an inference takes so long."""
    block = max(measure.BLOCK_SECONDS, measure.MIN_RUNS * ms / 1e3) + measure.PAUSE_SECONDS
    return LOAD_SECONDS + (measure.BLOCKS + 1) * block + 2 * measure.PROFILED_RUNS * ms / 1e3


def minutes(seconds: float) -> str:
    return f"{max(1, round(seconds / 60))} min"


def write_probes(folder: Path, probes: Probes, *, more: bool = False, say: Callable[[str], None] = lambda _: None) -> int:
    """Write a probe folder; returns what its models weigh in bytes. What an interrupted call has written stays.

    Weights are drawn from a fixed seed: they do not matter for the latency.

    Raises:
        InputError: the folder holds something else, or cannot be written.
    """
    _admit(folder, probes.text())
    files = {folder / probes.entry(a)["file"]: a for a in probes.architectures}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The list comes first: it is what an interrupted call is known by.
        write_whole(folder / LIST, probes.text())
        write_whole(folder / PROGRAM, Path(measure.__file__).read_bytes())
        write_whole(folder / README, probes.readme(folder.name, more=more))
        for number, (file, architecture) in enumerate(files.items(), 1):
            if not file.is_file():
                _export(file, probes, architecture)
                say(f"{number}/{len(files)} {file.name}")
        return sum(file.stat().st_size for file in files)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror or error}", "make room, or make it writable") from error


def held(folder: Path) -> str | None:
    """The probes.json of a folder: "" where it holds something else, None where it is free (empty, or not there)."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    try:
        return (folder / LIST).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _admit(folder: Path, listed: str) -> None:
    """Raises InputError where a folder holds anything but these very probes."""
    before = held(folder)
    if before in {None, listed}:
        return
    what = "holds other probes already" if before else "exists already and holds no probes"
    raise InputError(f"{folder} {what}", "choose another folder")


def _export(path: Path, probes: Probes, architecture: Architecture) -> None:
    import torch  # noqa: PLC0415  (whoever only plans probes needs none)

    from nas.yolo.build import build, export_onnx, inference_form  # noqa: PLC0415

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(model_yaml(probes.skeleton, architecture, probes.nc))
    beside = path.with_suffix(".part")
    export_onnx(inference_form(model), beside, probes.imgsz, batch=probes.batch)
    beside.replace(path)
