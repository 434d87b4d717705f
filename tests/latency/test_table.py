"""Tables of other devices: what measure.py writes, what people write by hand, and every way to get it wrong."""

from __future__ import annotations

import csv
import io
import json
import random
import re
from pathlib import Path

import pytest

from nas.errors import InputError
from nas.latency.table import COLUMNS, MIN_ROWS, TablePrices, read_table
from nas.space.reader import find_space, read_space

SPACE = read_space(find_space("yolo11n-blocks"))
OTHER = read_space(find_space("yolo11s-blocks"))
FULL = [name for name in COLUMNS if name != "row_N"]


def drawn(count, space=SPACE):
    rng = random.Random(0)
    return list(dict.fromkeys([space.baseline, *(space.sample(rng, 640) for _ in range(count))]))[:count]


def latency(architecture) -> float:
    """ms: a sum over what the slots hold, of which some blocks are slower than others."""
    placed = {p.slot: (p.channels, p.depth, 1 + len(p.block) / 10) for p in architecture.placements}
    own = {slot.name: (slot.row.c2, slot.depth, 1.5) for slot in SPACE.skeleton.slots}
    return 2 + sum(channels * depth * slowness for channels, depth, slowness in {**own, **placed}.values()) / 500


def row(architecture, **more):
    ms = latency(architecture)
    known = {
        "id": architecture.id,
        "skeleton": architecture.skeleton,
        "imgsz": "640",
        "batch": 1,
        "nc": 80,
        "architecture": json.dumps(architecture.to_dict()),
        "ms": ms,
        "low": 0.99 * ms,
        "high": 1.01 * ms,
        "p90": 1.1 * ms,
        "spread": 0.01,
        "runs": 120,
        "throttled": 0,
        "noisy": 0,
        "device": "Board (host)",
        "runtime": "onnxruntime 1.20.0 CPUExecutionProvider",
        "threads": 1,
    }
    return known | more


def written(folder: Path, rows, columns=FULL) -> Path:
    path = folder / "jetson.csv"
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, restval="", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(buffer.getvalue())
    return path


def test_a_full_table(tmp_path):
    rows = [row(a) for a in drawn(10)]
    rows[1] |= {"throttled": 1}
    rows[2] |= {"noisy": 1}
    rows[3] |= {"device": "Board (another host)", "row_3": 1.5, "row_22": 0.25}
    table = read_table(written(tmp_path, rows, [*FULL, "row_3", "row_22"]), SPACE.skeleton)
    assert (table.imgsz, table.batch, table.nc, table.device) == ((640, 640), 1, 80, "Board")
    assert [m.architecture for m in table.measured] == [a for i, a in enumerate(drawn(10)) if i != 1]
    assert table.measured[0].ms == rows[0]["ms"]
    assert [m.rows for m in table.measured[:3]] == [None, None, {3: 1.5, 22: 0.25}]
    said = " ".join(table.notes)
    assert "1 rows measured while the device was slowed down" in said
    assert "1 of 9 rows were measured in noise" in said


def test_a_table_made_by_hand(tmp_path):
    rows = [row(a) for a in drawn(9)]
    table = read_table(written(tmp_path, rows, ["architecture", "ms"]), SPACE.skeleton)
    assert (table.imgsz, table.batch, table.nc) == (None, 1, None)
    assert all(m.low == m.ms == m.high for m in table.measured)
    path = written(tmp_path, rows, ["id", "ms"])
    with pytest.raises(InputError, match=r"jetson.csv:2: id 'a\w+' is not known"):
        read_table(path, SPACE.skeleton)
    known = {a.id: a for a in drawn(9)}
    assert read_table(path, SPACE.skeleton, known).measured == table.measured
    listed = [{"architecture": json.dumps(a.to_dict())} for a in drawn(9)]
    (tmp_path / "probes.json").write_text(json.dumps({"probes": listed}))
    assert read_table(path, SPACE.skeleton).measured == table.measured


def broken(change, columns=FULL, count=10):
    def write(folder: Path) -> Path:
        rows = [row(a) for a in drawn(count)]
        return written(folder, change(rows) or rows, columns)

    return write


def text(content):
    def write(folder: Path) -> Path:
        (folder / "jetson.csv").write_bytes(content)
        return folder / "jetson.csv"

    return write


def set_in(index, **values):
    return lambda rows: rows[index].update(values)


def moved(rows):
    data = json.loads(rows[4]["architecture"])
    data["placements"][0]["slot"] = "backbone.P9"
    rows[4] |= {"architecture": json.dumps(data), "id": ""}


FAULTS = {
    "no such file": (lambda folder: folder / "jetson.csv", "jetson.csv: No such file"),
    "not a text": (text(b"\xff\xfe\x00"), "not a text in UTF-8"),
    "empty": (text(b""), "jetson.csv:1: no column 'ms'"),
    "semicolons": (text(b"id;ms\na;1,5\n"), "jetson.csv:1: the columns are separated by ';'"),
    "no ms": (
        broken(lambda rows: [r | {"latency_ms": 1} for r in rows], ["id", "latency_ms"]),
        "no column 'ms'\n  rename 'latency_ms'",
    ),
    "no architecture": (broken(lambda rows: None, ["ms"]), "no column 'architecture'"),
    "two columns": (text(b"id,ms,ms\n"), "two columns 'ms'"),
    "too many fields": (text(b"id,ms\na,1,5\n"), "jetson.csv:2: 3 fields under 2 columns"),
    "not a number": (broken(set_in(3, ms="fast")), "jetson.csv:5: ms is 'fast', not a number"),
    "a comma": (broken(set_in(3, ms="12,5")), "jetson.csv:5: ms is '12,5', not a number from 0 on\n  write 12.5"),
    "infinite": (broken(set_in(3, ms="inf")), "jetson.csv:5: ms is 'inf'"),
    "zero": (broken(set_in(3, ms=0, low=0)), "jetson.csv:5: ms is 0\n"),
    "empty ms": (broken(set_in(3, ms="")), "jetson.csv:5: ms is ''"),
    "interval": (broken(set_in(3, low=1e9)), "jetson.csv:5: ms is .*, outside of"),
    "row time": (broken(set_in(3, row_2="x"), [*FULL, "row_2"]), "jetson.csv:5: row_2 is 'x'"),
    "no such row": (broken(lambda rows: None, [*FULL, "row_24"]), "jetson.csv:1: yolo11n has no row for 'row_24'"),
    "id of another": (broken(set_in(3, id="a000000000")), "jetson.csv:5: id 'a000000000' is not that of its architecture"),
    "no json": (broken(set_in(3, architecture="{")), r"jetson.csv:5: architecture '\{' cannot be read"),
    "no plain data": (broken(set_in(3, architecture="[1]")), "jetson.csv:5: architecture"),
    "no placements": (broken(set_in(3, architecture='{"skeleton": "yolo11n"}')), "jetson.csv:5: architecture"),
    "nothing named": (broken(set_in(3, architecture="", id="")), "jetson.csv:5: names no architecture"),
    "another slot": (broken(moved), "jetson.csv:6: yolo11n has no slot 'backbone.P9'"),
    "unknown block": (
        broken(lambda rows: [r | {"architecture": r["architecture"].replace("repvit", "repvot"), "id": ""} for r in rows]),
        "unknown block 'repvot'\n  did you mean 'repvit'",
    ),
    "another skeleton": (
        broken(lambda rows: [row(a) for a in drawn(10, OTHER)]),
        "jetson.csv:2: skeleton 'yolo11s', but the search space has yolo11n",
    ),
    "twice": (broken(lambda rows: [*rows, rows[2]]), "jetson.csv:12: a.* stands in line 4 too"),
    "two devices": (broken(set_in(5, device="Other (host)")), "jetson.csv:7: device is 'Other', in line 2 it is 'Board'"),
    "two sizes": (broken(set_in(5, imgsz="320")), "jetson.csv:7: imgsz is '320', in line 2 it is '640'"),
    "no size": (broken(set_in(5, imgsz="big")), "jetson.csv:7: imgsz is 'big'"),
    "no batch": (broken(set_in(5, batch="0")), "jetson.csv:7: batch is '0'"),
    "too few": (broken(lambda rows: None, count=MIN_ROWS - 1), "jetson.csv: 7 usable rows; a latency model needs 8"),
    "too few left": (broken(set_in(5, throttled=1), count=MIN_ROWS), "7 usable rows, 1 throttled; a latency model needs 8"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_with_a_table_is_said(fault, tmp_path):
    write, message = FAULTS[fault]
    with pytest.raises(InputError) as caught:
        read_table(write(tmp_path), SPACE.skeleton)
    assert caught.value.hint
    assert re.search(message, str(caught.value)), caught.value


def test_prices_are_measured_or_predicted_with_an_interval(tmp_path):
    seen = drawn(40)
    prices = TablePrices(read_table(written(tmp_path, [row(a) for a in seen]), SPACE.skeleton), SPACE)
    price = prices.price(seen[3])
    ms = latency(seen[3])
    assert (price["ms"], price["low"], price["high"], price["source"]) == (ms, 0.99 * ms, 1.01 * ms, "table")
    new = [a for a in drawn(300) if a not in seen]
    predicted = prices.prices(new)
    assert {p["source"] for p in predicted} == {"predicted"}
    assert all(0 < p["low"] <= p["ms"] <= p["high"] for p in predicted)
    inside = [p["low"] <= latency(a) <= p["high"] for a, p in zip(new, predicted, strict=True)]
    assert sum(inside) > 0.7 * len(new)
    assert "40 architectures measured" in str(prices)
    assert json.loads(json.dumps(predicted)) == predicted
