"""Untrained architectures that would be worth training, as a table and as suggested.csv."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nas.files import write_whole
from nas.review.record import milliseconds, printable
from nas.space.architecture import Architecture
from nas.space.skeleton import Skeleton

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS: Mapping[str, str] = {
    "id": "architecture id",
    "map": "mAP50-95, predicted from the trained architectures",
    "latency_ms": "latency on the target in ms",
    "latency_low": "lower end of its interval, in ms",
    "latency_high": "upper end, in ms",
    "source": "where the latency is from: table, measured or predicted",
    "placement": 'what stands in the slots: "backbone.P4=repvit w1.25 d2; ..."',
    "architecture": "the placements as JSON",
}


@dataclass(frozen=True)
class Suggestion:
    """An untrained architecture, its predicted mAP and its latency with its interval in ms."""

    architecture: Architecture
    map: float
    ms: float
    low: float
    high: float
    source: str

    def placement(self, skeleton: Skeleton) -> str:
        return "; ".join(f"{slot}={what}" for slot, what in self.architecture.describe(skeleton).items())


def suggested_table(suggestions: Sequence[Suggestion], skeleton: Skeleton) -> Table:
    """For the terminal, the fastest first."""
    from rich.box import SIMPLE_HEAD  # noqa: PLC0415  (only those who print pay for it)
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(title="worth training now", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading, justify in (("id", "left"), ("mAP, predicted", "right"), ("latency", "right"), ("interval", "right")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    table.add_column("placements")
    for s in suggestions:
        interval = f"{milliseconds(s.low)} to {milliseconds(s.high)}"
        what = printable(s.placement(skeleton)) or "all kept"
        table.add_row(*map(Text, (s.architecture.id, f"{s.map:.3f}", milliseconds(s.ms), interval, what)))
    return table


def write_suggested(suggestions: Sequence[Suggestion], skeleton: Skeleton, path: Path) -> None:
    """Write suggested.csv under COLUMNS, whole or not at all. Raises OSError."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for s in suggestions:
        text = json.dumps(s.architecture.to_dict(), sort_keys=True, separators=(",", ":"))
        figures = (f"{s.map:.4f}", *(f"{ms:.6g}" for ms in (s.ms, s.low, s.high)))
        writer.writerow([s.architecture.id, *figures, s.source, s.placement(skeleton), text])
    write_whole(path, buffer.getvalue())
