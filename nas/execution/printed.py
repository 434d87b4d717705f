"""Where what an attempt prints goes: this process's output, its children's included, appended to a file for a while."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class _Log:
    """That of the present attempt."""

    path: str | None = None


def present_log() -> str | None:
    """The file that this process's output goes to now, where it is that of an attempt."""
    return _Log.path


@contextmanager
def logged(path: str | None) -> Iterator[None]:
    """Append what this process and its children print to a file; an empty one does not stay."""
    if path is None:
        yield
        return
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    before = os.dup(1), os.dup(2)
    log = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    _Log.path = path
    try:
        os.dup2(log, 1)
        os.dup2(log, 2)
        yield
    finally:
        _Log.path = None
        sys.stdout.flush()
        sys.stderr.flush()
        for fd, own in enumerate(before, 1):
            os.dup2(own, fd)
            os.close(own)
        if os.fstat(log).st_size == 0:
            file.unlink(missing_ok=True)
        os.close(log)
