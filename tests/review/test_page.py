"""The HTML page: complete, inert to hostile texts, silent on the network, and really drawn by a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from nas.review.page import MOST_POINTS, write_html

from .conftest import HOSTILE, record

_BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class _Elements(HTMLParser):
    """Every element with its attributes, and the text of every element by kind."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        tag = self.elements[-1][0] if self.elements else ""
        self.texts.setdefault(tag, []).append(data)


def _page(run, tmp_path: Path) -> str:
    write_html(run.records, run.summary, tmp_path / "pareto.html")
    return (tmp_path / "pareto.html").read_text(encoding="utf-8")


def _json(page: str) -> str:
    return re.search(r'<script type="application/json" id="figure">(.*?)</script>', page)[1]


def _figure(page: str) -> dict:
    return json.loads(_json(page))


def _browse(page: Path, tmp_path: Path) -> str:
    """The page's document after its scripts have run."""
    quiet = "--disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"
    flags = f"--headless --no-sandbox --disable-gpu {quiet} --virtual-time-budget=5000".split()
    command = [_BROWSER, *flags, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60, check=True)
    assert "Content Security Policy" not in done.stderr
    return done.stdout


def test_the_page_holds_everything_and_asks_for_nothing(make_run, tmp_path):
    run = make_run()
    page = _page(run, tmp_path)
    parsed = _Elements(page)
    assert not [a for _, attrs in parsed.elements for a in attrs if a in {"src", "href", "action"} or a.startswith("on")]
    assert "default-src 'none'" in next(a["content"] for _, a in parsed.elements if a.get("http-equiv"))
    figure = _figure(page)
    hover = {text.split(" ")[1]: text for trace in figure["data"] for text in trace.get("hovertext", [])}
    assert set(hover) == {"0", "1", "2", "3", "4", "5", "7"}  # all that have a latency and are not still running
    for part in ("a0000002", "mAP50-95 0.2800", "latency 1.2 ms", "2.59 M params", "neck.topdown.P3: irmb d1"):
        assert part in hover["2"]
    words = " ".join(parsed.texts["td"] + parsed.texts["dd"] + parsed.texts["p"] + parsed.texts["span"])
    for part in ("baseline (yolo11n), over the limit", "knee", "nas search --data cells.yaml", "20.6 min", "5 done"):
        assert part in words
    assert run.summary.meaning in words
    assert len(page) < 6_000_000


def test_an_empty_run_and_a_huge_one(make_run, tmp_path):
    run = make_run()
    run.records = []
    page = _page(run, tmp_path)
    assert "The front is empty" in page
    assert "not evaluated" in page
    run.records = [record(i, 1.9, 0.1 + 0.3 * i / 10_000) for i in range(10_000)]
    page = _page(run, tmp_path)
    assert max(len(trace["x"]) for trace in _figure(page)["data"]) <= MOST_POINTS
    assert "of 9,999 are drawn" in page


def test_hostile_texts_make_no_elements(make_run, tmp_path):
    assert not re.search("[<>&]", _json(_page(make_run(HOSTILE), tmp_path)))
    kinds = [_Elements(_page(make_run(text), tmp_path)).elements for text in ("", HOSTILE)]
    assert [(tag, list(attrs)) for tag, attrs in kinds[0]] == [(tag, list(attrs)) for tag, attrs in kinds[1]]


@pytest.mark.skipif(_BROWSER is None, reason="neither chromium nor google-chrome is installed")
def test_a_browser_draws_it_and_no_hostile_text_runs(make_run, tmp_path):
    run = make_run(HOSTILE)
    page = _page(run, tmp_path)
    seen = _browse(tmp_path / "pareto.html", tmp_path)
    figure = _figure(page)
    drawn = sum(len(trace["x"]) for trace in figure["data"] if trace["mode"] != "lines")
    assert len(re.findall(r'<path class="point"', seen)) >= drawn == 7
    assert "data-pwned=" not in seen
    # Without the policy the escapes must hold alone: hover over every point and see that the texts stay texts.
    front = next(i for i, trace in enumerate(figure["data"]) if "text" in trace)
    probe = f"""<script>addEventListener("load", () => setTimeout(() => {{
      Plotly.Fx.hover("plot", [{{curveNumber: {front}, pointNumber: 1}}]);
      document.documentElement.dataset.ran = 1;
      document.documentElement.dataset.images = document.images.length;
    }}, 1000))</script></body>"""
    bare = re.sub(r"<meta http-equiv[^>]*>", "", page).replace("</body>", probe)
    (tmp_path / "bare.html").write_text(bare, encoding="utf-8")
    seen = _browse(tmp_path / "bare.html", tmp_path)
    assert 'data-ran="1"' in seen
    assert 'data-images="0"' in seen
    assert "data-pwned=" not in seen
    hovered = seen[seen.index('<g class="hoverlayer">') :]
    hovered = hovered.split("</svg>")[0]
    assert "neck.topdown.P3: irmb d1&lt;/script&gt;" in hovered
    assert "&lt;a href='//a.b'&gt;" in hovered
    assert "<a " not in hovered
