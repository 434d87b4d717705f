"""The sensitivity map for people: a table for the terminal, and a heat map of slots and blocks for the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from nas.review.record import printable

if TYPE_CHECKING:
    from rich.table import Table

HEADINGS = ("slot", "option", "loss rises by", "90% interval", "latency", "interval", "")
HOTTEST = 0.05  # of the teacher's loss: as red as it gets


class Cell(Protocol):
    """A row of `nas.sensitivity`."""

    @property
    def slot(self) -> str: ...
    @property
    def block(self) -> str: ...
    @property
    def option(self) -> str: ...
    @property
    def rise(self) -> float | None: ...
    @property
    def rise_low(self) -> float | None: ...
    @property
    def rise_high(self) -> float | None: ...
    @property
    def ms(self) -> float | None: ...
    @property
    def ms_low(self) -> float | None: ...
    @property
    def ms_high(self) -> float | None: ...
    @property
    def verdict(self) -> str: ...


def heat_table(rows: Sequence[Cell]) -> Table:
    """One row per option; those that cost nothing are bold where they are also faster."""
    from rich.table import Table  # noqa: PLC0415  (only those who print pay for it)
    from rich.text import Text  # noqa: PLC0415

    title = "What replacing one slot of the teacher costs, all else as it is"
    table = Table(title=title, title_justify="left", caption=advice(rows), caption_justify="left")
    for heading in HEADINGS:
        table.add_column(heading, justify="right" if heading in {"loss rises by", "latency"} else "left")
    for row in rows:
        style = "bold" if row.verdict == "free" and (row.ms or 0.0) < 0 else "dim" if row.rise is None else ""
        span = "" if row.rise_low is None or row.rise_high is None else f"{row.rise_low:+.1%} to {row.rise_high:+.1%}"
        cells = (row.slot, row.option, _share(row.rise), span, _ms(row.ms), _ms_span(row), printable(row.verdict, 60))
        table.add_row(*map(Text, cells), style=style)
    return table


def advice(rows: Sequence[Cell]) -> str:
    """What follows, slot by slot: where any block will do, and where none does."""
    lines = []
    for slot in dict.fromkeys(row.slot for row in rows):
        free = [row for row in rows if row.slot == slot and row.verdict == "free"]
        faster = min((row for row in free if row.ms is not None), key=lambda row: row.ms or 0.0, default=None)
        if not free:
            lines.append(f"{slot}: keep it; whatever was tried costs")
        elif faster is not None and (faster.ms or 0.0) < 0:
            lines.append(f"{slot}: {_options(len(free))} nothing that shows; the fastest is {faster.option} ({_ms(faster.ms)})")
        else:
            lines.append(f"{slot}: {_options(len(free))} nothing that shows, none of them is faster")
    return "\n".join(lines)


def heat_map(rows: Sequence[Cell], show: Callable[[str], str]) -> str:
    """An HTML table, slots down and blocks across; each cell is the option of the block that costs least.

    Args:
        show: escapes a text for HTML.
    """
    if not rows:
        return ""
    blocks = list(dict.fromkeys(row.block for row in rows))
    head = "".join(f"<th>{show(block)}</th>" for block in ("", *blocks))
    lines = []
    for slot in dict.fromkeys(row.slot for row in rows):
        cells = []
        for block in blocks:
            own = [row for row in rows if (row.slot, row.block) == (slot, block)]
            best = next((row for row in own if row.rise is not None), None)
            if best is None or best.rise is None:
                cells.append(f"<td>{f'<small>{show(own[0].verdict)}</small>' if own else ''}</td>")
                continue
            heat = min(1.0, max(0.0, best.rise) / HOTTEST)
            colour = f"rgba(201, 60, 55, {0.75 * heat:.2f})" if best.verdict == "costs" else "rgba(46, 160, 67, 0.25)"
            span, times = f"{_share(best.rise_low)} to {_share(best.rise_high)}", _ms_span(best)
            words = f"{_share(best.rise)}<br><small>{span}<br>{_ms(best.ms)}{f' ({times})' if times else ''}</small>"
            cells.append(f'<td style="background:{colour}" title="{show(best.option)}">{words}</td>')
        lines.append(f"<tr><th>{show(slot)}</th>{''.join(cells)}</tr>")
    notes = "".join(f"<li>{show(line)}</li>" for line in advice(rows).splitlines())
    return (
        "<h2>Sensitivity</h2><p>Rise of the loss where this slot alone is replaced, and the change of latency, with their 90% "
        "intervals, by the block's best option (its name on touch); green: no rise that shows.</p>"
        f"<table><tr>{head}</tr>{''.join(lines)}</table><ul>{notes}</ul>"
    )


def _options(count: int) -> str:
    return "1 option costs" if count == 1 else f"{count} options cost"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:+.1%}"


def _ms_span(row: Cell) -> str:
    return "" if row.ms_low is None or row.ms_high is None else f"{_ms(row.ms_low)} to {_ms(row.ms_high)}"


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3g} ms"
