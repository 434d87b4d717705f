"""Writing files so that a crash leaves the old one or the new one, never half."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> None:
    """Replace a file in one step: a temporary file beside it, then a rename.

    Raises:
        OSError: no room, no right, no such folder; the old file and the folder stay as they were.
    """
    # Backslashes for what UTF-8 cannot hold: file names may carry lone surrogates, and in JSON the escape reads back
    # as the same.
    data = content if isinstance(content, bytes) else content.encode("utf-8", "backslashreplace")
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
