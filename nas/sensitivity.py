"""The sensitivity map: what replacing one slot of the teacher costs in loss and saves in time, slot by slot, block by block.

"Here any block will do: take the fastest; here keep." The rise of the loss is measured (replace one slot of the teacher, all
else as it is, on held-out images, with a 90% bootstrap interval); the change of latency is what a latency model says that has
seen the run's own trials.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from nas.files import write_whole
from nas.imitation.alternatives import alternatives_of
from nas.imitation.library import Library
from nas.latency.model import MIN_OBSERVATIONS, LatencyModel
from nas.runs.store import Entry
from nas.space.architecture import Architecture
from nas.space.search_space import SearchSpace

FILE = "sensitivity.csv"


@dataclass(frozen=True)
class Sensitivity:
    """One option of one slot.

    Attributes:
        slot: its name.
        block: the word in the search space.
        option: what would stand there: "repvit w0.5 d1".
        rise, rise_low, rise_high: of the task's loss, as a share of the teacher's own, with the 90% interval.
        ms, ms_low, ms_high: change of latency, with the interval of the prediction; None where too little was measured.
        verdict: "free" where the loss may not rise at all, "costs" where it certainly does, else the reason why it was dropped.
    """

    slot: str
    block: str
    option: str
    rise: float | None
    rise_low: float | None
    rise_high: float | None
    ms: float | None
    ms_low: float | None
    ms_high: float | None
    verdict: str


def sensitivity_of(space: SearchSpace, library: Library, entries: Sequence[Entry]) -> list[Sensitivity]:
    """Of every option that the library knows, by slot in the order of the layers, the least rise first."""
    known = ("measured", "table")
    measured = [(e.architecture, float(e.price["ms"]), None) for e in entries if e.price and e.price.get("source") in known]
    model = LatencyModel.fit(space.skeleton, measured) if len({a for a, _, _ in measured}) >= MIN_OBSERVATIONS else None
    base = float(model.predict([space.baseline])[0][0]) if model is not None else 0.0
    found: list[Sensitivity] = []
    for slot, options in alternatives_of(space).items():
        own: list[Sensitivity] = []
        for placement, alternative in options.items():
            entry = None if alternative is None else library.get(alternative)
            if entry is None or placement is None:
                continue
            single = Architecture(space.skeleton.name, (placement,))
            text = single.describe(space.skeleton)[slot]
            times = (None, None, None)
            if model is not None:
                times = tuple(float(array[0]) - base for array in model.predict([single]))  # type: ignore[assignment]
            if entry.dropped:
                own.append(Sensitivity(slot, placement.block, text, None, None, None, *times, f"dropped: {entry.dropped}"))
                continue
            shares = (entry.rise / entry.loss, entry.low / entry.loss, entry.high / entry.loss)
            own.append(Sensitivity(slot, placement.block, text, *shares, *times, "costs" if entry.low > 0 else "free"))
        found += sorted(own, key=lambda each: (each.rise is None, each.rise or 0.0))
    return found


def write_sensitivity(rows: Sequence[Sensitivity], path: Path) -> None:
    """Write them as CSV, the file whole or not at all. Raises OSError."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([field.name for field in fields(Sensitivity)])
    writer.writerows(["" if value is None else value for value in astuple(row)] for row in rows)
    write_whole(path, buffer.getvalue())
