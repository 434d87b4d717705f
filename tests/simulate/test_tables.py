"""Tables of finished architectures: how they are read, and how a row is found by its features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.errors import InputError
from nas.search.ladder import kendall
from nas.simulate.faults import read_faults
from nas.simulate.share import Share
from nas.simulate.table import read_table
from nas.simulate.trainings import curves, foretell

HEAD = "name,block,width,acc_at_3,acc,lat_a,seconds\n"


@pytest.fixture
def write(tmp_path: Path):
    def written(text: str, name: str = "t.csv") -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return written


def test_columns_are_told_by_their_names(write):
    table = read_table(write(HEAD + "a,keep,0.5,10,40,1.5,60\nb,irmb,1,20,50,2,90\nc,irmb,0.5,15,45,1,80\n"), "acc", "lat_a")
    assert list(table.names) == ["a", "b", "c"] and list(table.columns) == ["block", "width"]
    assert table.ceiling == 100 and table.accuracy.tolist() == [40, 50, 45] and table.seconds.tolist() == [60, 90, 80]
    assert {at: v.tolist() for at, v in table.lower.items()} == {3: [10, 20, 15]}
    assert table.params(1) == {"block": "irmb", "width": 1.0}
    assert [table.nearest(table.params(row)) for row in range(3)] == [0, 1, 2]
    assert table.nearest({"block": "keep", "width": 1.0}) == 0  # the width is all that differs
    lengths, found = curves(table, 2, 0.7, 0)
    assert lengths == [1 / 3, 1.0] and found[0].tolist() == [0.1, 0.2, 0.15]


def test_rows_with_the_same_features_and_cells_that_are_empty_are_told_apart(write):
    table = read_table(write("name,a,b,acc,lat\nx,1,,.1,1\ny,1,,.2,2\nz,,p,.3,3\nw,1,p,.3,3\n"), "acc", "lat")
    assert table.ceiling == 1 and "copy" in table.levels
    assert [table.nearest(table.params(row)) for row in range(4)] == [0, 1, 2, 3]


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_nearest_is_nearest(tmp_path_factory, data):
    rows = data.draw(st.lists(st.tuples(st.sampled_from("pqr"), st.integers(0, 4)), min_size=2, max_size=12))
    path = tmp_path_factory.mktemp("t") / "t.csv"
    lines = [f"m{number},{text},{value},{number},{number + 1}" for number, (text, value) in enumerate(rows)]
    path.write_text("\n".join(["name,text,value,acc,lat", *lines]) + "\n")
    table = read_table(path, "acc", "lat")
    assert [table.nearest(table.params(row)) for row in range(len(rows))] == list(range(len(rows)))
    asked = {name: data.draw(st.sampled_from(own)) for name, own in table.levels.items()}

    def away(row: int) -> float:
        own, scale = table.params(row), {name: max(1, len(levels) - 1) for name, levels in table.levels.items()}
        return sum(
            float(asked[name] != own[name])
            if name == "text"
            else abs(table.levels[name].index(asked[name]) - table.levels[name].index(own[name])) / scale[name]
            for name in asked
        )

    assert away(table.nearest(asked)) == pytest.approx(min(map(away, range(len(rows)))))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name,a,acc,lat\nx,1,.5,1\n", "fewer than two rows"),
        ("name,a,acc,lat\nx,1,.5,1\ny,2,.5\n", "t.csv:3: has fewer cells"),
        ("name,a,acc,lat\nx,1,.5,1\ny,2,.5,1,9\n", "t.csv:3: has more cells"),
        ("name,a,acc,lat\nx,1,.5,1\ny,2,much,1\n", "t.csv:3: 'much' in column 'acc' is no number"),
        ("name,a,acc,lat\nx,1,.5,1\ny,2,nan,1\n", "t.csv:3: 'nan' in column 'acc'"),
        ("name,a,acc,lat\nx,1,.5,1\ny,2,.5,0\n", "latency in column 'lat' is not above 0"),
        ("name,a,acc,lat\nx,1,.5,1\ny,2,400,1\n", "outside 0 to 100"),
        ("name,a,lat\nx,1,1\ny,2,1\n", "no column 'acc'"),
        ("name,acc,lat\nx,1,1\ny,2,1\n", "has no features"),
        ("name,a,acc,lat,seconds\nx,1,.5,1,0\ny,2,.5,1,3\n", "takes no time"),
    ],
)
def test_a_broken_table_is_refused_where_it_is_broken(write, text, says):
    with pytest.raises(InputError) as refused:
        read_table(write(text), "acc", "lat")
    assert says in refused.value.message and refused.value.hint


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path):
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00" * 50)
    for name in ("gone.csv", "b.csv"):
        with pytest.raises(InputError, match="cannot be read"):
            read_table(tmp_path / name, "acc", "lat")


@pytest.mark.parametrize("tau", [0.1, 0.4, 0.7, 0.9, 1.0])
def test_drawn_rungs_rank_as_asked(tau):
    accuracies = np.random.default_rng(1).beta(5, 3, 1500)
    drawn = foretell(accuracies, tau, 0)
    assert kendall(drawn, accuracies) == pytest.approx(tau, abs=0.03)
    assert drawn.min() >= 0 and drawn.max() <= accuracies.max()
    assert np.array_equal(drawn, foretell(accuracies, tau, 0))
    assert (tau == 1) == np.array_equal(drawn, foretell(accuracies, tau, 1))


def test_the_share_of_a_front_is_that_of_its_area(write):
    table = read_table(write("name,a,acc,lat\nx,1,0,1\ny,2,1,10\nz,3,.5,10\nw,4,.2,100\n"), "acc", "lat")
    share = Share(table)
    assert share.of([0, 1, 2, 3]) == share.of([1]) == 1.0 and share.of([2]) == pytest.approx(0.5) and share.of([0]) == 0.0
    assert share.reached([0, 2, 1, 3], [0.4, 1.0]) == (1.0, (2, 3))
    assert share.reached([0], [0.5]) == (0.0, (None,))
    assert Share(table, limit_ms=5).of([1]) == 1.0  # under the limit there is nothing to find


FAULTS = [
    ("fail: 2\n", ":1: fail is 2"),
    ("lose: yes\n", ":1: lose is True"),
    ("fail: .6\nlose: .6\n", ":2: fail, lose and hang"),
    ("fail: 0\nfal: 0\n", ":2: unknown key 'fal'"),
    ("leave: 3\n", ":1: leave is no list"),
    ("leave:\n  - {at: 2h}\n", ":2: an item of leave"),
    ("leave:\n  - {at: 2, workers: 1}\n", ":2: at '2' has no unit"),
    ("leave:\n  - {at: 2h, workers: 0}\n", ":2: workers is 0"),
    ("leave:\n  - {at: 2h, workers: 1, back: 1h}\n", ":2: they come back before"),
]


@pytest.mark.parametrize(("text", "says"), FAULTS)
def test_a_broken_faults_file_is_refused_with_the_line(write, text, says):
    with pytest.raises(InputError) as refused:
        read_faults(write(text, "f.yaml"))
    assert f"f.yaml{says}" in str(refused.value)


def test_faults_are_read(write):
    found = read_faults(write("fail: 0.02\nleave:\n  - {at: 2h, workers: 16, back: 3h}\n  - {at: 5h, workers: 1}\n", "f.yaml"))
    assert (found.fail, found.lose) == (0.02, 0.0)
    assert [(leave.at, leave.workers, leave.back) for leave in found.leave] == [(7200, 16, 10800), (18000, 1, None)]
