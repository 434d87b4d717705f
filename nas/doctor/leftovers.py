"""What processes that were killed have left behind, and what no search can read: in a run folder, in the cache."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from nas.cache import cache_root
from nas.doctor.finding import Finding, Repair
from nas.latency.cache import damaged_lines, drop_damaged_lines
from nas.runs.folder import lives

OLD_SECONDS = 3600.0
# What `nas.files.write_whole` and `create_database` write beside the file that they replace, with the number of their process,
# and what decoded images are written to.
TEMPORARY = re.compile(r"\..+\.(?P<pid>\d{1,9})\.tmp(-journal)?|pixels-.+\.part")


def temporary_files(name: str, folder: Path) -> Iterator[Finding]:
    """Temporary files that nobody has written to for an hour, and whose process has ended."""
    found = [path for path in _files(folder) if _is_abandoned(path)]
    if found:
        what = f"temporary files of ended processes in {folder}: {len(found)} ({size(found)}), the first {found[0].name}"
        yield Finding(name, "note", what, repair=Repair("these files removed", lambda: remove(found)))


def caches() -> Iterator[Finding]:
    """The cache: how much of it images are, latencies that cannot be read, temporary files."""
    root = cache_root()
    images = list((root / "images").glob("*.npy"))
    yield Finding("cache", "ok", f"{size(images)} of decoded images in {root}")
    for path in sorted((root / "latency").glob("*.jsonl")):
        if damaged := damaged_lines(path):
            what = f"{damaged} latencies in {path} cannot be read: they are measured anew"
            yield Finding("cache", "note", what, repair=_dropping(path))
    yield from temporary_files("cache", root)


def _dropping(path: Path) -> Repair | None:
    """Not while a search may be adding to the file."""
    return Repair("these lines removed", lambda: drop_damaged_lines(path)) if _is_old(path) else None


def remove(paths: Sequence[Path]) -> None:
    """Remove files, where they are still there. Raises OSError."""
    for path in paths:
        path.unlink(missing_ok=True)


def size(paths: Sequence[Path]) -> str:
    """What files take together, in words."""
    total = sum(path.stat().st_size for path in paths)
    return f"{total / 1e9:,.1f} GB" if total >= 1e8 else f"{total / 1e6:,.1f} MB"


def _files(folder: Path) -> Iterator[Path]:
    for place, _, names in os.walk(folder):
        yield from (Path(place, name) for name in sorted(names))


def _is_abandoned(path: Path) -> bool:
    match = TEMPORARY.fullmatch(path.name)
    return match is not None and not (match["pid"] and lives(int(match["pid"]))) and _is_old(path)


def _is_old(path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return time.time() - path.lstat().st_mtime > OLD_SECONDS
    return False
