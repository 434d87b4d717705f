"""From a trial to files that others use: the resolved model YAML, which trains in Ultralytics as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from nas.blocks.catalog import ROWS
from nas.blocks.register import file_of
from nas.files import write_whole
from nas.review.record import Record, RunSummary, printable
from nas.space.architecture import Architecture, model_yaml
from nas.space.skeleton import Skeleton


class _Rows(yaml.SafeDumper):
    """Writes the rows of a model one per line, as Ultralytics does."""


class _Row(list):  # type: ignore[type-arg]
    """A row that is written on one line."""


_Rows.add_representer(_Row, lambda dumper, row: dumper.represent_sequence("tag:yaml.org,2002:seq", row, flow_style=True))


def write_winner(
    path: Path, skeleton: Skeleton, architecture: Architecture, nc: int, *, record: Record, summary: RunSummary
) -> None:
    """Write an architecture as a model YAML, with where it comes from and how to train it in its head.

    Raises:
        OSError: the file cannot be written.
    """
    placement = [f"  {slot}: {text}" for slot, text in record.placement.items()] or ["  (nothing: the skeleton as it is)"]
    score = f"{record.map:.4f}" if record.map is not None else "unknown"
    on_val = [f"{summary.metric} {record.val:.4f} on val, of the weights beside it"] if record.val is not None else []
    latency = f"{record.latency_ms:.3f} ms" if record.latency_ms is not None else "unknown"
    weights, fidelity = printable(summary.weights), printable(summary.fidelity)
    load, pretrained = (f'.load("{weights}")', f" pretrained={weights}") if weights else ("", "")
    model = model_yaml(skeleton, architecture, nc)
    specs = [ROWS[row[2]] for row in (*model["backbone"], *model["head"]) if row[2] in ROWS]
    files = sorted({file_of(spec) for spec in specs if spec.digest})
    loading = [f"             nas.load_blocks({', '.join(map(repr, files))})   # the run keeps it in blocks/"] if files else []
    flags = "".join(f" --blocks {file}" for file in files)
    head = [
        f"{architecture.id}: trial {record.trial} of run {printable(summary.name)}, found by nas in {summary.skeleton}",
        "placements",
        *placement,
        f"proxy {summary.metric} {score} on the {summary.split} of {printable(summary.data)} after {fidelity}",
        *on_val,
        f"latency {latency} on {summary.measured_on}",
        "",
        "it needs:    nas, from its own repository; its distribution is yolo-placement-search (not `pip install nas`)",
        "train it:    import nas.yolo                # teaches Ultralytics the blocks below",
        *loading,
        "             from ultralytics import YOLO",
        f'             YOLO("{path.name}"){load}.train(data=…, epochs=…)',
        f"or:          nas yolo{flags} train model={path.name}{pretrained} data=… epochs=…",
    ]
    write_whole(path, model_text(model, head))


def model_text(model: Mapping[str, Any], head: Sequence[str]) -> str:
    """A model YAML as text, a row a line as Ultralytics writes them, under a head of comments."""
    rows = {part: [_Row(row) for row in model[part]] for part in ("backbone", "head")}
    body = yaml.dump({**model, **rows}, Dumper=_Rows, sort_keys=False, allow_unicode=True, width=10_000)
    return "".join(f"# {line}".rstrip() + "\n" for line in head) + body
