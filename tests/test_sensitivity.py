"""The sensitivity map: what a library and a run's measurements say of every option, and how people are told."""

from __future__ import annotations

import csv
import html
import io
import json
import re

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import save_file

from nas.imitation.alternatives import alternative_of, alternatives_of
from nas.imitation.library import Entry, Library, facts_of
from nas.review.heat import advice, heat_map, heat_table
from nas.runs.store import Entry as Trial
from nas.sensitivity import sensitivity_of, write_sensitivity
from nas.space.reader import read_space

SPACE = """
skeleton: yolo11n.yaml
slots:
  backbone.P4: {block: [keep, repvit, riformer], width: [0.5, 1.0]}
  backbone.P5: {block: [keep, repvit, riformer]}
  neck.topdown.P3: {block: [keep, repvit]}
"""
LOSS = 2.0  # of the teacher
# by slot and option: loss that is added, with its interval, or why it was dropped; and the milliseconds that it takes more
KNOWN = {
    ("backbone.P4", "repvit w0.5"): ((0.02, -0.01, 0.05), -0.8),
    ("backbone.P4", "repvit"): ((0.01, -0.02, 0.03), -0.2),
    ("backbone.P4", "riformer w0.5"): ((0.0, -0.04, 0.04), -0.5),
    ("backbone.P4", "riformer"): ((-0.01, -0.03, 0.02), 0.3),
    ("backbone.P5", "repvit"): ((0.06, 0.02, 0.1), -0.6),
    ("backbone.P5", "riformer"): ("diverged in epoch 1", 0.4),
    ("neck.topdown.P3", "repvit"): ((0.0, -0.1, 0.1), 0.7),
}


@pytest.fixture
def space(tmp_path):
    (tmp_path / "space.yaml").write_text(SPACE)
    return read_space(tmp_path / "space.yaml")


@pytest.fixture
def library(space, tmp_path):
    """Of `keep w0.5` it knows nothing."""
    library = Library(tmp_path / "library")
    library.folder.mkdir()
    for slot, options in alternatives_of(space).items():
        for placement in filter(None, options):
            if (slot, placement.text(space.skeleton.slot(slot))) in KNOWN:
                told, _ = KNOWN[slot, placement.text(space.skeleton.slot(slot))]
                alternative = alternative_of(space, placement)
                known = {"dropped": told} if isinstance(told, str) else dict(zip(("rise", "low", "high"), told, strict=True))
                entry = Entry(alternative.layer, list(alternative.row), loss=LOSS, **known)
                save_file({"x": np.zeros(1)}, library.path(alternative), metadata={"facts": json.dumps(facts_of(entry))})
    return library


@pytest.fixture
def trials(space):
    """Two of five architectures were measured, of the others the latency was foretold wrongly."""

    def ms(architecture) -> float:
        slots = {p.slot: p.text(space.skeleton.slot(p.slot)) for p in architecture.placements}
        return 5 + sum(KNOWN.get(pair, (0, -0.4))[1] for pair in slots.items())

    prices = [
        (a, {"ms": ms(a), "source": "measured"} if n % 5 < 2 else {"ms": 9.0, "source": "predicted"})
        for n, a in enumerate(space.enumerate())
    ]
    return [Trial(n, a, "paused", None, price, ({"map": 0.3},)) for n, (a, price) in enumerate(prices)]


def test_every_option_that_has_learned_is_judged_by_its_loss_and_its_latency(space, library, trials, tmp_path):
    rows = sensitivity_of(space, library, trials)
    assert {(r.slot, r.option) for r in rows} == set(KNOWN) and list(dict.fromkeys(r.slot for r in rows)) == list(
        alternatives_of(space)
    )
    for row in rows:
        told, ms = KNOWN[row.slot, row.option]
        assert row.block == row.option.split()[0]
        assert row.ms == pytest.approx(ms, abs=0.1) and row.ms_low < row.ms < row.ms_high
        if isinstance(told, str):
            assert (row.rise, row.rise_low, row.rise_high, row.verdict) == (None, None, None, f"dropped: {told}")
        else:
            assert (row.rise, row.rise_low, row.rise_high) == pytest.approx([value / LOSS for value in told])
            assert row.verdict == ("costs" if row.slot == "backbone.P5" else "free")
    p4 = [row.rise for row in rows if row.slot == "backbone.P4"]
    assert p4 == sorted(p4) and rows[-2].rise is None  # the least rise first, what was dropped last
    write_sensitivity(rows, tmp_path / "sensitivity.csv")
    with (tmp_path / "sensitivity.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [(r["slot"], r["option"], r["verdict"]) for r in written] == [(r.slot, r.option, r.verdict) for r in rows]
    assert [r["rise"] for r in written] == ["" if r.rise is None else str(r.rise) for r in rows]


def test_without_measurements_the_latency_is_left_open(space, library, trials):
    few = [t for t in trials if t.price["source"] == "measured"][:2] + [t for t in trials if t.price["source"] == "predicted"]
    rows = sensitivity_of(space, library, few)
    assert len(rows) == len(KNOWN) and {(r.ms, r.ms_low, r.ms_high) for r in rows} == {(None, None, None)}
    assert advice(rows).splitlines()[0] == "backbone.P4: 4 options cost nothing that shows, none of them is faster"


def test_people_are_told_where_any_block_will_do_and_where_to_keep(space, library, trials):
    rows = sensitivity_of(space, library, trials)
    ms = {(r.slot, r.option): f"{r.ms:+.3g} ms" for r in rows}
    told = [
        f"backbone.P4: 4 options cost nothing that shows; the fastest is repvit w0.5 ({ms['backbone.P4', 'repvit w0.5']})",
        "backbone.P5: keep it; whatever was tried costs",
        "neck.topdown.P3: 1 option costs nothing that shows, none of them is faster",
    ]
    assert advice(rows).splitlines() == told

    console = Console(width=160, record=True, file=io.StringIO())
    console.print(heat_table(rows))
    shown = console.export_text()
    for line in told:
        assert line in shown
    cells = {tuple(part.strip() for part in line.split("│")[1:3]): line for line in shown.splitlines() if "│" in line}
    for row in rows:
        line = cells[row.slot, row.option]
        assert ms[row.slot, row.option] in line and row.verdict in line
        assert ("–" if row.rise is None else f"{row.rise:+.1%}") in line
    bold = [str(row.style) for row in heat_table(rows).rows]
    assert [style == "bold" for style in bold] == [r.verdict == "free" and r.ms < 0 for r in rows]
    assert bold[-2] == "dim"

    page = heat_map(rows, html.escape)
    table = [re.findall("<t[hd].*?</t[hd]>", line) for line in re.findall("<tr>.*?</tr>", page)]
    assert [re.sub("<.*?>", "", cell) for cell in table[0]] == ["", "riformer", "repvit"]
    assert [len(line) for line in table] == [3, 3, 3, 3]
    p4, p5, p3 = table[1:]
    assert "rgba(46, 160, 67" in p4[1] and "-0.5%" in p4[1] and "<small>-1.5% to +1.0%<br>" in p4[1]  # of two, who costs least
    assert ">-1.0% to +1.5%<" in p4[2] and ms["backbone.P4", "repvit"] in p4[2]
    assert "+3.0%" in p5[2] and "rgba(201, 60, 55, 0.45)" in p5[2] and p3[1] == "<td></td>"
    assert "dropped: diverged in epoch 1" in p5[1]
    assert all(f"<li>{html.escape(line)}</li>" in page for line in told) and heat_map([], html.escape) == ""
