"""Rows: the front of a run, the CSV and JSON files, and the table in the terminal.

`trials.csv` has one row per trial, rejected and failed ones included; `front.csv` and `front.json` have the front, the
baseline and, where blocks imitate one, the teacher, from the same columns (COLUMNS, which the JSON carries with it).
Placements stand there twice on purpose: readable in one column, and one column per slot that any row changes
("slot.backbone.P4"), so that a spreadsheet or a data frame can group by it without parsing.
"""

from __future__ import annotations

import csv
import functools
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from nas.files import write_whole
from nas.review.record import TEACHER, Record, RunSummary, baseline_of, milliseconds, printable, standing, teacher_of
from nas.search.front import PICKS, front_indices, pick
from nas.search.noise import alike

if TYPE_CHECKING:
    from rich.table import Table


class Column(NamedTuple):
    """What a column holds and in which unit ("" where there is none)."""

    doc: str
    unit: str


COLUMNS: Mapping[str, Column] = {
    "trial": Column("number of the trial in the run", ""),
    "id": Column("architecture id: short hash of its canonical form", ""),
    "state": Column(
        "proposed, rejected, queued, running, paused, done or failed; teacher: trial 0 before it was trained on", ""
    ),
    "reason": Column("why it was rejected or failed; empty otherwise", ""),
    "baseline": Column("true for the unmodified skeleton, trained as all others", ""),
    "feasible": Column("true within the limits", ""),
    "front": Column("true for a member of the front: done, feasible and not dominated", ""),
    "pick": Column("which of knee, fastest, best this member of the front is (several joined by +)", ""),
    "map": Column("mAP50-95 (of a segmentation model: of masks) on the run's split at the run's fidelity", "0 to 1"),
    "map50": Column("mAP50, likewise", "0 to 1"),
    "map_low": Column("lower end of its 90% interval, from how much seeds differ; empty before any was repeated", "0 to 1"),
    "map_high": Column("upper end", "0 to 1"),
    "val": Column("mAP50-95 of its kept weights on val, where the held-out part may have been learned from", "0 to 1"),
    "trainings": Column("how many seeds map is the mean of", ""),
    "rung": Column("highest rung passed, from 0", ""),
    "alike": Column("faster members of the front whose map it cannot be told apart from: trial numbers joined by +", ""),
    "latency_ms": Column("latency on the run's target, p50; empty where another limit ruled it out before", "ms"),
    "latency_low_ms": Column("lower end of its interval: of a measurement's blocks, or 90% of a prediction", "ms"),
    "latency_high_ms": Column("upper end", "ms"),
    "latency_p90_ms": Column("90th percentile of the fastest measured block", "ms"),
    "latency_source": Column(
        "measured, table (measured elsewhere) or predicted (on a front only by a table or when the budget is spent)", ""
    ),
    "latency_spread": Column("how far the third-lowest p50 of the measured blocks lies above the lowest", "ratio"),
    "params": Column("parameters of the fused model", ""),
    "gmacs": Column("multiply-accumulates of one image at the run's image size", "1e9"),
    "size_mb": Column(
        "weights of the fused model as the target's precision stores them: what the exported file weighs", "1e6 B"
    ),
    "memory_mb": Column("peak memory of the activations of one inference, each freed after its last use", "1e6 B"),
    "seconds": Column("device time charged to the trial", "s"),
    "placement": Column('what stands in the slots: "backbone.P4=repvit w1.25 d2; ..."; empty when all are kept', ""),
    "slot.*": Column('one column per slot that any row changes, in CSV only; "keep" where the row keeps it', ""),
}

HEADINGS = (
    "",
    "trial",
    "id",
    "mAP50-95",
    "mAP50",
    "on val",
    "latency",
    "spread",
    "params",
    "GMACs",
    "size",
    "memory",
    "against baseline",
)
LEGEND = (
    "Against baseline: difference of mAP50-95, ratio of latency. ~: predicted, not measured. "
    "≈: its mAP cannot be told apart from that of this faster trial."
)
_ONLY_ON_PAPER = {"mAP50", "spread", "GMACs", "size", "memory"}  # a terminal of 100 columns has no room for them
_ONLY_WHERE_SEEN = {"on val"}
# What a spreadsheet takes for the start of a formula, and the blanks that it leaves out before one.
_FORMULA, _BLANKS = frozenset("=+-@"), frozenset("\t\r\n")


class Line(NamedTuple):
    """One line as people see it: `cells` go under HEADINGS; `on_front` is False for a baseline added to compare with."""

    record: Record
    cells: tuple[str, ...]
    on_front: bool


def columns_of(summary: RunSummary, *, paper: bool) -> list[int]:
    """Which of HEADINGS are shown, on paper or in a terminal."""
    left_out = (set() if paper else _ONLY_ON_PAPER) | (set() if summary.seen else _ONLY_WHERE_SEEN)
    return [index for index, heading in enumerate(HEADINGS) if heading not in left_out]


def front_of(records: Sequence[Record]) -> list[Record]:
    """The front: feasible records that are done, with mAP and latency, and not dominated.

    Sorted from the fastest to the best mAP. The baseline is a member like any other when it is feasible. Of equal
    records the first stays.
    """
    done = [(r, r.map, r.latency_ms) for r in records if r.state == "done" and r.feasible]
    known = [(r, m, t) for r, m, t in done if m is not None and t is not None]
    return [known[i][0] for i in front_indices([m for _, m, _ in known], [t for _, _, t in known])]


def picks_of(front: Sequence[Record]) -> dict[str, Record]:
    """The knee, the fastest and the best of a front, by name; empty for an empty front."""
    if not front:
        return {}
    maps, latencies = [r.map or 0.0 for r in front], [r.latency_ms or 0.0 for r in front]
    return {which: front[pick(maps, latencies, which)] for which in PICKS}


def alike_of(front: Sequence[Record], noise: float | None) -> dict[int, list[int]]:
    """For each trial of a front, the faster ones whose mAP it cannot be told apart from; none where seeds were not compared.

    Args:
        front: fastest first.
        noise: `RunSummary.noise`.
    """
    if noise is None:
        return {}
    pairs = ((a, b) for place, a in enumerate(front) for b in front[:place])
    found: dict[int, list[int]] = {}
    for a, b in pairs:
        if alike(a.map or 0.0, max(1, a.trainings), b.map or 0.0, max(1, b.trainings), noise):
            found.setdefault(a.trial, []).append(b.trial)
    return found


def accuracy_text(record: Record) -> str:
    """The mAP for people, with half its interval: "0.378", "0.378 ±0.012"."""
    if record.map is None:
        return "–"
    if record.map_low is None or record.map_high is None:
        return f"{record.map:.3f}"
    return f"{record.map:.3f} ±{(record.map_high - record.map_low) / 2:.3f}"


def placement_text(record: Record) -> str:
    """The placement on one line: "backbone.P4=repvit w1.25 d2; neck.topdown.P3=irmb d1"; "" when all are kept."""
    return "; ".join(f"{slot}={what}" for slot, what in record.placement.items())


def lines_of(records: Sequence[Record], summary: RunSummary) -> list[Line]:
    """The front as lines of text, in the order of latency; a baseline that is not on it comes after it, and a teacher last."""
    front, baseline, teacher = front_of(records), baseline_of(records), teacher_of(records, summary)
    named, alike_to = picks_of(front), alike_of(front, summary.apart)
    shown = front + ([baseline] if baseline and all(r is not baseline for r in front) else []) + ([teacher] if teacher else [])
    lines = []
    for r in shown:
        words = [which for which, member in named.items() if member is r]
        if r is baseline:
            words += [summary.baseline_name, *filter(None, [standing(r, summary)])]
        if r.trial in alike_to and r is not teacher:
            words.append(f"≈ {alike_to[r.trial][0]}")
        if summary.teacher and r is teacher:
            words.append(f"{TEACHER} ({summary.teacher.name})")
        elif r.state != "done":
            words.append(r.state if r.reason is None else f"{r.state}: {printable(r.reason, 60)}")
        cells = (
            printable(", ".join(words)),
            str(r.trial),
            printable(r.id),
            accuracy_text(r),
            "–" if r.map50 is None else f"{r.map50:.3f}",
            "–" if r.val is None else f"{r.val:.3f}",
            "–" if r.latency_ms is None else "~"[r.latency_source != "predicted" :] + milliseconds(r.latency_ms),
            "–" if r.latency_spread is None else f"{r.latency_spread:.1%}",
            "–" if r.params is None else f"{r.params / 1e6:.2f} M",
            "–" if r.gmacs is None else f"{r.gmacs:.2f}",
            "–" if r.size_mb is None else f"{r.size_mb:.2f} MB",
            "–" if r.memory_mb is None else f"{r.memory_mb:.1f} MB",
            against(r, baseline, on_val=bool(summary.seen)),
        )
        lines.append(Line(r, cells, any(member is r for member in front)))
    return lines


def against(record: Record, baseline: Record | None, *, on_val: bool) -> str:
    """The record's mAP (on `val`, or on the held-out part) and latency beside the baseline's, "+0.021, 0.83x", as far as known;
    "" for the baseline."""
    if baseline is None or record is baseline:
        return ""
    parts = []
    own, other = (record.val, baseline.val) if on_val else (record.map, baseline.map)
    if own is not None and other is not None:
        parts.append(f"{own - other:+.3f}")
    if record.latency_ms is not None and baseline.latency_ms is not None:
        parts.append(f"{record.latency_ms / baseline.latency_ms:.2f}x")
    return ", ".join(parts)


def rich_table(records: Sequence[Record], summary: RunSummary) -> Table:
    """The front for the terminal: picks marked, the baseline always there (last where it is not a member)."""
    from rich.box import SIMPLE_HEAD  # noqa: PLC0415  only those who print pay for it
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    lines = lines_of(records, summary)
    size = sum(line.on_front for line in lines)
    # Text, not str: in a str, rich would read a user's "[red]" as markup.
    limit = f", {summary.limits}" if summary.limits else ""
    absent = "" if baseline_of(records) else f"{summary.baseline_name}: not evaluated. "
    table = Table(
        title=Text(printable(f"{summary.name}: {size} on the front, {summary.target}{limit}"), style="bold"),
        caption=Text(printable(f"{absent}{summary.meaning} {LEGEND} {summary.tally}."), style="dim"),
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    shown = columns_of(summary, paper=False)
    for i in shown:
        words = HEADINGS[i] in {"", "id"}
        table.add_column(HEADINGS[i], justify="left" if words else "right", no_wrap=i > 0, max_width=None if i else 12)
    table.add_column("placement", overflow="fold")
    for line in lines:
        slots = [printable(f"{slot} {what}") for slot, what in line.record.placement.items()]
        placed = ("; " if summary.simulated else "\n").join(slots) or "all kept"
        style = "dim" if not line.on_front else "bold" if line.cells[0] else ""
        table.add_row(
            *(Text(line.cells[i]) for i in shown),
            Text(placed),
            style=style,
        )
    return table


def write_csv(records: Sequence[Record], path: Path, noise: float | None = None) -> None:
    """Write one row per record under COLUMNS, the file whole or not at all.

    UTF-8, comma, dot as decimal sign, true/false, an empty field for what is not known. A text that a spreadsheet
    would run as a formula gets an apostrophe before it.

    Raises:
        OSError: the file cannot be written.
    """
    slots = sorted({slot for r in records for slot in r.placement})
    names = [name for name in COLUMNS if name != "slot.*"]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*names, *(_field(f"slot.{slot}") for slot in slots)])
    for r, row in zip(records, _rows(records, noise), strict=True):
        writer.writerow([_field(row[name]) for name in names] + [_field(r.placement.get(slot, "keep")) for slot in slots])
    write_whole(path, buffer.getvalue())


def write_json(records: Sequence[Record], path: Path, summary: RunSummary | None = None) -> None:
    """Write {"run": the summary or null, "columns": COLUMNS, "records": rows}, the file whole or not at all.
    Placements are mappings.

    Raises:
        OSError: the file cannot be written.
    """
    noise = None if summary is None else summary.apart
    content = {
        "run": None if summary is None else asdict(summary),
        "columns": {name: column._asdict() for name, column in COLUMNS.items() if name != "slot.*"},
        "records": [{**row, "placement": dict(r.placement)} for r, row in zip(records, _rows(records, noise), strict=True)],
    }
    write_whole(path, json.dumps(content, ensure_ascii=False, allow_nan=False, indent=1) + "\n")


def _rows(records: Sequence[Record], noise: float | None) -> Iterator[dict[str, object]]:
    front = front_of(records)
    alike_to = alike_of(front, noise)
    named, members = picks_of(front), {id(r) for r in front}
    for r in records:
        more = {
            "front": id(r) in members,
            "pick": "+".join(which for which, member in named.items() if member is r),
            "placement": placement_text(r),
            "alike": "+".join(map(str, alike_to.get(r.trial, []))) if r.state != TEACHER else "",
        }
        yield {name: more[name] if name in more else getattr(r, name) for name in COLUMNS if name != "slot.*"}


def _field(value: object) -> str:
    """A CSV field: see write_csv."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return _text(value) if isinstance(value, str) else repr(value)


@functools.lru_cache(4096)
def _text(value: str) -> str:
    """Most of a table's fields are one of the few things that a slot may hold."""
    # A spreadsheet takes the first character after any blanks for the start of a formula.
    return f"'{value}" if value.lstrip()[:1] in _FORMULA or value[:1] in _BLANKS else value
