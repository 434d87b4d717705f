"""Records, the front, and the files and the terminal table made of them."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace

import pytest
from rich.console import Console

from nas.outcome import write_tables
from nas.review.page import write_html
from nas.review.record import Teacher, duration, printable
from nas.review.table import COLUMNS, front_of, picks_of, rich_table, write_csv, write_json

from .conftest import HOSTILE, record


def _render(records, summary) -> str:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(rich_table(records, summary))
    return console.export_text()


def test_front_holds_what_is_done_feasible_and_not_dominated(make_run):
    run = make_run()
    front = front_of(run.records)
    assert [r.trial for r in front] == [1, 2, 3]  # not the baseline: it is over the limit
    assert {which: r.trial for which, r in picks_of(front).items()} == {"knee": 2, "fastest": 1, "best": 3}
    feasible = record(9, 1.8, 0.4, baseline=True, placement={})
    assert [r.trial for r in front_of([feasible, *run.records[1:]])] == [1, 2, 9]
    assert front_of([]) == []
    assert picks_of([]) == {}


def test_csv_has_every_trial_and_survives_a_spreadsheet(make_run, tmp_path):
    run = make_run()
    run.records.append(record(9, 1.4, 0.2, id='=cmd|"/c calc"!A1', placement={"neck.P5": "@SUM(1)"}))
    run.records.append(record(10, None, None, state="failed", reason=' -2+3\n"=x",', placement={}))
    path = tmp_path / "trials.csv"
    write_csv(run.records, path)
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["trial"] for row in rows] == [str(r.trial) for r in run.records]
    slots = ["slot.backbone.P4", "slot.neck.P5", "slot.neck.topdown.P3"]
    assert list(rows[0]) == [name for name in COLUMNS if name != "slot.*"] + slots
    assert rows[2]["placement"] == "neck.topdown.P3=irmb d1; backbone.P4=riformer w1 d1"
    assert [rows[2][slot] for slot in slots] == ["riformer w1 d1", "keep", "irmb d1"]
    assert (rows[2]["front"], rows[2]["pick"], rows[0]["front"], rows[0]["feasible"]) == ("true", "knee", "false", "false")
    assert float(rows[2]["map"]) == run.records[2].map
    assert (rows[4]["params"], rows[5]["map"], rows[5]["reason"]) == ("", "", "over-latency")
    assert rows[9]["id"] == '\'=cmd|"/c calc"!A1'
    assert rows[9]["slot.neck.P5"] == "'@SUM(1)"
    assert rows[10]["reason"] == '\' -2+3\n"=x",'


def test_the_teacher_is_a_row_of_its_own(make_run, tmp_path):
    """Where blocks imitate: the baseline is trained on, and what a user has is the model from before that."""
    run = make_run()
    records, summary = run.records, replace(run.summary, teacher=Teacher("best.pt", 0.345, 0.5, 0.3))
    shown = next(line for line in _render(records, summary).splitlines() if "teacher" in line)
    assert "0.345" in shown and "2.40 ms" in shown and "+0.015, 1.00x" in shown
    assert "teacher" not in _render(records, run.summary) and "teacher" not in _render(records[1:], summary)
    write_tables(tmp_path, records, summary)
    with (tmp_path / "front.csv").open(newline="", encoding="utf-8") as file:
        *members, baseline, teacher = csv.DictReader(file)
    assert [row["front"] for row in members] == ["true"] * 3 and baseline["map"] == "0.33"
    told = {name: teacher[name] for name in ("trial", "state", "front", "map", "map50", "val", "latency_ms", "trainings")}
    assert list(told.values()) == ["0", "teacher", "false", "0.345", "0.5", "0.3", "2.4", "0"]
    assert json.loads((tmp_path / "front.json").read_text())["run"]["teacher"]["name"] == "best.pt"
    assert "teacher" not in (tmp_path / "trials.csv").read_text()
    write_html(records, summary, tmp_path / "pareto.html")
    page = (tmp_path / "pareto.html").read_text()
    assert "teacher (best.pt)" in page and '"diamond-open"' in page


def test_nothing_is_told_apart_where_nothing_is_claimed(make_run):
    """Two members are alike by their noise; where the held-out part has been seen nobody says so."""
    run = make_run()
    assert "≈" in _render(run.records, replace(run.summary, noise=0.05))
    assert "≈" not in _render(run.records, replace(run.summary, noise=0.05, seen="It may have seen all. ")).split("Against")[0]


def test_json_explains_itself_and_reads_back(make_run, tmp_path):
    run = make_run("\udc80 é")  # a file name that is not UTF-8, as the operating system hands it out
    path = tmp_path / "front.json"
    write_json(front_of(run.records), path, run.summary)
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["run"]["name"] == run.summary.name
    assert content["run"]["counts"] == {"done": 5, "rejected": 2, "failed": 1, "running": 1}
    assert [r["trial"] for r in content["records"]] == [1, 2, 3]
    assert content["records"][1]["placement"] == dict(run.records[2].placement)
    assert set(content["records"][0]) == set(content["columns"])


def test_terminal_table_marks_picks_and_always_shows_the_baseline(make_run):
    run = make_run()
    text = _render(run.records, run.summary)
    rows = {word: next(row for row in text.splitlines() if word in row) for word in ("knee", "fastest", "best", " 0.330 ")}
    assert "0.280" in rows["knee"]
    assert "1.20 ms" in rows["knee"]
    assert "-0.050, 0.50x" in rows["knee"]
    assert "baseline" in rows[" 0.330 "]
    assert "over the limit" in " ".join(row[:12].strip() for row in text.splitlines())
    assert "0.310" in rows["best"]
    assert "baseline (yolo11n): not evaluated" in _render(run.records[1:], run.summary)
    hostile = make_run(HOSTILE)
    text = _render(hostile.records, hostile.summary)
    assert "[red]" in text  # not taken for markup
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_what_has_been_seen_is_not_compared(make_run, tmp_path):
    """Where the held-out part has been learned from, differences to the baseline are of val; none where that is not known."""
    run = make_run()
    assert "on val" not in _render(run.records, run.summary)
    vals = {0: 0.30, 2: 0.29}
    records = [replace(r, val=vals.get(r.trial)) for r in run.records]
    text = _render(records, replace(run.summary, seen="The teacher has seen it. "))
    rows = {word: next(row for row in text.splitlines() if word in row) for word in ("knee", "best")}
    assert "on val" in text and "-0.010, 0.50x" in rows["knee"] and "The teacher has seen it." in " ".join(text.split())
    assert "+0." not in rows["best"] and "-0." not in rows["best"]
    said = "The teacher has seen it. " + 9 * "Nothing is claimed of mAP on the held-out part. "
    write_html(records, replace(run.summary, seen=said), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "The teacher has seen it." in page and "…" not in page.split("</header>")[0].split("<header>")[1]
    assert "<th>on val</th>" in page and "<td>0.290</td>" in page
    write_csv(records, tmp_path / "trials.csv")
    assert [row["val"] for row in csv.DictReader((tmp_path / "trials.csv").open())][:3] == ["0.3", "", "0.29"]


def test_how_sure_a_latency_is_stands_beside_it(make_run, tmp_path):
    """Of a moment that was never quiet the interval begins at 0; what is predicted is marked as that."""
    run = make_run()
    sure = {"latency_low_ms": 0.0, "latency_high_ms": 3.0, "latency_p90_ms": 2.5, "latency_source": "predicted"}
    shaky = record(80, 2.0, 0.6, **sure)
    write_csv([*run.records, shaky], tmp_path / "trials.csv")
    (line,) = (row for row in csv.DictReader((tmp_path / "trials.csv").open()) if row["trial"] == "80")
    assert [line[name] for name in sure] == ["0.0", "3.0", "2.5", "predicted"]
    assert "~2.00 ms" in _render([*run.records, shaky], run.summary)
    assert "~1" not in _render(run.records, run.summary)


def test_records_refuse_what_no_figure_can_show():
    for wrong in ({"map": math.nan}, {"map": 37.3}, {"latency_ms": 0.0}, {"latency_ms": math.inf}, {"state": "best"}):
        with pytest.raises(ValueError, match="trial 1"):
            record(1, 1.0, 0.5, **{"state": "done", **wrong})


def test_texts_for_people():
    assert printable("a\n b\x07", None) == "a b�"
    assert printable("/a/very/long/path/name.yaml", 11) == "/a/ve….yaml"
    assert [duration(s) for s in (42, 450, 11_520)] == ["42 s", "7.5 min", "3.2 h"]
