"""Where the time of one inference goes: a runtime's own profile, added up per row of the model YAML. Standard library only."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

# `/model.4/cv1/conv/Conv…` and fusions of it stand in row 4; what a runtime adds (layout changes) has no such name.
_ROW = re.compile(r"(?:^|/)model\.(\d+)/")
# Loading a kernel's data and waking its memory is no part of a steady inference.
SKIPPED_RUNS = 3


def onnxruntime_rows(events: Iterable[Mapping[str, Any]]) -> dict[int, float]:
    """Milliseconds of each row of the model in one inference, from the events of an ONNX Runtime profile (its JSON file).

    The profile must hold more than 3 runs of one session; of every node the median of the later ones counts. A node without
    a row in its name belongs to the row of the node before it.
    """
    times: dict[str, list[float]] = {}
    row_of: dict[str, int] = {}
    row = 0
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") != "Node" or not name.endswith("_kernel_time"):
            continue
        if name not in row_of:
            found = _ROW.search(name)
            row = int(found.group(1)) if found else row
            row_of[name] = row
        times.setdefault(name, []).append(float(event["dur"]))
    rows: dict[int, float] = {}
    for name, values in times.items():
        rows[row_of[name]] = rows.get(row_of[name], 0.0) + statistics.median(values[SKIPPED_RUNS:] or values) / 1e3
    return rows


def scaled(rows: Mapping[int, float], whole_ms: float) -> dict[int, float]:
    """The rows, stretched so that they add up to the whole model's latency: profiling adds some time, and hides some."""
    total = sum(rows.values())
    return {row: ms * whole_ms / total for row, ms in rows.items()} if total > 0 else {}
