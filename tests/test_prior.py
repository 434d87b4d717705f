"""Warm start: what an earlier run found helps a new one, misleads it little, and never stands among its trials."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import optuna
import pytest

from nas.config import Budget, RunConfig
from nas.errors import InputError
from nas.prior import keep_prior, kept_prior, read_prior
from nas.runs.folder import write_config, write_manifest
from nas.runs.store import Store
from nas.search.belief import Frame
from nas.search.front_sampler import Earlier, FrontSampler, TableCandidates
from nas.simulate.share import Share
from nas.simulate.table import Table
from nas.space.features import encode
from nas.space.reader import read_space

SPACE = """
skeleton: yolo11n.yaml
slots:
  backbone.P4: {block: [keep, repvit, irmb], width: [0.5, 1.0]}
  backbone.P5: {block: [keep, repvit], width: [0.5, 1.0]}
"""


class Nets:
    """500 of 4^5 networks, with two accuracies that have most in common, and one that has nothing to do with these."""

    def __init__(self) -> None:
        rng = np.random.default_rng(3)
        grid = np.array(list(itertools.product(range(4), repeat=5)))
        self.codes = grid[rng.choice(len(grid), 500, replace=False)]
        effects, times = rng.normal(0, 1, (5, 4)), rng.uniform(0, 1, (5, 4))
        own = effects[np.arange(5), self.codes].sum(axis=1)
        self.latency = np.exp(0.3 * times[np.arange(5), self.codes].sum(axis=1))
        self.accuracy = 0.5 + 0.04 * own + 0.1 * np.log(self.latency) + rng.normal(0, 0.005, 500)
        self.alike = 0.35 + 0.05 * own + 0.1 * np.log(self.latency) + rng.normal(0, 0.01, 500)
        self.unlike = rng.uniform(0.2, 0.8, 500)
        self.features = encode(self.codes.T.astype(str).tolist())

    def evaluations(self, seed: int, prior: np.ndarray | None, goal: float = 0.95) -> int:
        """Until a search has so much of the hypervolume."""
        names = [f"m{row}" for row in range(500)]
        table = Table(Path(), names, {}, self.accuracy, 1.0, self.latency, None, {}, None, {}, np.zeros((500, 0), np.intp))
        share, rows = Share(table), []
        earlier = None
        if prior is not None:
            known = np.random.default_rng(seed + 50).choice(500, 40, replace=False)
            earlier = Earlier(known[:, None].astype(np.int32), prior[known])
        candidates = TableCandidates(self.features, self.latency, lambda t: t.params.get("row"), lambda row: {"row": row})
        frame = Frame(float(self.latency.min()), float(self.latency.max()))
        sampler = FrontSampler(candidates, frame, seed, prior=earlier)
        study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
        while not rows or share.of(rows) < goal:
            trial = study.ask()
            rows.append(trial.suggest_categorical("row", list(range(500))))
            study.tell(trial, [self.accuracy[rows[-1]], self.latency[rows[-1]]])
        return len(rows)


def test_a_prior_helps_where_it_is_alike_and_costs_little_where_it_is_not():
    nets = Nets()
    cold, alike, unlike = (
        float(np.mean([nets.evaluations(seed, prior) for seed in range(6)])) for prior in (None, nets.alike, nets.unlike)
    )
    print(cold, alike, unlike)
    assert alike <= 0.7 * cold
    assert unlike <= 1.5 * cold


@pytest.fixture
def run(tmp_path):
    """A finished run of three trials."""
    (tmp_path / "space.yaml").write_text(SPACE)
    space, store = read_space(tmp_path / "space.yaml"), Store(tmp_path, create=True)
    write_config(tmp_path, RunConfig("d.yaml", "s", "3trials", "cpu:onnxruntime"), "nas search")
    write_manifest(tmp_path, "", ["a"], {})
    wanted = [space.baseline, *itertools.islice((a for a in space.enumerate() if a.placements), 2)]
    for number, architecture in enumerate(wanted):
        store.propose(space, optuna.samplers.RandomSampler(0), architecture)
        store.queue(number, {"ms": 1.0 + number}, {})
        store.start(number)
        store.finish(number, 5.0, {"map": 0.1 * (number + 1), "map50": 0.5}, paused=False)
    return tmp_path


def test_what_a_run_trained_is_read_once_and_kept(run, tmp_path_factory):
    space = read_space(run / "space.yaml")
    found = read_prior(run, space)
    assert [score for _, score in found] == pytest.approx([0.1, 0.2, 0.3]) and found[0][0].is_skeleton
    own = Store(folder := tmp_path_factory.mktemp("new"), create=True)
    assert kept_prior(own) == []
    keep_prior(own, folder, space, found)
    assert [line.split(",")[:2] for line in (folder / "prior.csv").read_text().splitlines()[:2]] == [
        ["id", "map"],
        [space.baseline.id, "0.1"],
    ]
    assert kept_prior(Store(folder, create=False)) == found
    assert len(own) == 0


def test_what_the_new_space_does_not_hold_is_left_out(run, tmp_path):
    narrow = tmp_path / "narrow.yaml"
    narrow.write_text("skeleton: yolo11n.yaml\nslots:\n  backbone.P5: {block: [keep, repvit], width: [0.25, 0.75]}\n")
    found = read_prior(run, read_space(narrow))
    assert [architecture.is_skeleton for architecture, _ in found] == [True]


def test_a_run_of_another_skeleton_is_refused(run, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text(SPACE.replace("yolo11n", "yolov8n"))
    with pytest.raises(InputError, match=r"around yolo11n, .* is around yolov8n"):
        read_prior(run, read_space(other))


def test_only_a_sampler_with_a_model_can_learn_from_a_run():
    for options in ({"prior": "results/old"}, {"stop_when_flat": 0.01}):
        with pytest.raises(InputError, match="needs --sampler front"):
            RunConfig("d.yaml", "s", "3trials", "cpu:onnxruntime", sampler="tpe", **options)
    assert Budget.parse("3trials").amount == 3
