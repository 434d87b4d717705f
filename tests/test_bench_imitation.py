"""The arithmetic behind `scripts/bench_imitation.py`, on results that are made up."""

from __future__ import annotations

import importlib
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from nas.imitation.library import Library
from nas.space.architecture import model_yaml
from nas.space.reader import find_space, read_space

SPACE = read_space(find_space("yolo11n-blocks"))
OPTIONS = SimpleNamespace(final=10, short=5, scratch=30, long=80)


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "scripts"))
    return importlib.import_module("bench_imitation")


class Plan:
    """`bench_imitation.Plan` whose jobs are their own names."""

    def __init__(self, architectures) -> None:
        self.space, self.options, self.architectures = SPACE, OPTIONS, architectures
        self.skeleton = model_yaml(SPACE.skeleton, SPACE.baseline, 3)
        self.yaml = {a.id: model_yaml(SPACE.skeleton, a, 3) for a in self.architectures}
        self.known = {a.id: {"replaced": len(a.placements), "macs": 1.0, "params": n} for n, a in enumerate(self.architectures)}

    def library(self) -> Path:
        return Path("none")

    def __getattr__(self, kind: str):
        return lambda architecture, *how: (kind, architecture.id, *how)


def test_groups_replace_equally_many_slots(bench):
    found = bench.drawn(SPACE, 13)
    assert Counter(len(a.placements) for a in found) == {1: 1, 2: 4, 4: 4, 6: 4} and len(found[0].placements) == 1
    assert len(set(found)) == 13 and all(not a.is_skeleton for a in found)
    assert bench.drawn(SPACE, 13) == found


def test_a_partial_tau_is_that_of_the_formula(bench):
    x, y, z = (np.array(ranks, float) for ranks in ([1, 2, 3, 4], [1, 2, 4, 3], [2, 1, 3, 4]))
    # taus of 2/3 (x, y), 2/3 (x, z) and 1/3 (y, z)
    assert bench.partial(x, y, z) == pytest.approx((2 / 3 - 2 / 9) / ((1 - 4 / 9) * (1 - 1 / 9)) ** 0.5)
    assert bench.partial(x, y, y) == 0.0


def test_tables_compare_scores_and_trainings(bench, monkeypatch, capsys):
    """The assembled network ranks as the final one, the settled one the other way round; the training from scratch is missing
    in some cases, and in the others takes three times as long for a little less."""
    plan = Plan(bench.drawn(SPACE, 13))
    order = {a.id: n for n, a in enumerate(plan.architectures)}

    def get(job):
        kind, name, *how = job
        value = order[name] / 100
        if kind == "final":
            return {"map": 0.3 + value, "cpu": 10.0 * how[1]}
        if kind == "assemble":
            return {"map": 0.2 + (value if how == [0] else -value), "cpu": 2.0}
        if kind == "loss":
            return {"loss": 5 - value, "cpu": 1.0}
        return (
            {"map": 0.25 + value, "cpu": 30.0} if order[name] < {30: 8, 5: 3, 80: 2}.get(how[0], 0) and how != [30, 2] else None
        )

    kept = SimpleNamespace(get=get)
    monkeypatch.setattr(Library, "rise", lambda _, alternatives: float(len(alternatives)))
    found, replaced = bench.table_a(plan, kept), [-len(a.placements) for a in plan.architectures]
    assert found["architectures"] == found["of"] == 13
    for score, sign in (("assembled", 1), ("assembled_settled", -1), ("assembled_loss", 1), ("final_again", 1), ("params", 1)):
        assert found[f"tau_{score}_final"] == pytest.approx(sign) == found[f"tau_{score}_scratch"]
        assert found[f"interval_{score}"] == pytest.approx([sign, sign])
    assert found["tau_partial"] == found["partial_assembled"] == pytest.approx(1)
    tied = bench.tau(np.array(replaced, float), np.arange(13.0))
    assert found["tau_fewer_replaced_final"] == found["tau_additive_final"] == pytest.approx(tied) and abs(tied) < 1
    assert (found["cpu_assembled"], found["cpu_assembled_loss"], found["cpu_final_again"]) == (2.0, 1.0, 20.0)
    assert "tau_scratch_final" not in found
    shown = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    assert shown["assembled_settled"][1:] == "-1.00 [-1.00, -1.00] -1.00 2.0 13 -1.00".split()

    found = bench.table_b(plan, kept)
    told = found["scratch_30_final_10_seed1"]
    assert (told["map"], told["final"], told["gain"], told["ratio"]) == pytest.approx((0.285, 0.335, 0.05, 3.0))
    assert told["interval"] == pytest.approx([0.05, 0.05])
    assert {n for n in found if n.startswith("scratch_80")} == {
        f"scratch_80_final_{f}_seed{s}" for f in (10, 26) for s in (1, 2)
    }
    # those of the goal: trained on for a third of a converged training, both seeds; 4 x 30 CPU seconds over 2 x 10 and 2 x 20
    assert (found["final_gain_map"], found["final_cost_ratio"]) == pytest.approx((0.05, 2.0))
    assert capsys.readouterr().out.splitlines()[1].split()[-7:] == "0.285 0.335 +0.050 [+0.050, +0.050] 3.0 8".split()
