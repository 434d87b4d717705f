"""Latencies already measured, kept between runs: one JSON line per model in a file per target and machine."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nas.blocks.catalog import ROWS
from nas.files import write_whole
from nas.latency.measure import Latency
from nas.latency.target import Target

# Part of every key: raised when measuring itself changes.
VERSION = 5
# A figure from a busy moment is used, but not kept for other runs.
MAX_SPREAD = 0.05


def model_key(model_yaml: Mapping[str, Any], imgsz: int) -> str:
    """Names a model and its input size, and the files that its users' blocks stand in: an edited block is another model."""
    used = (ROWS[row[2]].digest for row in (*model_yaml["backbone"], *model_yaml["head"]) if row[2] in ROWS)
    files = sorted({digest for digest in used if digest})
    text = json.dumps([model_yaml, imgsz, *files], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class LatencyCache:
    """What is known about one target on one machine with these versions.

    A torn last line (a crash, a full disk) is skipped; nothing but time is lost with it.

    Args:
        folder: where the files are.
        target: what latency is measured on.
        weights: digest of the checkpoint that models start from, if any: it may give a head another width.
        stamp: of the target on the machine that measures (`Target.stamp`); None for this one.
    """

    def __init__(
        self, folder: Path, target: Target, weights: str | None = None, stamp: Mapping[str, str] | None = None
    ) -> None:
        self._folder, self._target, self._weights = folder, target, weights
        self.stamp: Mapping[str, str] = target.stamp() if stamp is None else stamp
        self.path = self._file(self.stamp)
        self._known: dict[str, dict[str, Any]] = {}
        with contextlib.suppress(OSError):
            for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
                if (entry := _entry(line)) is not None:
                    self._known[entry[0]] = entry[1]

    def get(self, key: str) -> dict[str, Any] | None:
        return self._known.get(key)

    def put(self, key: str, price: dict[str, Any], stamp: Mapping[str, str] | None = None) -> None:
        """Keep a price (see `as_price`); for other runs only if it was measured, in full and in a quiet moment.

        Args:
            stamp: of the machine that measured it, where that is another one: other runs find it as that one's.
        """
        path = self.path if stamp is None else self._file(stamp)
        self._known[key] = price
        if "ms" in price and price["spread"] <= MAX_SPREAD and not price["rough"] and not price.get("noisy"):
            # A home that cannot be written costs the next run some measuring, not this one its search.
            with contextlib.suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("a", encoding="utf-8") as file:
                    # The first line end closes a line that somebody's crash may have torn.
                    file.write(f"\n{json.dumps({'key': key, 'price': price})}\n")

    def _file(self, stamp: Mapping[str, str]) -> Path:
        what = json.dumps([VERSION, dict(stamp), *([self._weights] if self._weights else [])], sort_keys=True)
        return self._folder / f"{self._target.kind.replace(':', '-')}-{hashlib.sha256(what.encode()).hexdigest()[:12]}.jsonl"


def damaged_lines(path: Path) -> int:
    """How many lines of a cache file no search can read. Raises OSError."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return sum(bool(line.strip()) and _entry(line) is None for line in lines)


def drop_damaged_lines(path: Path) -> None:
    """Write a cache file anew without the lines that no search can read. Raises OSError."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    write_whole(path, "".join(f"{line}\n" for line in lines if _entry(line) is not None))


def _entry(line: str) -> tuple[str, dict[str, Any]] | None:
    """The key and the price on one line of a cache file; None where it is torn, damaged or empty."""
    try:
        entry = json.loads(line)
        price = entry["price"]
        usable = float(price["ms"]) > 0 and float(price["spread"]) >= 0 and isinstance(entry["key"], str)
    except (ValueError, KeyError, TypeError):
        return None
    return (entry["key"], price) if usable else None


def as_price(latency: Latency, footprint: Mapping[str, Any]) -> dict[str, Any]:
    """Latency and footprint (`nas.yolo.footprint`) of one model as plain data."""
    return {**asdict(latency), **footprint, "source": "measured"}
