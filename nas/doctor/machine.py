"""This machine: packages, GPUs, targets, disks. No torch in this process: a child imports it."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nas.doctor.finding import Finding, Verdict
from nas.errors import NasError, UnreachableError
from nas.hardware import gpus
from nas.latency.target import KINDS, Target

PACKAGES = ("torch", "torchvision", "ultralytics", "optuna", "ray", "onnxruntime")
OPTIONAL = ("openvino", "tensorrt")
IMPORT_SECONDS = 180.0
FULL_BYTES, SCARCE_BYTES, SCARCE_SHM_BYTES = 10**9, 10**10, 10**9
UNREACHABLE = UnreachableError.exit_code
FRESH = "install anew in a fresh environment: pip install -r requirements.txt"


@dataclass
class Imported:
    """What a child process could import: package -> version, package -> why not, and what torch says of its GPUs."""

    versions: dict[str, str] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    cuda: Mapping[str, Any] | None = None


def imported(seconds: float = IMPORT_SECONDS) -> Imported:
    """Import everything in one child process, within a time limit. Raises OSError where none can be started."""
    names = [*PACKAGES, *(name for name in OPTIONAL if find_spec(name) is not None)]
    with tempfile.TemporaryDirectory(prefix="nas-doctor-") as scratch:
        quiet = {"YOLO_CONFIG_DIR": scratch, "MPLCONFIGDIR": scratch, "YOLO_OFFLINE": "1", "YOLO_AUTOINSTALL": "False"}
        # -P: no modules from the present folder
        command = [sys.executable, "-P", "-m", "nas.doctor.imports", *names]
        try:
            done = subprocess.run(
                command, env=os.environ | quiet, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False
            )
            last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
            said, end = done.stdout, ": ".join([f"its process ended with code {done.returncode}", *last])
        except subprocess.TimeoutExpired as late:
            said, end = late.stdout or b"", f"nothing came of it within {seconds:.0f} s"
    found, under_way = Imported(), "torch"
    for line in said.decode("utf-8", "replace").splitlines():
        told = json.loads(line)
        under_way = told.get("package", "CUDA")
        if "version" in told:
            found.versions[under_way] = str(told["version"])
        elif "error" in told:
            found.errors[under_way] = told["error"]
        elif "cuda" in told:
            found.cuda = told["cuda"]
    if silent := [name for name in names if name not in found.versions | found.errors]:
        found.errors[silent[0]] = end
    elif found.cuda is None and "torch" in found.versions:
        found.cuda = {"error": end}
    return found


def software() -> Iterator[Finding]:
    """The packages that a search needs, and the GPUs that torch computes on."""
    found = imported()
    named = [f"Python {platform.python_version()}", *(f"{name} {version}" for name, version in found.versions.items())]
    yield Finding("packages", "ok", ", ".join(named))
    for name, error in found.errors.items():
        together = "; torch and torchvision must belong together" if name == "torchvision" else ""
        yield Finding("packages", "fault", f"{name} cannot be imported: {error}{together}", FRESH, exit_code=UNREACHABLE)
    yield from graphics(found.cuda)


def graphics(cuda: Mapping[str, Any] | None) -> Iterator[Finding]:
    """The GPUs that the driver lists against those that torch computes on (`Imported.cuda`)."""
    listed, chosen = list(gpus().values()), os.environ.get("CUDA_VISIBLE_DEVICES")
    error = "torch cannot be imported" if cuda is None else cuda.get("error")
    names = list(cuda.get("names", ())) if cuda else []
    if listed and (error or len(names) != len(listed)):
        why = error or f"it sees {len(names)}"
        yield Finding(
            "gpu",
            "fault",
            f"the driver lists {_counted(listed)}, but torch does not compute on {'it' if len(listed) == 1 else 'them'}: {why}",
            "update the driver, or install a torch that is built for its CUDA version (nvidia-smi names it)",
            exit_code=UNREACHABLE,
        )
    elif listed:
        yield Finding("gpu", "ok", f"{_counted(names)}; torch computes on {'it' if len(names) == 1 else 'each'}")
    elif names:
        why = "nvidia-smi does not list it"
        yield Finding("gpu", "note", f"torch sees {_counted(names)}, but {why}: nas takes it for absent", "install nvidia-smi")
    elif chosen is not None:
        yield Finding("gpu", "note", f"CUDA_VISIBLE_DEVICES='{chosen}' leaves no GPU: proxies train on the CPU")
    elif refusal := _refusal():
        there = any(Path("/dev").glob("nvidia[0-9]*"))
        cure = "see to the driver; until then proxies train on the CPU"
        yield Finding("gpu", "fault" if there else "note", f"nvidia-smi lists none: {refusal}", cure, exit_code=UNREACHABLE)
    else:
        yield Finding("gpu", "note", "no NVIDIA GPU: proxies train on the CPU")


def _refusal() -> str:
    """Why the driver's own tool lists no GPU; empty where it is not there."""
    if (tool := shutil.which("nvidia-smi")) is None:
        return ""
    try:
        done = subprocess.run([tool, "-L"], capture_output=True, text=True, errors="replace", timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return " ".join((done.stdout + done.stderr).split())[:200] or f"it ended with code {done.returncode}"


def _counted(names: list[str]) -> str:
    """`2 x NVIDIA H200`."""
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))


def targets() -> Iterator[Finding]:
    """What latency can be measured on here, and what is missing for the rest."""
    here, missing = [], defaultdict(list)
    for kind in KINDS:
        try:
            Target.parse(kind).require()
            here.append(kind)
        except NasError as error:
            hint = str(error.hint).partition(", or use")[0]
            cure = f" ({hint})" if hint.startswith("pip ") else ""
            missing[f"{error.message.partition(': ')[2]}{cure}"].append(kind)
    absent = "\n".join(f"not {', '.join(kinds)}: {why}" for why, kinds in missing.items())
    if here:
        yield Finding("targets", "ok", f"{', '.join(here)}; auto is {Target.parse('auto').kind}", absent)
    else:
        yield Finding("targets", "fault", "nothing to measure latency on", absent, exit_code=UNREACHABLE)


def disk(what: str, place: Path, cure: str) -> Iterator[Finding]:
    """Room where something is to be kept, and whether a file can be written there: found out by writing one without a name."""
    there = next(folder for folder in (place.absolute(), *place.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(there).free
    seen = f"{what}: {free / 1e9:,.1f} GB free in {there}"
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(2**16))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        yield Finding("disk", "fault", f"{what}: {there} cannot be written: {error.strerror or error}", cure)
        return
    verdict: Verdict = "fault" if free < FULL_BYTES else "note" if free < SCARCE_BYTES else "ok"
    yield Finding("disk", verdict, seen, None if verdict == "ok" else f"free space; {cure}")


def shared_memory(place: Path = Path("/dev/shm")) -> Iterator[Finding]:  # noqa: S108
    """Room for Ray's object store, which goes to the disk where there is less."""
    if place.is_dir():
        free = shutil.disk_usage(place).free
        seen = f"shared memory: {free / 1e9:,.1f} GB free in {place}"
        if free < SCARCE_SHM_BYTES:
            yield Finding("disk", "note", f"{seen}, little for Ray", "in a container: --shm-size=2g; or --executor local")
        else:
            yield Finding("disk", "ok", seen)
