"""Attempts for hosts that do not see this one's files: what they read travels with them, what they write comes back.

The images go once to each host, as tar chunks through whatever store the executor has, and stay in its cache. Small files (a
checkpoint, block files, a library) are sent when they have changed. On the other host every path has a place of its
own below one folder, so that images keep their order and their labels.
"""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nas.alive import locked
from nas.cache import cache_root
from nas.dataset.description import read_dataset
from nas.dataset.labels import label_path
from nas.execution.executor import Attempt
from nas.execution.process import as_message
from nas.files import write_whole

READ = {"weights", "teacher", "blocks"}  # fields of jobs that name a file, or several
WRITTEN = {"state", "keep"}  # read too; none of them stays on the other host
FOLDERS = {"library"}  # read and written
CHUNK_BYTES = 2**26

Stamp = tuple[int, int]


@dataclass(frozen=True)
class Packed:
    """The images of one part of a dataset, and their labels: tar files, as the store that holds `chunks` gives them back."""

    digest: str
    names: list[str]
    images: list[str]
    chunks: list[Any]


@dataclass(frozen=True)
class Parcel:
    """An attempt with the paths of its driver, and what it needs; `held` is what the driver has, or had, of all that it may
    write."""

    attempt: dict[str, Any]
    files: Mapping[str, bytes]
    dataset: Packed | None
    held: frozenset[str]


class Sender:
    """The driver's side.

    Args:
        put: keeps bytes where all hosts can get them, and returns by what.
    """

    def __init__(self, put: Callable[[bytes], Any]) -> None:
        self._put = put
        self._packed: dict[tuple[str, str, str], Packed] = {}
        self._there: dict[str, dict[str, Stamp]] = {}

    def parcel(self, attempt: Attempt, host: str) -> Parcel:
        """An attempt with all that `host` lacks for it. Raises InputError where its dataset is gone."""
        message, there, files = as_message(attempt), self._there.setdefault(host, {}), dict[str, bytes]()
        payload = message["payload"]
        for path in _named(payload, READ | FOLDERS):
            for file in _files(path):
                with suppress(FileNotFoundError):  # a neighbour in the same library is done with it
                    stamp = _stamp(file)
                    if there.get(str(file)) != stamp:
                        files[str(file)] = file.read_bytes()
                        there[str(file)] = stamp
        files |= {path: Path(path).read_bytes() for path in _named(payload, WRITTEN) if Path(path).is_file()}
        held = {str(file) for path in _named(payload, WRITTEN | FOLDERS) for file in _files(path)}
        return Parcel(message, files, self._dataset(payload), frozenset(held | there.keys()))

    def deliver(self, attempt: Attempt, host: str, files: Mapping[str, bytes | None]) -> None:
        """Write what an attempt has written on its host, where it was told to; None is a file that is there no more.

        Raises:
            OSError: no room, no right.
        """
        allowed = [Path(path) for path in _named(attempt.payload, WRITTEN | FOLDERS)]
        there = self._there.setdefault(host, {})
        for name, content in files.items():
            path = Path(name)
            if ".." in path.parts or not any(path == own or own in path.parents for own in allowed):
                continue
            if content is None:
                path.unlink(missing_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, content)
            if name not in _named(attempt.payload, WRITTEN):
                there[name] = _stamp(path)

    def _dataset(self, payload: Mapping[str, Any]) -> Packed | None:
        named = next(_jobs(payload), None)
        if named is None:
            return None
        if named not in self._packed:
            self._packed[named] = _pack(*named, self._put)
        return self._packed[named]


class Receiver:
    """The other host's side.

    Args:
        folder: of its own, where everything comes to lie.
        get: the bytes of a chunk.
        beat: called between chunks.
    """

    def __init__(self, folder: Path, get: Callable[[Any], bytes], beat: Callable[[], None] = lambda: None) -> None:
        self._folder, self._get, self._beat = folder, get, beat
        self._before: dict[str, Stamp] = {}

    def accept(self, parcel: Parcel) -> dict[str, Any]:
        """The attempt with the paths of this host, once all that it needs is here. Raises OSError."""
        data = None if parcel.dataset is None else self._unpack(parcel.dataset)
        payload, log = parcel.attempt["payload"], parcel.attempt.get("log")
        for name in (*_named(payload, WRITTEN), *([log] if log else [])):  # of an attempt that was lost here
            self._place(name).unlink(missing_ok=True)
            self._place(name).parent.mkdir(parents=True, exist_ok=True)
        for name, content in parcel.files.items():
            path = self._place(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, content)
        # what an attempt that was lost has left in a library here, the driver lacks
        self._before = {name: stamp for name, stamp in self._written(payload).items() if name in parcel.held}
        return {**parcel.attempt, "payload": self._here(payload, data), "log": log and str(self._place(log))}

    def returned(self, payload: Mapping[str, Any]) -> dict[str, bytes | None]:
        """What an attempt has written (None: removed) since it was accepted, by the paths of its driver, whose payload this is.
        Of that only a library stays."""
        after = self._written(payload)
        found: dict[str, bytes | None] = dict.fromkeys(self._before.keys() - after.keys())
        for name, stamp in after.items():
            if stamp != self._before.get(name):
                with suppress(FileNotFoundError):  # a neighbour in the same library is done with it
                    found[name] = self._place(name).read_bytes()
        for name in _named(payload, WRITTEN):
            self._place(name).unlink(missing_ok=True)
        return found

    def restored(self, told: Any) -> Any:
        """What an attempt tells, with the driver's paths."""
        if isinstance(told, str):
            for folder in (*(self._folder / "data").glob("*"), self._folder / "files"):
                told = told.replace(f"{folder}/", "/")
            return told
        if isinstance(told, Mapping):
            return {key: self.restored(value) for key, value in told.items()}
        return [self.restored(value) for value in told] if isinstance(told, list) else told

    def _place(self, name: str) -> Path:
        return self._folder / "files" / name.lstrip("/")

    def _here(self, value: Any, data: Path | None, key: str = "") -> Any:
        if isinstance(value, Mapping):
            return {name: self._here(entry, data, name) for name, entry in value.items()}
        if key in READ | WRITTEN | FOLDERS and value:
            return [str(self._place(each)) for each in value] if isinstance(value, list) else str(self._place(value))
        if data is not None and key in {"data", "root"} and isinstance(value, str):
            return str(data / "data.yaml" if key == "data" else data)
        return str(cache_root()) if key == "cache" else value

    def _written(self, payload: Mapping[str, Any]) -> dict[str, Stamp]:
        """The files that an attempt may write, by the driver's paths."""
        files = self._folder / "files"
        found: dict[str, Stamp] = {}
        for name in _named(payload, WRITTEN | FOLDERS):
            for file in _files(str(self._place(name))):
                with suppress(FileNotFoundError):  # a neighbour in the same library is done with it
                    found[f"/{file.relative_to(files)}"] = _stamp(file)
        return found

    def _unpack(self, packed: Packed) -> Path:
        """The dataset's folder; whoever comes first fills it."""
        folder = self._folder / "data" / packed.digest
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder, self._beat):
            if folder.is_dir():
                return folder
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".", ignore_cleanup_errors=True) as beside:
                for chunk in packed.chunks:
                    self._beat()
                    with tarfile.open(fileobj=io.BytesIO(self._get(chunk))) as tar:
                        tar.extractall(beside, filter="data")
                images = "\n".join(f"{folder}{image}" for image in packed.images)
                Path(beside, "train.txt").write_text(images, encoding="utf-8")
                described = {"path": str(folder), "train": "train.txt", "val": "train.txt", "names": packed.names}
                Path(beside, "data.yaml").write_text(json.dumps(described), encoding="utf-8")
                Path(beside).rename(folder)
        return folder


def _pack(data: str, root: str, part: str, put: Callable[[bytes], Any]) -> Packed:
    dataset = read_dataset(Path(data), Path(root))
    images = dataset.val if part == "val" else dataset.train
    chunks: list[Any] = []
    buffer = io.BytesIO()
    tar = tarfile.open(fileobj=buffer, mode="w")  # noqa: SIM115  (one after the other)
    for image in images:
        for file in (image, label_path(image)):
            if file.is_file():
                content = file.read_bytes()
                entry = tarfile.TarInfo(str(file).lstrip("/"))
                entry.size, entry.mtime = len(content), int(file.stat().st_mtime)
                tar.addfile(entry, io.BytesIO(content))
        if buffer.tell() >= CHUNK_BYTES:
            tar.close()
            chunks.append(put(buffer.getvalue()))
            buffer = io.BytesIO()
            tar = tarfile.open(fileobj=buffer, mode="w")  # noqa: SIM115
    tar.close()
    chunks.append(put(buffer.getvalue()))
    digest = dataset.digest if part == "train" else f"{dataset.digest}-{part}"
    return Packed(digest, list(dataset.names), [str(image) for image in images], chunks)


def _named(payload: Mapping[str, Any], fields: set[str]) -> Iterator[str]:
    """The paths that a payload has in some of its fields, at any depth."""
    for name, value in payload.items():
        if isinstance(value, Mapping):
            yield from _named(value, fields)
        elif name in fields and value:
            yield from ([value] if isinstance(value, str) else value)


def _jobs(payload: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """The datasets that a payload names: YAML, root, and which part is looked at."""
    if isinstance(payload.get("data"), str) and isinstance(payload.get("root"), str):
        yield payload["data"], payload["root"], payload.get("part", "train")
    for value in payload.values():
        if isinstance(value, Mapping):
            yield from _jobs(value)


def _files(name: str) -> Iterator[Path]:
    path = Path(name)
    if path.is_dir():
        files = (file for file in sorted(path.rglob("*")) if file.is_file() and file.suffix != ".lock")
        yield from (file for file in files if not file.name.startswith("."))  # those are being written
    elif path.is_file():
        yield path


def _stamp(file: Path) -> Stamp:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


@dataclass
class Tail:
    """What is appended to a file, piece by piece."""

    file: Path
    _read: int = field(default=0)

    def __post_init__(self) -> None:
        with suppress(OSError):
            self._read = self.file.stat().st_size

    def more(self, most: int = 2**20) -> str:
        """What has come since the last call; of very much, the end."""
        with suppress(OSError), self.file.open("rb") as file:
            size = file.seek(0, io.SEEK_END)
            file.seek(max(self._read, size - most))
            self._read = size
            return file.read().decode(errors="replace")
        return ""


def append(file: Path, text: str) -> None:
    """Add what was printed elsewhere."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as log:
        log.write(text)
