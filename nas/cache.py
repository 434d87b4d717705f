"""Where everything is kept that `nas` can make again: decoded images, the built-in dataset, measured latencies."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """`NAS_CACHE` where set, else the user's cache folder. It may not exist yet."""
    if named := os.environ.get("NAS_CACHE"):
        return Path(named).expanduser().absolute()
    from platformdirs import user_cache_path  # noqa: PLC0415  (kept out of imports that never need it)

    return user_cache_path("nas", appauthor=False)
