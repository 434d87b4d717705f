"""Where everything is kept that `nas` can make again: decoded images, the built-in dataset, measured latencies."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from nas.errors import InputError


def cache_root() -> Path:
    """`NAS_CACHE` where set, else the user's cache folder. It may not exist yet."""
    if named := os.environ.get("NAS_CACHE"):
        return Path(named).expanduser().absolute()
    from platformdirs import user_cache_path  # noqa: PLC0415  (kept out of imports that never need it)

    return user_cache_path("nas", appauthor=False)


def room_for_images(count: int, imgsz: int) -> str:
    """What the decoded images of a dataset take in the cache, in words.

    Raises:
        InputError: the disk has less than that, and no file of that size is there already.
    """
    folder = cache_root() / "images"
    needed = count * 3 * imgsz**2
    there = next(place for place in (folder, *folder.parents) if place.is_dir())
    free = shutil.disk_usage(there).free
    what = f"{count:,} decoded images take {needed / 1e9:.2g} GB in {folder}"
    decoded = any(file.stat().st_size > 0.99 * needed for file in folder.glob(f"pixels-{imgsz}-*.npy"))
    if needed > free and not decoded:
        cure = "free space, set NAS_CACHE to a folder on a larger disk, or lower --imgsz"
        raise InputError(f"{what}; {free / 1e9:.2g} GB are free", cure)
    return what
