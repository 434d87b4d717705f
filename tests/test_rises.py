"""The additive estimate as a feature: it orders architectures by the sum of what their blocks cost in the teacher's place."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from nas.imitation.alternatives import alternative_of, alternatives_of
from nas.imitation.library import Entry, Library, facts_of
from nas.rises import Rises
from nas.space.features import SpaceCodes
from nas.space.reader import read_space

SPACE = """
skeleton: yolo11n.yaml
slots:
  backbone.P4: {block: [keep, repvit, irmb], width: [0.5, 1.0]}
  backbone.P5: {block: [keep, repvit], width: [0.5, 1.0]}
"""


@pytest.fixture
def space(tmp_path):
    (tmp_path / "space.yaml").write_text(SPACE)
    return read_space(tmp_path / "space.yaml")


def learned(library: Library, space, placement, rise: float, dropped: str = "") -> None:
    alternative = alternative_of(space, placement)
    library.folder.mkdir(exist_ok=True)
    entry = Entry(alternative.layer, list(alternative.row), rise=rise, dropped=dropped)
    save_file({"x": np.zeros(1)}, library.path(alternative), metadata={"facts": json.dumps(facts_of(entry))})


def test_the_column_orders_architectures_by_the_sum_of_rises(space, tmp_path):
    library, codes = Library(tmp_path / "library"), SpaceCodes(space)
    rows = codes.all()
    column = Rises(space, lambda: library)
    assert column.column(codes, rows).tolist() == [0.0] * len(rows)  # nothing is known yet
    rise = {}
    for number, options in enumerate(alternatives_of(space).values()):
        for place, option in enumerate(options):
            if option is not None:
                rise[option] = 0.1 * place + 0.03 * number
                learned(library, space, option, rise[option])
    found = column.column(codes, rows)
    sums = np.array([sum(rise[p] for p in codes.architecture(row).placements) for row in rows])
    assert found.min() == -0.5 and found.max() == pytest.approx(0.5)
    assert np.array_equal(np.argsort(found, kind="stable"), np.argsort(sums, kind="stable"))
    assert found == pytest.approx(np.sqrt(sums / sums.max()) - 0.5)


def test_what_has_not_learned_or_was_dropped_counts_as_the_mean_of_its_slot(space, tmp_path):
    library, codes = Library(tmp_path / "library"), SpaceCodes(space)
    slot = next(iter(alternatives_of(space).values()))
    known, dropped, *_ = [option for option in slot if option is not None]
    learned(library, space, known, 0.4)
    learned(library, space, dropped, 9.0, "it diverged")
    rows = np.array([codes.code(type(space.baseline)(space.skeleton.name, (p,))) for p in (known, dropped)])
    best, other = Rises(space, lambda: library).column(codes, rows)
    assert (best + 0.5) ** 2 == pytest.approx(2 * (other + 0.5) ** 2)  # the mean of 0 (the skeleton's own) and 0.4
