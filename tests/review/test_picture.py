"""The PNG: drawn for every kind of run, labels apart from each other, users' texts taken as they are."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import pytest

from nas.review.picture import Span, latency_span, log_ticks, write_png
from nas.review.record import Teacher

from .conftest import HOSTILE, record


@pytest.fixture
def figures(monkeypatch):
    """The figures that get drawn, to look into."""
    from matplotlib.figure import Figure

    made = []

    class Kept(Figure):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr("matplotlib.figure.Figure", Kept)
    return made


def _texts(figure) -> str:
    labels = [*figure.texts, *figure.axes[0].texts, *(t for legend in figure.legends for t in legend.get_texts())]
    return "\n".join(t.get_text() for t in labels)


def _apart(figure) -> bool:
    from matplotlib.text import Text

    boxes = [Text.get_window_extent(t) for t in figure.axes[0].texts if "\n" in t.get_text()]
    return not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_a_run_with_its_baseline_over_the_limit(make_run, tmp_path, figures):
    run = make_run()
    write_png(run.records, run.summary, tmp_path / "pareto.png")
    assert (tmp_path / "pareto.png").read_bytes().startswith(b"\x89PNG")
    texts = _texts(figures[0])
    for part in ("knee\n0.280 at 1.20 ms", "fastest", "best", "baseline (yolo11n), over the limit", "limit 2 ms", "front (3)"):
        assert part in texts
    assert _apart(figures[0])


def test_the_teacher_and_what_it_has_seen(make_run, tmp_path, figures):
    run = make_run()
    summary = replace(run.summary, teacher=Teacher("best.pt", 0.42), seen="It may have learned from the held-out part. ")
    write_png(run.records, summary, tmp_path / "pareto.png")
    assert "teacher (best.pt)\n0.420 at 2.40 ms" in _texts(figures[0]) and "nothing is claimed" in _texts(figures[0])
    assert figures[0].axes[0].get_ylim()[1] > 0.42 and _apart(figures[0])
    write_png(run.records, run.summary, tmp_path / "pareto.png")
    assert "teacher" not in _texts(figures[1]) and "claimed" not in _texts(figures[1])


@pytest.mark.parametrize("members", [0, 1, 2, 40])
def test_any_size_of_front(make_run, tmp_path, figures, members):
    summary = make_run().summary
    records = [record(i, 0.1 * 1.07**i, 0.4 - 0.3 * 0.9**i) for i in range(members)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_png(records, summary, tmp_path / "pareto.png")
    assert ("The front is empty" in _texts(figures[0])) == (members == 0)
    assert _apart(figures[0])


def test_names_of_close_points_do_not_cover_each_other(make_run, tmp_path, figures):
    close = [record(0, 1.0, 0.3), record(1, 1.01, 0.315), record(2, 1.02, 0.32)]
    baseline = record(3, 1.005, 0.302, baseline=True, placement={})
    write_png([*close, baseline, record(4, 2.0, 0.05)], make_run().summary, tmp_path / "pareto.png")
    assert _texts(figures[0]).count(" at 1.0") == 4
    assert _apart(figures[0])


def test_hostile_and_foreign_texts_are_only_texts(make_run, tmp_path, figures):
    run = make_run(HOSTILE + " 細胞 \udc80")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a letter the font lacks is no news for the log
        write_png(run.records, run.summary, tmp_path / "pareto.png")
    assert r"\$" in _texts(figures[0])  # an escaped dollar: not the start of a formula


def test_the_latency_axis(make_run):
    run = make_run()
    span = latency_span(run.records, 2.0)
    assert span.low < 1.0
    assert 2.4 < span.high < 3.0  # the rejected trial at 3 ms does not stretch it
    assert not span.log
    wide = latency_span([record(0, 0.5, 0.1), record(1, 50.0, 0.2)], None)
    assert wide.log
    assert log_ticks(wide) == [0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0]
    assert log_ticks(Span(0.9, 4.5, log=True)) == [1.0, 1.5, 2.0, 3.0, 4.0]
    assert latency_span([], None).log
    assert all(math.isfinite(edge) and edge > 0 for edge in latency_span([record(0, 1.0, 0.1)], None)[:2])
