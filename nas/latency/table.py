"""Latencies of another device, brought as a CSV: read, checked, and turned into the price of any architecture. No torch.

`nas latency probes` writes the models and `measure.py`, which measures them there and writes COLUMNS. A table made by hand
needs two columns: `architecture` (or `id`, where a probes.json beside the table or the run knows it) and `ms`.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas.blocks.catalog import CATALOG
from nas.errors import InputError, did_you_mean
from nas.latency.model import LatencyModel
from nas.latency.target import parse_imgsz
from nas.space.architecture import KEEP, Architecture
from nas.space.search_space import SearchSpace
from nas.space.skeleton import Skeleton

COLUMNS: Mapping[str, str] = {
    "id": "architecture id",
    "skeleton": "the skeleton's name",
    "imgsz": "side of the input in pixels, or height x width",
    "batch": "images per inference",
    "nc": "number of classes of the models",
    "architecture": "the placements, as JSON",
    "ms": "latency: the lowest p50 of time-separated blocks, in ms",
    "low": "lower end of its interval, in ms",
    "high": "upper end, in ms",
    "p90": "90th percentile of the fastest block, in ms",
    "spread": "how far the third-lowest p50 lies above the lowest, as a ratio",
    "runs": "inferences timed",
    "cpu_ms": "CPU time of one inference, in ms; empty where more than one thread computes",
    "throttled": "1 where the device had slowed itself down",
    "noisy": "1 where the figure stayed unstable",
    "device": "what the device calls itself",
    "runtime": "what computed: package, version and provider",
    "threads": "threads of the runtime",
    "row_N": "ms in row N of the model YAML, by the runtime's own profiler",
}
MIN_ROWS = 8
NEAR = "near the limit: measure it on the device"
# What a figure must have in common with all others of its table.
_COMMON = ("skeleton", "imgsz", "batch", "nc", "device", "runtime", "threads")
_ROW = re.compile("row_[0-9]{1,4}")
_HOST = re.compile(r" \([^()]*\)$")


@dataclass(frozen=True)
class Measured:
    """An architecture and its latency in ms, whose interval is the figure itself where none is known.

    `rows` are the milliseconds in each row of its model YAML, None where they are not known; `source` is that of a price.
    """

    architecture: Architecture
    ms: float
    low: float
    high: float
    p90: float | None = None
    spread: float | None = None
    runs: int | None = None
    cpu_ms: float | None = None
    noisy: bool = False
    rows: Mapping[int, float] | None = None
    source: str = "table"


@dataclass(frozen=True)
class Table:
    """What was measured on one device, in one way.

    Args:
        imgsz: height and width of the input in pixels; None where a table made by hand does not say.
        nc: number of classes of its models; None where it does not say.
        notes: what its user should know, in words.
    """

    device: str
    imgsz: tuple[int, int] | None
    batch: int
    nc: int | None
    measured: tuple[Measured, ...]
    notes: tuple[str, ...]


def read_table(path: Path, skeleton: Skeleton, known: Mapping[str, Architecture] | None = None) -> Table:
    """Read and check a table.

    Args:
        skeleton: of the search.
        known: id -> architecture, for rows that name no more than an id; those of a probes.json beside the table are known.

    Raises:
        InputError: with the line, and the nearest right value; also where fewer than 8 rows are left to go by.
    """
    header, lines = _read(path)
    if strange := [name for name in header if _ROW.fullmatch(name) and int(name.removeprefix("row_")) >= len(skeleton.rows)]:
        raise InputError(
            f"{path}:1: {skeleton.name} has no row for '{strange[0]}'", f"its last is row_{len(skeleton.rows) - 1}"
        )
    names = {**_beside(path), **(known or {})}
    common: dict[str, tuple[str, int]] = {}
    first: dict[str, int] = {}
    measured: list[Measured] = []
    left_out = 0
    for number, line in lines:
        where = f"{path}:{number}"
        architecture = _architecture(where, line, skeleton, names)
        if architecture.id in first:
            what = f"{where}: {architecture.id} stands in line {first[architecture.id]} too"
            raise InputError(what, "keep the row that was measured in the quieter moment")
        first[architecture.id] = number
        _agree(where, line, number, common)
        if _number(where, line, "throttled", empty=0.0):
            left_out += 1
            continue
        measured.append(_measured(where, line, architecture, header))
    if len(measured) < MIN_ROWS:
        usable = f"{path}: {len(measured)} usable rows" + (f", {left_out} throttled" if left_out else "")
        raise InputError(f"{usable}; a latency model needs {MIN_ROWS}", "measure more of the probes: nas latency probes")
    notes = [f"{left_out} rows measured while the device was slowed down are left out"] if left_out else []
    if noisy := sum(row.noisy for row in measured):
        notes.append(f"{noisy} of {len(measured)} rows were measured in noise: their intervals are wide")
    if not any(row.rows for row in measured):
        notes.append("no times of single rows: the model has whole latencies alone to go by")
    text = {name: value for name, (value, _) in common.items()}
    return Table(
        device=text.get("device") or "a device without a name",
        imgsz=parse_imgsz(text["imgsz"]) if text.get("imgsz") else None,
        batch=int(text.get("batch") or 1),
        nc=int(text["nc"]) if text.get("nc") else None,
        measured=tuple(measured),
        notes=tuple(f"{path.name}: {note}" for note in notes),
    )


class TablePrices:
    """The latency of any architecture on the device of a table: its own figure where it was measured, else a prediction.

    Args:
        table: as read.
        space: the architectures to price.
    """

    def __init__(self, table: Table, space: SearchSpace) -> None:
        self.table = table
        self._measured = {row.architecture: row for row in table.measured}
        self.model = LatencyModel.fit(space, [(row.architecture, row.ms, _adding_up(row)) for row in table.measured])

    @property
    def stand_in(self) -> str:
        """A target of this machine with the same image: for what is counted and not timed."""
        imgsz = "" if self.table.imgsz is None else f",imgsz={'x'.join(map(str, self.table.imgsz))}"
        return f"cpu:onnxruntime,batch={self.table.batch}{imgsz}"

    def price(self, architecture: Architecture) -> dict[str, Any]:
        """As `nas.execution.work.price` gives it, without what the model itself takes."""
        return self.prices([architecture])[0]

    def prices(self, architectures: Sequence[Architecture]) -> list[dict[str, Any]]:
        """The price of each; far faster than one by one."""
        if not architectures:
            return []
        predicted = zip(*self.model.predict(architectures), strict=True)
        return [
            _price(architecture, self._measured.get(architecture), *map(float, figures))
            for architecture, figures in zip(architectures, predicted, strict=True)
        ]

    def __str__(self) -> str:
        error = self.model.error
        return (
            f"{self.table.device}: {len(self.table.measured)} architectures measured; predictions of others are off by "
            f"{error.mape:.1f}% on average, rank correlation {error.spearman:.2f} (each of {error.n} predicted from others)"
        )


def near(price: Mapping[str, Any], limit_ms: float | None) -> bool:
    """Whether a predicted latency may be on either side of the limit."""
    return limit_ms is not None and price.get("source") == "predicted" and bool(price["low"] <= limit_ms < price["high"])


def _adding_up(row: Measured) -> dict[int, float] | None:
    """The times of its rows, stretched to its latency: profiling adds some time, and hides some."""
    total = sum(row.rows.values()) if row.rows else 0.0
    return {layer: ms * row.ms / total for layer, ms in row.rows.items()} if row.rows and total > 0 else None


def _price(architecture: Architecture, measured: Measured | None, ms: float, low: float, high: float) -> dict[str, Any]:
    if measured is None:
        figures: dict[str, Any] = {"ms": ms, "low": low, "high": high, "source": "predicted"}
        measured = Measured(architecture, ms, low, high)
    else:
        figures = {"ms": measured.ms, "low": measured.low, "high": measured.high, "source": measured.source}
    quality = {"p90": measured.p90, "spread": measured.spread, "runs": measured.runs, "cpu_ms": measured.cpu_ms}
    return {**figures, **quality, "rough": False, "throttled": False, "noisy": measured.noisy}


def _read(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """The columns' names, and each row with the line that it stands in."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}", "give the CSV that measure.py wrote on the device") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not a text in UTF-8", "give the CSV that measure.py wrote on the device") from error
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        header = [name.strip() for name in next(reader, [])]
        _check_header(path, header)
        lines = []
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                what = f"{path}:{reader.line_num}: {len(cells)} fields under {len(header)} columns"
                raise InputError(what, "put a field with commas into double quotes, and write decimals with a dot")
            lines.append((reader.line_num, dict(zip(header, map(str.strip, cells), strict=True))))
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: {error}", "give the CSV that measure.py wrote on the device") from error
    return header, lines


def _check_header(path: Path, header: Sequence[str]) -> None:
    if len(header) == 1 and ";" in header[0]:
        what = f"{path}:1: the columns are separated by ';'"
        raise InputError(what, "separate them by commas, and write decimals with a dot")
    if "ms" not in header:
        near = [name for name in header if re.search(r"ms|latency|time|p50", name, re.IGNORECASE)]
        raise InputError(f"{path}:1: no column 'ms'", f"rename '{near[0]}'" if near else "the latency in ms stands in it")
    if not {"architecture", "id"} & set(header):
        raise InputError(f"{path}:1: no column 'architecture'", f"its rows name architectures; it has {', '.join(header)}")
    if double := [name for name, count in Counter(header).items() if count > 1]:
        raise InputError(f"{path}:1: two columns '{double[0]}'", "keep one")


def _beside(path: Path) -> dict[str, Architecture]:
    """The architectures of a probes.json beside the table, by id; none where there is no such file."""
    try:
        probes = json.loads((path.parent / "probes.json").read_text(encoding="utf-8"))["probes"]
        found = [Architecture.from_dict(json.loads(probe["architecture"])) for probe in probes]
    except (OSError, ValueError, LookupError, TypeError):
        return {}
    return {architecture.id: architecture for architecture in found}


def _architecture(where: str, line: Mapping[str, str], skeleton: Skeleton, known: Mapping[str, Architecture]) -> Architecture:
    """The architecture of a row, one of the skeleton's."""
    named = line.get("id", "")
    if text := line.get("architecture", ""):
        try:
            architecture = Architecture.from_dict(json.loads(text))
            architecture.id  # noqa: B018  (raises for what is no plain data)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            what = f"{where}: architecture '{_short(text)}' cannot be read"
            raise InputError(what, "copy it as it stands in probes.json, in double quotes") from error
        if named and named != architecture.id:
            raise InputError(f"{where}: id '{named}' is not that of its architecture", f"it is {architecture.id}")
    elif named in known:
        architecture = known[named]
    else:
        what = f"{where}: id '{named}' is not known" if named else f"{where}: names no architecture"
        near = did_you_mean(named, known) if named and known else None
        raise InputError(what, near or "add the column 'architecture', or lay the probes.json beside the table")
    if architecture.skeleton != skeleton.name:
        what = f"{where}: skeleton '{architecture.skeleton}', but the search space has {skeleton.name}"
        raise InputError(what, f"measure probes of this space (nas latency probes), or search one of {architecture.skeleton}")
    slots = {slot.name: slot.layer for slot in skeleton.slots}
    for placement in architecture.placements:
        if slots.get(placement.slot) != placement.layer:
            what = f"{where}: {skeleton.name} has no slot '{placement.slot}' in row {placement.layer}"
            raise InputError(what, did_you_mean(placement.slot, slots))
        if placement.block != KEEP and placement.block not in CATALOG:
            what = f"{where}: unknown block '{placement.block}'"
            raise InputError(what, did_you_mean(placement.block, CATALOG) or "name its file with --blocks")
    return architecture


def _agree(where: str, line: Mapping[str, str], number: int, common: dict[str, tuple[str, int]]) -> None:
    """Whether a row was measured as those before it."""
    for name in _COMMON:
        value = line.get(name, "")
        if name == "device":
            value = _HOST.sub("", value)
        if name == "imgsz" and value:
            try:
                parse_imgsz(value)
            except InputError as error:
                raise InputError(f"{where}: {error.message}", error.hint) from error
        if name in {"batch", "nc"} and value and not re.fullmatch("[1-9][0-9]{0,8}", value):
            raise InputError(f"{where}: {name} is '{value}'", "give a whole number from 1 on")
        before, at = common.setdefault(name, (value, number))
        if value != before:
            what = f"{where}: {name} is '{value}', in line {at} it is '{before}'"
            raise InputError(what, "a table is of one device, measured in one way: keep the rows that belong together")


def _measured(where: str, line: Mapping[str, str], architecture: Architecture, header: Sequence[str]) -> Measured:
    ms = _number(where, line, "ms")
    low, high = (_number(where, line, name, empty=ms) for name in ("low", "high"))
    if not 0 < ms < math.inf:
        raise InputError(f"{where}: ms is {ms:g}", "a latency is above 0")
    if not low <= ms <= high:
        raise InputError(f"{where}: ms is {ms:g}, outside of {low:g} to {high:g}", "low is at most ms, high at least")
    times = {
        int(name.removeprefix("row_")): _number(where, line, name) for name in header if _ROW.fullmatch(name) and line[name]
    }
    optional = {name: _number(where, line, name) if line.get(name) else None for name in ("p90", "spread", "cpu_ms", "runs")}
    return Measured(
        architecture,
        ms,
        low,
        high,
        p90=optional["p90"],
        spread=optional["spread"],
        runs=None if optional["runs"] is None else int(optional["runs"]),
        cpu_ms=optional["cpu_ms"],
        noisy=bool(_number(where, line, "noisy", empty=0.0)),
        rows=times or None,
    )


def _number(where: str, line: Mapping[str, str], name: str, empty: float | None = None) -> float:
    """The finite number, not below 0, in a field; `empty` for an empty or missing one."""
    text = line.get(name, "")
    if not text and empty is not None:
        return empty
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        dotted = text.replace(",", ".")
        hint = f"write {dotted}" if re.fullmatch(r"[0-9]+\.[0-9]+", dotted) and dotted != text else "for example 12.3"
        raise InputError(f"{where}: {name} is '{_short(text)}', not a number from 0 on", hint)
    return number


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:39]}…"
