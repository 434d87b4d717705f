"""The page of a run: one self-contained HTML file with the interactive plot, the front as a table, and what the run
was.

It opens from a disk, an e-mail or an archive and asks the network for nothing: plotly.js stands in it whole (all 4.8
MB: plotly's Python package carries no smaller bundle), and its Content-Security-Policy forbids everything but the two
scripts written here, by their hashes. So even a text that slipped through an escape could not run.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

from nas.files import write_whole
from nas.review.heat import Cell, heat_map
from nas.review.picture import BASELINE, FRONT, LIMIT, TRIAL, Span, latency_span, log_ticks, map_range
from nas.review.record import TEACHER, Record, RunSummary, baseline_of, duration, printable, standing, teacher_of
from nas.review.table import HEADINGS, LEGEND, columns_of, front_of, lines_of, picks_of

MOST_POINTS = 4000  # of one kind drawn: an SVG point costs a browser about as much as a paragraph


def write_html(records: Sequence[Record], summary: RunSummary, path: Path, sensitivity: Sequence[Cell] = ()) -> None:
    """Write the page, the file whole or not at all; with a heat map where the `sensitivity` of slots is known.

    Raises:
        OSError: the file cannot be written.
    """
    from plotly.offline import get_plotlyjs  # noqa: PLC0415  only a page needs it

    # The parser turns CRLF into LF before it hashes a script, so the file must hold LF.
    scripts = [str(get_plotlyjs()).replace("\r\n", "\n").replace("\r", "\n"), _SCRIPT]
    figure, note = _figure(records, summary)
    size = len(front_of(records))
    page = _PAGE.substitute(
        policy=_policy(scripts),
        title=_show(f"{summary.name}: {summary.skeleton} on {summary.data}"),
        lead=_show(f"{size} on the front · {summary.measured_on} · {summary.limits}"),
        meaning=_show(summary.meaning, 2000),
        style=_STYLE,
        note=_show(note),
        front=_front_table(records, summary),
        legend=_show(f"{LEGEND} Spread: how far the third-lowest p50 of the measured blocks lies above the lowest."),
        heat=heat_map(sensitivity, _show),
        run=_run_list(summary),
        figure=_data(figure),
        plotly=scripts[0],
        script=scripts[1],
    )
    write_whole(path, page)


def _figure(records: Sequence[Record], summary: RunSummary) -> tuple[dict[str, Any], str]:
    """The plotly figure as plain data, and a sentence on what is drawn. Colours that follow the theme are set in the
    page.
    """
    front, span = front_of(records), latency_span(records, summary.limits.ms)
    members = {id(r) for r in front}
    timed = [r for r in records if r.latency_ms is not None and not r.baseline and id(r) not in members]
    others = [r for r in timed if r.state == "done" and r.map is not None]
    aside = {state: [r for r in timed if r.state == state] for state in ("rejected", "failed")}
    traces = [
        _points(_thin(others), "done, not on the front", color=TRIAL, size=7, opacity=0.6),
        *_front_traces(front, summary, span),
        *_baseline_traces(baseline_of(records), summary),
        *_teacher_traces(teacher_of(records, summary), summary),
    ]
    for (state, some), symbol in zip(aside.items(), ("line-ns-open", "x-thin-open"), strict=True):
        colour = TRIAL if state == "rejected" else LIMIT
        style = {"symbol": symbol, "color": colour, "size": 9, "line": {"width": 1.5}}
        traces.append({**_points(_thin(some), f"{state} ({len(some):,})", **style), "yaxis": "y2"})
    strip = any(aside.values())
    farthest = max([span.high, *(r.latency_ms or 0.0 for r in timed)])
    layout = _layout(summary, span, map_range(records, summary), strip=strip, empty=not front, farthest=farthest)
    note = "Touch or point at a trial to see its placement; click in the legend to hide a kind."
    if strip:
        note += " Marks in the strip below the plot are trials without an mAP, at their latency."
    thinned = [f"{len(_thin(some)):,} of {len(some):,}" for some in (others, *aside.values()) if len(some) > MOST_POINTS]
    if thinned:
        note += f" Evenly thinned out for the browser: {', '.join(thinned)} are drawn; trials.csv has all."
    return {"data": [trace for trace in traces if trace["x"]], "layout": layout}, note


def _front_traces(front: Sequence[Record], summary: RunSummary, span: Span) -> list[dict[str, Any]]:
    """The front as the staircase it dominates, up to the limit, and its members, the picks larger and named."""
    if not front:
        return []
    picks = picks_of(front)
    names = [", ".join(which for which, member in picks.items() if member is r) for r in front]
    points = {
        **_points(front, "front", color=FRONT, size=[14 if name else 9 for name in names], opacity=1),
        "mode": "markers+text",
        "text": names,
        # Above left of a member nothing can be; but left of the fastest is the axis.
        "textposition": ["bottom right" if r is front[0] and len(front) > 1 else "top left" for r in front],
        "cliponaxis": False,
        "legendgroup": "front",
    }
    if all(r.map_low is not None for r in front):
        up, down = ([abs((end or 0.0) - (r.map or 0.0)) for r, end in zip(front, ends, strict=True)] for ends in _ends(front))
        points["error_y"] = {"type": "data", "array": up, "arrayminus": down, "thickness": 1, "width": 3, "color": FRONT}
    end = max(front[-1].latency_ms or 0.0, min(summary.limits.ms or math.inf, span.high))
    stairs = {
        "type": "scatter",
        "mode": "lines",
        "x": [*points["x"], end],
        "y": [*points["y"], points["y"][-1]],
        "line": {"color": FRONT, "width": 2, "shape": "hv"},
        "hoverinfo": "skip",
        "showlegend": False,
        "legendgroup": "front",
    }
    return [stairs, points]


def _ends(front: Sequence[Record]) -> tuple[list[float | None], list[float | None]]:
    """Upper and lower ends of the intervals of mAP."""
    return [r.map_high for r in front], [r.map_low for r in front]


def _baseline_traces(baseline: Record | None, summary: RunSummary) -> list[dict[str, Any]]:
    """The baseline as a square, hollow where it is infeasible."""
    if baseline is None or baseline.map is None or baseline.latency_ms is None:
        return []
    name = ", ".join(filter(None, [summary.baseline_name, standing(baseline, summary)]))
    symbol = "square" if baseline.feasible else "square-open"
    return [_points([baseline], name, symbol=symbol, color=BASELINE, size=13, line={"width": 2.5, "color": BASELINE})]


def _teacher_traces(teacher: Record | None, summary: RunSummary) -> list[dict[str, Any]]:
    """What the blocks have learned from, as a hollow diamond."""
    if teacher is None or teacher.latency_ms is None or summary.teacher is None:
        return []
    return [_points([teacher], f"teacher ({summary.teacher.name})", symbol="diamond-open", color=BASELINE, size=13)]


def _layout(
    summary: RunSummary, span: Span, heights: tuple[float, float], *, strip: bool, empty: bool, farthest: float
) -> dict[str, Any]:
    """Axes, the limit with everything beyond it shaded up to the `farthest` latency, and (`strip`) room below the plot for
    trials without an mAP.
    """
    shapes: list[dict[str, Any]] = []
    notes: list[dict[str, Any]] = []
    if summary.limits.ms is not None:
        limit, end = summary.limits.ms, max(farthest, summary.limits.ms) * 1.05
        box = {"xref": "x", "yref": "paper", "y0": 0, "y1": 1, "layer": "below"}
        shapes = [
            {**box, "type": "rect", "x0": limit, "x1": end, "fillcolor": LIMIT, "opacity": 0.09, "line": {"width": 0}},
            {**box, "type": "line", "x0": limit, "x1": limit, "line": {"color": LIMIT, "width": 1.5, "dash": "dash"}},
        ]
        # On a log axis plotly wants a shape's x in ms and an annotation's as a logarithm.
        at = {"x": math.log10(limit) if span.log else limit, "xref": "x", "y": 1, "yref": "paper", "yanchor": "bottom"}
        notes = [{**at, "text": f"limit {limit:g} ms", "showarrow": False, "font": {"color": LIMIT}}]
    if empty:
        middle = {"x": 0.5, "xref": "paper", "y": 0.6, "yref": "paper", "showarrow": False, "font": {"size": 18}}
        notes.append({**middle, "text": "The front is empty"})
    return {
        "xaxis": {
            "title": {"text": f"latency p50 (ms)<br>{_hover(summary.measured_on)}"},
            "type": "log" if span.log else "linear",
            "range": [math.log10(span.low), math.log10(span.high)] if span.log else [span.low, span.high],
            # Fixed: plotly's own labels on a log axis shrink to single digits between decades.
            **({"tickmode": "array", "tickvals": log_ticks(span)} if span.log else {}),
            "anchor": "y2" if strip else "y",
            "zeroline": False,
        },
        "yaxis": {
            "title": {"text": summary.metric},
            "range": heights,
            "domain": [0.12 if strip else 0, 1],
            "zeroline": False,
        },
        "yaxis2": {"domain": [0, 0.06], "visible": False, "fixedrange": True, "range": [-1, 1]},
        "shapes": shapes,
        "annotations": notes,
        "margin": {"l": 62, "r": 16, "t": 52, "b": 56},
        "legend": {"orientation": "h", "y": -0.19, "yanchor": "top"},
        "hovermode": "closest",
        "hoverlabel": {"align": "left"},
    }


def _points(records: Sequence[Record], name: str, **marker: Any) -> dict[str, Any]:
    """A trace of markers, each with its trial in words (`hovertext`, which unlike a template takes "%{x}" for text)."""
    return {
        "type": "scatter",
        "mode": "markers",
        "name": _hover(name),
        "x": [r.latency_ms for r in records],
        "y": [r.map or 0.0 for r in records],
        "hovertext": [_words(r) for r in records],
        "hoverinfo": "text",
        "marker": marker,
    }


def _words(record: Record) -> str:
    """A trial in plotly's pseudo-HTML, slot by slot."""
    facts = [f"<b>trial {record.trial} · {_hover(record.id)}</b>"]
    if record.state != "done":
        facts.append(_hover(record.state if record.reason is None else f"{record.state}: {record.reason}"))
    if record.map is not None:
        sure = "" if record.map_low is None else f" ({record.map_low:.4f} to {record.map_high:.4f}, {record.trainings} seeds)"
        facts.append(f"mAP50-95 {record.map:.4f}{sure}" + ("" if record.map50 is None else f" · mAP50 {record.map50:.4f}"))
    if record.latency_ms is not None:
        facts.append(f"latency {record.latency_ms:.4g} ms{_certainty(record)}")
    if record.params is not None:
        facts.append(f"{record.params / 1e6:.2f} M params" + ("" if record.gmacs is None else f" · {record.gmacs:.2f} GMACs"))
    if record.size_mb is not None:
        facts.append(
            f"{record.size_mb:.2f} MB file" + ("" if record.memory_mb is None else f" · {record.memory_mb:.1f} MB memory")
        )
    slots = [_hover(f"{slot}: {what}") for slot, what in record.placement.items()]
    return "<br>".join(facts + (slots or ["all slots keep the skeleton's block"]))


def _certainty(record: Record) -> str:
    """How sure a latency is: " (4.9 to 5.1, p90 5.3, predicted)", as far as known."""
    known = []
    if record.latency_low_ms is not None and record.latency_high_ms is not None:
        known.append(f"{record.latency_low_ms:.4g} to {record.latency_high_ms:.4g}")
    known += [] if record.latency_p90_ms is None else [f"p90 {record.latency_p90_ms:.4g}"]
    known += [] if record.latency_spread is None else [f"spread {record.latency_spread:.1%}"]
    known += [] if record.latency_source in {None, "measured"} else [str(record.latency_source)]
    return f" ({', '.join(known)})" if known else ""


def _front_table(records: Sequence[Record], summary: RunSummary) -> str:
    shown = columns_of(summary, paper=True)
    head = "".join(f"<th>{_show(heading)}</th>" for heading in (*(HEADINGS[i] for i in shown), "placement"))
    rows = []
    for line in lines_of(records, summary):
        slots = [f"<span>{_show(slot)}</span> {_show(what)}" for slot, what in line.record.placement.items()]
        kind = "baseline" if line.record.baseline or line.record.state == TEACHER else "pick" if line.cells[0] else ""
        cells = "".join(f"<td>{_show(line.cells[i])}</td>" for i in shown)
        rows.append(f'<tr class="{kind}">{cells}<td class="slots">{"<br>".join(slots) or "all kept"}</td></tr>')
    if baseline_of(records) is None:
        width = len(shown) + 1
        rows.append(f'<tr class="baseline"><td colspan="{width}">{_show(summary.baseline_name)}: not evaluated</td></tr>')
    return f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"


def _run_list(summary: RunSummary) -> str:
    facts = {
        "command": summary.command,
        "data": summary.data,
        "classes": f"{len(summary.classes)}: {', '.join(summary.classes)}",
        "skeleton": summary.skeleton,
        "target": summary.measured_on,
        **({"predicted latencies": summary.predictions} if summary.predictions else {}),
        "limits": str(summary.limits),
        "fidelity": summary.fidelity,
        "mAP measured on": summary.split,
        "seed": str(summary.seed),
        "trials": summary.tally,
        "device time": duration(summary.device_seconds),
        "wall clock": duration(summary.wall_seconds),
        "stopped": summary.stopped_because,
    }
    return "".join(f"<dt>{_show(name)}</dt><dd>{_show(what, 2000)}</dd>" for name, what in facts.items())


def _thin(records: Sequence[Record]) -> Sequence[Record]:
    return records[:: max(1, math.ceil(len(records) / MOST_POINTS))]


def _show(text: str, width: int = 300) -> str:
    """A text as HTML, in an element or a quoted attribute."""
    return html.escape(printable(text, width))


def _hover(text: str) -> str:
    """A text for plotly's pseudo-HTML, which knows &lt; and &amp; but not &quot;."""
    return html.escape(printable(text, 90), quote=False)


def _data(content: object) -> str:
    """JSON that no HTML parser can mistake for the end of its script element."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _policy(scripts: Sequence[str]) -> str:
    """A Content-Security-Policy with these inline scripts and no network. plotly writes styles and makes its PNG as a
    blob.
    """
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{h}'" for h in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "connect-src 'none'; base-uri 'none'; form-action 'none'"
    )


_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --panel: #f6f8fa; --ink: #1f2328; --faint: #59636e; --rule: #d1d9e0;
  --front: #0b57c2; --baseline: #a85508 }
@media (prefers-color-scheme: dark) { :root { --paper: #0d1117; --panel: #161b22; --ink: #e6edf3; --faint: #9198a1;
  --rule: #30363d; --front: #6cb0ff; --baseline: #f0a35e } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1.5rem clamp(.8rem, 3vw, 2.5rem) 3rem; max-width: 90rem; background: var(--paper);
  color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif }
h1 { font-size: 1.45rem; line-height: 1.25; margin: 0; overflow-wrap: anywhere } h2 { font-size: 1.1rem; margin: 2rem
0 .6rem } p { margin: .35rem 0; overflow-wrap: anywhere } .faint { color: var(--faint); font-size: .9rem } #plot {
height: clamp(400px, 64vh, 720px); margin-top: .8rem } .wide { overflow-x: auto; border: 1px solid var(--rule);
border-radius: 6px } table { border-collapse: collapse; width: 100%; font-size: .88rem; font-variant-numeric:
tabular-nums } th, td { padding: .4rem .55rem; text-align: right; vertical-align: top; white-space: nowrap } th {
background: var(--panel); color: var(--faint); font-weight: 600 } td { border-top: 1px solid var(--rule) }
th:first-child, td:first-child, th:last-child, td:last-child { text-align: left } td:first-child { font-weight: 600;
white-space: normal; min-width: 7rem } td:nth-child(3), .slots, dd:first-of-type { font-family: ui-monospace,
SFMono-Regular, Menlo, Consolas, monospace } .slots span { color: var(--faint) } .pick td:first-child { color:
var(--front) } .baseline td { background: var(--panel) } .baseline td:first-child { color: var(--baseline) } dl {
display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .25rem 1.2rem; margin: 0; font-size: .92rem }
dt { color: var(--faint) } dd { margin: 0; overflow-wrap: anywhere }
"""

_SCRIPT = """
(() => {
  const figure = JSON.parse(document.getElementById("figure").textContent);
  const plot = document.getElementById("plot");
  const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const theme = () => ({
    "paper_bgcolor": colour("--paper"), "plot_bgcolor": colour("--paper"),
    "font.color": colour("--ink"), "font.family": getComputedStyle(document.body).fontFamily,
    "xaxis.gridcolor": colour("--rule"), "yaxis.gridcolor": colour("--rule"),
    "xaxis.linecolor": colour("--rule"), "yaxis.linecolor": colour("--rule"),
    "hoverlabel.bgcolor": colour("--panel"), "hoverlabel.bordercolor": colour("--rule"),
    "hoverlabel.font.color": colour("--ink")
  }); const options = { responsive: true, displaylogo: false, modeBarButtons: [["toImage", "zoom2d", "pan2d",
  "resetScale2d"]],
    toImageButtonOptions: { filename: "pareto", scale: 2 } };
  const paint = () => Plotly.relayout(plot, theme());
  Plotly.newPlot(plot, figure.data, figure.layout, options).then(paint);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
})();
"""

_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="$policy">
<meta name="referrer" content="no-referrer">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>$style</style>
</head>
<body>
<header>
<h1>$title</h1>
<p>$lead</p>
<p class="faint">$meaning</p>
</header>
<main>
<div id="plot"></div>
<p class="faint">$note</p>
<h2>The front</h2>
<div class="wide"><table>$front</table></div>
<p class="faint">$legend</p>
<div class="wide">$heat</div>
<h2>The run</h2>
<dl>$run</dl>
</main>
<script type="application/json" id="figure">$figure</script>
<script>$plotly</script>
<script>$script</script>
</body>
</html>
""")
