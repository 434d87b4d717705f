"""Faults that a simulated search is to live with, from a YAML file:

fail: 0.02      # share of the trainings that raise
lose: 0.01      # share of the trainings whose worker dies under them
hang: 0.01      # share of the trainings that never end, and are ended after ten minutes of silence
leave:          # workers that go away together, and when as many come back (never where it does not say)
  - {at: 2h, workers: 16, back: 3h}
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nas.config import parse_duration
from nas.errors import InputError, did_you_mean
from nas.execution.simulate import Faults, Leave
from nas.space.source import Document, read_yaml
from nas.space.source import Faults as Found


def read_faults(path: Path) -> Faults:
    """Read a faults file. Raises InputError with every fault of it, and its line."""
    document = read_yaml(path)
    found = Found(path)
    known = ("fail", "lose", "hang", "leave")
    for key in document.data:
        if key not in known:
            found.add(document.line(key), f"unknown key '{key}'", did_you_mean(str(key), known))
    shares = {key: _share(document, found, key) for key in ("fail", "lose", "hang")}
    if sum(shares.values()) > 1:
        found.add(document.line("lose"), "fail, lose and hang are more than all trainings", "give shares that sum to at most 1")
    listed = document.data.get("leave") or []
    if not isinstance(listed, list):
        found.add(document.line("leave"), "leave is no list", "for example - {at: 2h, workers: 16, back: 3h}")
        listed = []
    leaves = [_leave(document, found, index, entry) for index, entry in enumerate(listed)]
    found.raise_if_any()
    return Faults(**shares, leave=tuple(leave for leave in leaves if leave is not None))


def _share(document: Document, found: Found, key: str) -> float:
    value = document.data.get(key, 0.0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        found.add(document.line(key), f"{key} is {value!r}", "give a share from 0 to 1, for example 0.02")
        return 0.0
    return float(value)


def _leave(document: Document, found: Found, index: int, entry: Any) -> Leave | None:
    line, example = document.line("leave", index), "for example {at: 2h, workers: 16, back: 3h}"
    if not isinstance(entry, dict) or not {"at", "workers"} <= entry.keys() or not entry.keys() <= {"at", "workers", "back"}:
        found.add(line, "an item of leave has 'at' and 'workers', and may have 'back'", example)
        return None
    workers = entry["workers"]
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        found.add(line, f"workers is {workers!r}", "give a whole number from 1 on")
        return None
    try:
        times = {key: parse_duration(str(entry[key]), key) for key in ("at", "back") if key in entry}
    except InputError as error:
        found.add(line, error.message, error.hint)
        return None
    if times.get("back", times["at"] + 1) <= times["at"]:
        found.add(line, "they come back before they go", example)
        return None
    return Leave(times["at"], workers, times.get("back"))
