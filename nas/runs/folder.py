"""The run folder `results/NAME`: made, locked against a second search, found again; run.yaml and manifest.json."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import yaml
from filelock import FileLock, Timeout

from nas.blocks.catalog import BlockSpec
from nas.blocks.register import as_data, digest_of, file_of, from_data
from nas.config import RunConfig
from nas.errors import InputError, did_you_mean
from nas.files import write_whole
from nas.space.skeleton import find_model, models_folder
from nas.space.source import read_yaml
from nas.storage import masked

RESULTS = Path("results")
BLOCKS = "blocks"
_PACKAGES = ("yolo-placement-search", "torch", "torchvision", "ultralytics", "optuna", "ray", "onnx", "onnxruntime", "numpy")


def new_folder(name: str | None, results: Path = RESULTS) -> Path:
    """Make `results/search`, `search2`, … or `results/NAME`. Raises InputError when it cannot be made or exists."""
    if name is not None and not re.fullmatch(r"[\w][\w .-]*", name):
        raise InputError(f"run name '{name}' is not a plain folder name", "use letters, digits, '.', '_' and '-'")
    base = name or "search"
    try:
        results.mkdir(parents=True, exist_ok=True)
        for number in range(1, 100_000):
            folder = results / (base if number == 1 else f"{base}{number}")
            try:
                folder.mkdir()
            except FileExistsError:
                if name is not None:
                    raise InputError(
                        f"{folder} exists already", f"go on with --resume {folder}, or choose another --name"
                    ) from None
                continue
            return folder
    except OSError as error:
        raise InputError(
            f"cannot write to {results.absolute()}: {error.strerror}", "run nas in a folder you may write to"
        ) from error
    raise InputError(f"{results} is full of runs", "choose a --name")


def find_folder(name: str | None, results: Path = RESULTS) -> Path:
    """A run folder by path or name; the latest one where `name` is None. Raises InputError."""
    runs = {p.name: p for p in results.iterdir() if (p / "run.yaml").is_file()} if results.is_dir() else {}
    if name is None:
        if not runs:
            raise InputError(f"no runs in {results.absolute()}", "start one with: nas search")
        return max(runs.values(), key=lambda folder: (folder / "run.yaml").stat().st_mtime)
    for folder in (Path(name), results / name):
        if (folder / "run.yaml").is_file():
            return folder
    raise InputError(f"no run '{name}'", did_you_mean(Path(name).name, runs) or "start one with: nas search")


def write_config(folder: Path, config: RunConfig, command: str) -> None:
    """Write run.yaml: the configuration and the command that made it."""
    text = yaml.safe_dump({"command": command, **config.to_dict()}, sort_keys=False, allow_unicode=True)
    write_whole(folder / "run.yaml", text)


def read_config(folder: Path) -> tuple[RunConfig, str]:
    """Read run.yaml back: the configuration and the command. Raises InputError."""
    path = folder / "run.yaml"
    data = dict(read_yaml(path).data)
    command = str(data.pop("command", ""))
    return RunConfig.from_dict(data, path), command


@contextmanager
def removed_on_failure(folder: Path, failure: type[BaseException] = BaseException) -> Iterator[None]:
    """Remove a folder that was just made when what it is for fails before it holds anything of worth."""
    try:
        yield
    except failure:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def write_space(folder: Path, space: Path) -> None:
    """Write space.yaml, a copy of a search space whose files lie in the run folder too.

    A skeleton that Ultralytics does not ship is copied beside it; for block files see `write_blocks`.
    """
    document = read_yaml(space)
    moved: dict[str, Any] = {}
    skeleton, _ = find_model(document.data["skeleton"], space.parent)
    if not skeleton.is_relative_to(models_folder()):
        moved["skeleton"] = skeleton.name
        write_whole(folder / skeleton.name, skeleton.read_bytes())
    if listed := document.data.get("blocks"):
        moved["blocks"] = [f"{BLOCKS}/{Path(name).name}" for name in listed]
    lines = space.read_text(encoding="utf-8").splitlines()
    for key, value in moved.items():
        at = [line for where, line in document.lines.items() if where[0] == key]
        lines[min(at) - 1 : max(at)] = [f"{key}: {json.dumps(value, ensure_ascii=False)}", *[""] * (max(at) - min(at))]
    text, wanted = "\n".join(lines) + "\n", document.data | moved
    write_whole(folder / "space.yaml", text if _says(text, wanted) else yaml.safe_dump(wanted, sort_keys=False))


def _says(text: str, data: Mapping[str, Any]) -> bool:
    """Whether a YAML that was changed line by line came out as meant: it does not where several keys share a line."""
    try:
        return bool(yaml.safe_load(text) == data)
    except yaml.YAMLError:
        return False


def write_blocks(folder: Path, blocks: Sequence[BlockSpec], files: Iterable[Path]) -> None:
    """Copy the user's block files into `blocks/` and describe their blocks in `blocks/blocks.json`."""
    (folder / BLOCKS).mkdir()
    for file in files:
        write_whole(folder / BLOCKS / file.name, file.read_bytes())
    described = json.dumps([as_data(spec) for spec in blocks], indent=2, ensure_ascii=False)
    write_whole(folder / BLOCKS / "blocks.json", described + "\n")


def read_blocks(folder: Path) -> list[BlockSpec]:
    """The user's blocks of a run, from their description: no code runs. Raises InputError for a damaged one."""
    path = folder / BLOCKS / "blocks.json"
    if not path.is_file():
        return []
    try:
        return [from_data(entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: damaged: {error}", "restore the file, or start a new run") from error


def block_files(folder: Path) -> list[Path]:
    """The run's own copies of the user's block files. Raises InputError where one is missing or is not what it was."""
    found = {folder / BLOCKS / file_of(spec): spec.digest for spec in read_blocks(folder)}
    for path, digest in found.items():
        if digest_of(path) != digest:
            raise InputError(f"{path}: has changed since the run began", "restore the file, or start a new run")
    return list(found)


def resume_command(folder: Path) -> str:
    """What to type to go on with a run; block files are code and must be named again."""
    files = {folder / BLOCKS / file_of(spec) for spec in read_blocks(folder)}
    return shlex.join(
        ["nas", "search", "--resume", str(folder), *(word for f in sorted(files) for word in ("--blocks", str(f)))]
    )


def write_manifest(
    folder: Path, data_digest: str, classes: Sequence[str], machine: Mapping[str, str], weights_digest: str | None = None
) -> None:
    """Write manifest.json: versions, system, git, the digests of data and checkpoint, the classes, and what latency is
    measured on."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    manifest = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "versions": versions,
        "git": _git_commit(),
        "data_digest": data_digest,
        "weights_digest": weights_digest,
        "classes": list(classes),
        "machine": dict(machine),
    }
    write_whole(folder / "manifest.json", json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Raises InputError for a missing or damaged manifest."""
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(manifest, dict) or not isinstance(manifest.get("classes"), list) or "data_digest" not in manifest:
            raise ValueError("holds no classes or no data_digest")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {error}", "restore the file, or start a new run") from error
    return manifest


def command_line() -> str:
    """The command as typed, to be repeated; but for passwords."""
    return shlex.join([Path(sys.argv[0]).name, *map(masked, sys.argv[1:])])


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run folder; the lock ends with the process, however that ends.

    Raises:
        InputError: another process holds it, which is named; or the folder cannot be written.
    """
    holder = folder / "holder.json"
    lock = FileLock(folder / "run.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"{folder} is in use by {_named(holder)}", "wait for it to end, or stop it") from None
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}", "make the folder writable") from error
    try:
        write_whole(holder, json.dumps({"pid": os.getpid(), "host": platform.node()}))
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


@dataclass(frozen=True)
class Holder:
    """Who holds a run folder, or once did.

    Args:
        state: `held`; `gone`, a process of this host that has ended and left its mark; `unclear`, a mark of which this host
            cannot tell.
        words: who that is.
    """

    state: Literal["held", "gone", "unclear"]
    words: str


def holder_of(folder: Path) -> Holder | None:
    """Who holds a run folder; None where nobody does and nobody has left a mark. Changes nothing."""
    mark = folder / "holder.json"
    words = _named(mark)
    try:
        if _is_locked(folder / "run.lock"):
            return Holder("held", words)
        if not mark.exists():
            return None
        who = json.loads(mark.read_text(encoding="utf-8"))
        gone = who["host"] == platform.node() and not lives(int(who["pid"]))
    except (OSError, ValueError, LookupError, TypeError, OverflowError):
        return Holder("unclear", words)
    return Holder("gone" if gone else "unclear", words)


def _is_locked(path: Path) -> bool:
    """Whether a process holds this lock file, which may be read-only. Raises OSError."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def lives(pid: int) -> bool:
    """Whether a process of this host has this number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def _named(holder: Path) -> str:
    """Who holds a run folder, as far as its holder.json tells."""
    try:
        who = json.loads(holder.read_text(encoding="utf-8"))
        return f"process {who['pid']} on {who['host']}"
    except (OSError, ValueError, LookupError, TypeError):
        return "another process"


def _git_commit() -> str | None:
    """The commit of the folder that nas was started in, if that is a git repository."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False)  # noqa: S607
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
