"""The additive estimate as a feature: it orders architectures by the sum of what their blocks cost in the teacher's place."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

from nas.imitation.alternatives import alternative_of, alternatives_of
from nas.imitation.library import Entry, Library, facts_of
from nas.pricing import Intervals
from nas.proposals import SpaceKnowledge
from nas.pruning import Pruning
from nas.rises import Rises
from nas.runs.store import Entry as Entry_
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


def test_an_architecture_costs_what_its_blocks_have_yet_to_learn(space, tmp_path):
    """Trials took 12 s each so far, an alternative 23 s: about two trials for each that has not learned."""
    library, codes = Library(tmp_path / "library"), SpaceCodes(space)
    slot = next(iter(alternatives_of(space).values()))
    known, unknown, *_ = [option for option in slot if option is not None]
    learned(library, space, known, 0.4)
    rows = np.array([codes.code(type(space.baseline)(space.skeleton.name, (p,))) for p in (known, unknown)])
    facts = {"alternative_seconds": 23.0}
    store = SimpleNamespace(fact=facts.get, tally=SimpleNamespace(ranked=3, charged=36.0))
    knowledge = SpaceKnowledge(SimpleNamespace(imgsz=64), space, None, store, Rises(space, lambda: library))
    candidates = knowledge.candidates(lambda trial: None)
    assert candidates.cost(rows).tolist() == [1.0, 3.0]
    learned(library, space, unknown, 0.2)
    assert candidates.cost(rows).tolist() == [1.0, 1.0]
    facts.clear()
    rest = codes.all()
    assert set(candidates.cost(rest)) > {1.0, 2.0}  # as much as a trial each, as long as nobody knows


def test_proposals_that_are_surely_worse_are_pruned(space, tmp_path):
    """mAP follows the sum of rises to within .001: of all architectures, those a faster trial surely beats, and no other."""
    library = Library(tmp_path / "library")
    for number, options in enumerate(alternatives_of(space).values()):
        for place, option in enumerate(options):
            if option is not None:
                learned(library, space, option, 0.1 * place + 0.03 * number)
    rises, rng = Rises(space, lambda: library), np.random.default_rng(0)
    every = [a for a in space.enumerate() if not a.is_skeleton]
    ms = {a: 1.0 + sum(p.channels for p in a.placements) / 500 for a in every}
    truth = {a: 0.4 - 0.3 * rises.total(a) + 0.001 * rng.uniform(-1, 1) for a in every}
    seen = [every[i] for i in rng.permutation(len(every))[:20]]
    entries = [Entry_(n, a, "paused", None, {"ms": ms[a]}, ({"map": truth[a]},)) for n, a in enumerate(seen)]
    store = SimpleNamespace(entries=entries, tally=SimpleNamespace(ranked=20))

    class Guesses:
        def guess(self, architectures):
            known = np.array([ms[a] for a in architectures])
            return Intervals(known, known, known)

    prune = Pruning(store, rises, Guesses(), None)
    said = {a: prune(a) for a in every}
    worse = {a for a in every if any(truth[b] > truth[a] and ms[b] <= ms[a] for b in seen)}
    pruned = {a for a, words in said.items() if words}
    assert pruned <= worse and len(pruned) > 0.5 * len(worse)
    number = int(next(words for words in said.values() if words).split("trial ")[1].split(",")[0])
    assert seen[number] not in pruned and prune(space.baseline) is None
    assert Pruning(store, rises, Guesses(), 0.5)(next(iter(pruned))) is None  # who is over the limit is no rival
    few = SimpleNamespace(entries=entries[:10], tally=SimpleNamespace(ranked=10))
    assert not any(map(Pruning(few, rises, Guesses(), None), every))
