"""The picture of a run: mAP50-95 against latency, the front among everything that was trained, as a PNG.

Drawn with matplotlib's Agg canvas on a figure of its own: no pyplot, so no global state and no display.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nas.files import write_whole
from nas.review.record import Record, RunSummary, baseline_of, duration, milliseconds, printable, standing, teacher_of
from nas.review.table import front_of, picks_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FRONT, BASELINE, TRIAL, LIMIT = "#1f6feb", "#d9730d", "#8b949e", "#c93c37"  # told apart by the colour-blind as well
_INK, _FAINT = "#1f2328", "#59636e"
_SEEN = "The checkpoint may have learned from these images: nothing is claimed of mAP here. What val says stands in the table."
_WIDE = 4.0  # latencies that span more than this factor are shown on a log axis
# Where a label may stand around its point: directions of offset (right, up), nearest first; above left and below
# right of a point of the front there is room, because the front rises to the right.
_SIDES = ((-1, 1), (1, -1), (0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, -1))


class Span(NamedTuple):
    """The shown range of latency in ms, and whether its axis is logarithmic."""

    low: float
    high: float
    log: bool


def latency_span(records: Sequence[Record], limit_ms: float | None) -> Span:
    """The range of latency that shows every trained trial, the baseline and the limit, with a margin; all records where
    none was trained. Rejected trials may lie outside: how far over the limit they are is not what the picture is about.
    """
    trained = [r.latency_ms for r in records if r.latency_ms is not None and (r.map is not None or r.baseline)]
    values = trained or [r.latency_ms for r in records if r.latency_ms is not None]
    values = values + ([] if limit_ms is None else [limit_ms])
    if not values:
        return Span(0.5, 2.0, log=True)
    low, high = min(values), max(values)
    if high / low > _WIDE:
        margin = (high / low) ** 0.08
        return Span(low / margin, high * margin, log=True)
    return Span(low - 0.08 * high, high + 0.08 * high, log=False)


def map_range(records: Sequence[Record], summary: RunSummary) -> tuple[float, float]:
    """The shown range of mAP50-95, never so narrow that noise looks like a difference, with room for names above."""
    maps = [r.map for r in records if r.map is not None and (r.state == "done" or r.baseline)]
    maps += [summary.teacher.map] if summary.teacher else []
    low, high = (min(maps), max(maps)) if maps else (0.0, 1.0)
    margin = max(0.12 * (high - low), 0.04)
    return max(low - margin, -0.02), min(high + 1.5 * margin, 1.02)


def log_ticks(span: Span) -> list[float]:
    """Where a log axis gets its ticks: round values, and denser ones where the range is short."""
    steps = (1.0, 2.0, 5.0) if span.high / span.low > 8 else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
    decades = range(math.floor(math.log10(span.low)), math.ceil(math.log10(span.high)) + 1)
    ticks = [float(f"{step}e{decade}") for decade in decades for step in steps]
    return [tick for tick in ticks if span.low <= tick <= span.high]


def write_png(records: Sequence[Record], summary: RunSummary, path: Path) -> None:
    """Draw the run and write it as a PNG of 1500 x 975 px, the file whole or not at all.

    Done trials grey, the front as the staircase it dominates with knee, fastest and best named, the baseline hollow
    where it is over a limit, the teacher as a hollow diamond; the limit on latency as a line with everything beyond it
    shaded, all of them in words. Without a front it says so.

    Raises:
        OSError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415  0.5 s that only a picture is worth
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(10, 6.5), dpi=150, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0.075, 0.165, 0.895, 0.67))
    span = latency_span(records, summary.limits.ms)
    _frame(axes, records, summary, span)
    front, baseline = front_of(records), baseline_of(records)
    done = [r for r in records if r.state == "done" and r.map is not None and r.latency_ms is not None]
    grey = [r for r in done if not r.baseline]
    points = _points(grey)
    size = 22 if len(grey) < 2000 else 6
    words = f"done trials ({len(done):,})" if grey else None
    axes.scatter(points[:, 0], points[:, 1], s=size, c=TRIAL, alpha=0.55, linewidths=0, zorder=2, label=words)
    stairs = np.empty((2, 0))
    names: dict[tuple[float, float], list[str]] = {}
    if front:
        x, y = _points(front).T
        end = max(x[-1], min(summary.limits.ms or np.inf, span.high))
        stairs = np.array([[x[0], *x, end], [-1.0, *y, y[-1]]])
        axes.step(*stairs, where="post", c=FRONT, lw=1.6, alpha=0.8, zorder=3)
        if spans := [(r.latency_ms, r.map, r.map_low, r.map_high) for r in front if r.map_low is not None]:
            at, mid, low, high = np.array(spans, dtype=np.float64).T
            axes.errorbar(
                at, mid, [mid - low, high - mid], fmt="none", ecolor=FRONT, elinewidth=1, capsize=2.5, alpha=0.6, zorder=3
            )
        axes.plot(x, y, "o", c=FRONT, ms=6.5, mec="white", mew=0.8, zorder=4, label=f"front ({len(front):,})")
        for which, r in picks_of(front).items():
            names.setdefault((r.latency_ms or 0.0, r.map or 0.0), []).append(which)
        marked = np.array(list(names))
        axes.plot(*marked.T, "o", ms=11, mfc="none", mec=FRONT, mew=1.4, zorder=4)
    if baseline is not None and baseline.map is not None and baseline.latency_ms is not None:
        words = ", ".join(filter(None, [summary.baseline_name, standing(baseline, summary)]))
        face = BASELINE if baseline.feasible else "white"
        at = (baseline.latency_ms, baseline.map)
        axes.plot(*at, "s", ms=9, mfc=face, mec=BASELINE, mew=1.8, zorder=5, ls="none", label=_text(words, 60))
        names.setdefault(at, []).append(words)
    teacher = teacher_of(records, summary)
    if summary.teacher and teacher is not None and teacher.latency_ms is not None:
        words, at = f"teacher ({summary.teacher.name})", (teacher.latency_ms, summary.teacher.map)
        axes.plot(*at, "D", ms=8, mfc="none", mec=BASELINE, mew=1.6, zorder=5, ls="none", label=_text(words, 40))
        names.setdefault(at, []).append(words)
    if not front:
        why = "no trial is done and within the limits" if records else "no trial has been proposed"
        for height, words, points_high, colour in ((0.13, "The front is empty", 17, _INK), (0.07, why, 11, _FAINT)):
            text = axes.text(0.03, height, words, transform=axes.transAxes, size=points_high, color=colour, zorder=6)
            text.set_bbox({"fc": "white", "ec": "none", "pad": 2})
    if axes.get_legend_handles_labels()[0] and done:
        figure.legend(loc="lower left", bbox_to_anchor=(0.068, 0.042), ncols=4, frameon=False, fontsize=10)
    with warnings.catch_warnings():
        # A dataset's name may hold letters that the font lacks; a box in the picture is enough, the log need not know.
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*missing")
        _name_points(axes, names, _points(done), stairs, summary.limits.ms)
        buffer = io.BytesIO()
        canvas.print_figure(buffer, format="png")
    write_whole(path, buffer.getvalue())


def _frame(axes: Axes, records: Sequence[Record], summary: RunSummary, span: Span) -> None:
    """Axes, titles, the limit and what lies beyond it."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator  # noqa: PLC0415

    if span.log:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(log_ticks(span)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.set_xlim(span.low, span.high)
    axes.set_ylim(*map_range(records, summary))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.3g}"))
    axes.grid(color="#d1d9e0", lw=0.6, zorder=0)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#818b98")
    axes.tick_params(colors=_FAINT, labelsize=10)
    # No mathtext anywhere: a "$" in a user's file name is a dollar.
    axes.set_xlabel(_text(f"latency p50 (ms) on {summary.measured_on}", 90), size=11, color=_INK)
    axes.set_ylabel(summary.metric, size=11, color=_INK)
    title = f"{summary.name}: {summary.skeleton} on {summary.data}"
    for height, words, size, colour, weight in (
        (0.938, _text(title, 66), 15, _INK, "bold"),
        (0.896, _text(summary.proxy, 108), 10.5, _FAINT, "normal"),
        (0.866, _SEEN if summary.seen else "", 10.5, LIMIT, "normal"),
    ):
        axes.figure.text(0.075, height, words, size=size, color=colour, weight=weight)
    spent = f"{duration(summary.device_seconds)} of device time"
    foot = _text(f"{summary.limits} · {summary.tally} · {spent} · {summary.stopped_because}", 150)
    axes.figure.text(0.075, 0.025, foot, size=9, color=_FAINT)
    if summary.limits.ms is not None:
        axes.axvspan(summary.limits.ms, max(span.high, summary.limits.ms), color=LIMIT, alpha=0.07, lw=0, zorder=1)
        axes.axvline(summary.limits.ms, color=LIMIT, lw=1.4, ls=(0, (5, 3)), zorder=1)
        across = axes.get_xaxis_transform()
        words = f"limit {summary.limits.ms:g} ms"
        axes.text(summary.limits.ms, 1.012, words, transform=across, ha="center", size=10, color=LIMIT)


def _name_points(
    axes: Axes,
    names: dict[tuple[float, float], list[str]],
    points: NDArray[np.float64],
    stairs: NDArray[np.float64],
    limit_ms: float | None,
) -> None:
    """Write each name near its point: inside the axes, on no other name, and covering as little as can be."""
    frame = axes.get_window_extent()
    to_px = axes.transData.transform
    # What a name should not cover, as weighted dots in px: trials lightly, the front's line and the named points
    # heavily.
    dots, weights = [to_px(points)], [np.ones(len(points))]
    lines = [np.repeat(stairs, 2, axis=1)] if stairs.size else []
    if lines:  # corners of the staircase: each mAP holds until the next latency
        lines[0] = np.stack([lines[0][0][1:], lines[0][1][:-1]])
    if limit_ms is not None:
        lines.append(np.array([[limit_ms, limit_ms], axes.get_ylim()]))
    for line in lines:
        corners = np.clip(to_px(line.T), (frame.x0, frame.y0), (frame.x1, frame.y1))
        walked = np.concatenate(([0.0], np.cumsum(np.hypot(*np.diff(corners, axis=0).T))))
        steps = np.arange(0.0, walked[-1], 5.0)
        dots.append(np.stack([np.interp(steps, walked, corners[:, i]) for i in (0, 1)], axis=1))
        weights.append(np.full(len(steps), 4.0))
    dots.append(to_px(np.array(list(names)).reshape(-1, 2)))
    weights.append(np.full(len(names), 200.0))
    dot, weight = np.concatenate(dots), np.concatenate(weights)
    taken: list[NDArray[np.float64]] = []  # boxes of the names already written: left, bottom, right, top in px
    for (x, y), words in names.items():
        at = to_px((x, y))
        note = axes.annotate(
            f"{_text(', '.join(words), 70)}\n{y:.3f} at {milliseconds(x)}",
            (x, y),
            xytext=(0, 0),
            textcoords="offset pixels",
            ha="center",
            va="center",
            size=10,
            color=_INK,
            linespacing=1.25,
            zorder=7,
            bbox={"boxstyle": "round,pad=0.2", "fc": "white", "ec": "none", "alpha": 0.75},
            arrowprops={"arrowstyle": "-", "color": _FAINT, "lw": 0.8, "shrinkB": 7, "shrinkA": 0},
        )
        size = note.get_window_extent()
        half = np.array([size.width, size.height]) / 2 + 8
        options = []
        for distance in (12, 30, 55, 90, 140):
            for side in _SIDES:
                centre = at + np.array(side) * (half + (0.6 if all(side) else 1.0) * distance)
                low, high = centre - half, centre + half
                outside = max(frame.x0 - low[0], frame.y0 - low[1], high[0] - frame.x1, high[1] - frame.y1, 0.0)
                crossed = sum(bool(np.all(low < o[2:]) and np.all(o[:2] < high)) for o in taken)
                covered = float(weight[np.all((dot > low) & (dot < high), axis=1)].sum())
                options.append((1e4 * crossed + 1e2 * outside + covered + distance / 10, tuple(centre)))
        centre = np.array(min(options, key=lambda option: option[0])[1])
        taken.append(np.concatenate((centre - half, centre + half)))
        note.set_position(tuple(centre - at))


def _points(records: Sequence[Record]) -> NDArray[np.float64]:
    """(latency, mAP) of records that have both."""
    return np.array([(r.latency_ms, r.map) for r in records], dtype=np.float64).reshape(-1, 2)


def _text(text: str, width: int) -> str:
    """A user's text on one line, with mathtext switched off: matplotlib reads "$...$" as a formula."""
    return printable(text, width).replace("$", r"\$")
