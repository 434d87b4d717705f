"""`front`: reproducible, never twice the same, never over the limit, spread in batches; on tables and on search spaces."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from nas.search import belief, surrogate
from nas.search.acquisition import Steps
from nas.search.belief import Belief, Evidence, Fits, Frame, Points
from nas.search.choose import STEPS, choose
from nas.search.front_sampler import FrontSampler, SpaceCandidates, TableCandidates
from nas.search.surrogate import kernel
from nas.space.features import SpaceCodes, encode
from nas.space.reader import find_space, read_space

ROOT = Path(__file__).parents[2]


class Toy:
    """216 rows: three placements of six blocks; slower ones tend to be more accurate, some blocks are simply better."""

    def __init__(self) -> None:
        rng = np.random.default_rng(5)
        blocks = np.array(list(itertools.product(range(6), repeat=3)))
        worth, time = rng.uniform(0, 1, (3, 6)), rng.uniform(0.2, 1, (3, 6))
        self.latency = 1 + time[np.arange(3), blocks].sum(axis=1)
        self.map = 0.2 + 0.15 * worth[np.arange(3), blocks].sum(axis=1) + 0.05 * np.log(self.latency)
        self.params = [{f"slot{i}": "abcdef"[b] for i, b in enumerate(row)} for row in blocks]
        self.features = encode([[own[f"slot{i}"] for own in self.params] for i in range(3)])

    def sampler(self, seed: int, limit: float | None = None) -> FrontSampler:
        frame = Frame(float(self.latency.min()), float(self.latency.max()), limit)
        candidates = TableCandidates(self.features, self.latency, self.row, self.params.__getitem__)
        return FrontSampler(candidates, frame, seed)

    def row(self, trial: optuna.trial.FrozenTrial) -> int | None:
        return self.params.index(trial.params) if trial.params in self.params else None

    def ask(self, study: optuna.Study) -> tuple[optuna.Trial, int]:
        trial = study.ask()
        own = {name: trial.suggest_categorical(name, list("abcdef")) for name in ("slot0", "slot1", "slot2")}
        return trial, self.params.index(own)

    def search(self, seed: int, trials: int, limit: float | None = None) -> list[int]:
        """Trials with what a store holds: some fail, some stay open."""
        study = optuna.create_study(directions=["maximize", "minimize"], sampler=self.sampler(seed, limit))
        rows = []
        for number in range(trials):
            trial, row = self.ask(study)
            rows.append(row)
            if number % 7 == 3:
                study.tell(trial, state=TrialState.FAIL)
            elif number % 7 != 5:
                study.tell(trial, [self.map[row], self.latency[row]])
        return rows


TOY = Toy()


def test_the_same_seed_trial_and_results_give_the_same_proposals():
    first = TOY.search(3, 9)
    assert TOY.search(3, 9) == first
    assert TOY.search(4, 9) != first
    code = "import json; from tests.search.test_front_sampler import TOY; print(json.dumps(TOY.search(3, 9)))"
    other = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(other.stdout) == first


@pytest.mark.parametrize("results", [9, 70])
def test_a_fresh_sampler_goes_on_as_the_old_one_would(results):
    """As after a restart: the results alone say what comes next, also where hyperparameters are older than the latest."""
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=TOY.sampler(0))
    for _ in range(results):
        trial, row = TOY.ask(study)
        study.tell(trial, [TOY.map[row], TOY.latency[row]])
    again = optuna.create_study(directions=["maximize", "minimize"], sampler=TOY.sampler(0))
    again.add_trials(study.get_trials())
    assert TOY.ask(again)[1] == TOY.ask(study)[1]


def test_nothing_twice_before_all_within_the_limit_were_proposed():
    limit = float(np.sort(TOY.latency)[30])
    rows = TOY.search(1, 31, limit)
    assert sorted(rows) == np.flatnonzero(TOY.latency <= limit).tolist()
    assert rows[0] == int(np.flatnonzero(TOY.latency == limit)[0])  # the slowest that fits, first
    assert TOY.latency[TOY.search(1, 33, limit)[31:]].max() <= limit


def test_finds_what_random_search_does_not():
    rows = TOY.search(2, 25, float(np.median(TOY.latency)))
    within = TOY.map[TOY.latency <= np.median(TOY.latency)]
    assert TOY.map[rows].max() >= np.sort(within)[-2]


def test_a_batch_spreads():
    """What runs is believed: of forty pairs of twins a batch without results between holds no pair."""
    rng = np.random.default_rng(1)
    x = np.repeat(rng.uniform(0, 1, (40, 2)), 2, axis=0)
    latency, errors = np.exp(x[:, 0]), np.exp(-1 - 0.5 * x[:, 0] + 0.01 * x[:, 1])
    points = Points(encode(x.T.tolist()), latency, latency, latency, np.ones(len(latency)))
    left, batch, done = list(range(10, 80)), [], np.arange(10)
    for number in range(10, 22):
        row = choose(
            points[np.array(left)],
            Evidence(points[done], errors[done], np.zeros(10)),
            points[np.array(batch, dtype=int)],
            Frame(1, 3),
            0,
            number,
            Fits(),
        )
        assert row is not None
        batch.append(left.pop(row))
    assert len({row // 2 for row in batch}) == 12


def test_of_two_that_promise_alike_the_cheaper_one_is_tried():
    """Pairs of twins, of which one costs three times as much; and what costs a hundred times as much is left for later."""
    rng = np.random.default_rng(1)
    x = np.repeat(rng.uniform(0, 1, (40, 2)), 2, axis=0)
    latency, errors = np.exp(x[:, 0]), np.exp(-1 - x.sum(axis=1))
    points = Points(encode(x.T.tolist()), latency, latency, latency, np.where(np.arange(80) % 2, 3.0, 1.0))
    done, nothing = Evidence(points[:10], errors[:10], np.zeros(10)), points[np.arange(0)]
    row = choose(points[10:], done, nothing, Frame(1, 3), 0, 10, Fits())
    assert row is not None and row % 2 == 0
    dear = replace(points, cost=np.where(np.arange(80) // 2 == (row + 10) // 2, 100.0, 1.0))
    other = choose(dear[10:], done, nothing, Frame(1, 3), 0, 10, Fits())
    assert other is not None and other // 2 != row // 2


def test_with_uncertain_latencies_nothing_hopeless_is_proposed():
    """What cannot hold the limit is never proposed, and nothing is where all of the pool is over it."""
    features = encode([[float(i % 20) for i in range(40)]])
    latency = np.array([1 + 0.04 * (i % 20) for i in range(40)])
    low, high = latency.copy(), latency.copy()
    low[20:], high[20:] = latency[20:] * 0.8, latency[20:] * 1.25
    pool, frame = Points(features, latency, low, high, np.ones(len(latency))), Frame(1.0, 1.8, limit_ms=1.4)
    done = Evidence(pool[np.array([0, 3, 10])], np.array([0.6, 0.55, 0.5]), np.zeros(3))
    for number in range(3, 9):
        row = choose(pool, done, pool[np.arange(0)], frame, 0, number, Fits())
        assert row is not None
        assert low[row] <= 1.4
    assert choose(pool, done, pool[np.arange(0)], Frame(1.0, 1.8, 0.5), 0, 3, Fits()) is None


def test_the_work_of_a_proposal_does_not_grow_with_results_and_pool(monkeypatch):
    """Counted, not timed: entries of kernel matrices, and fits of the hyperparameters over a whole search."""
    entries, fits = [], []

    def counted(form, theta, a, b):
        entries.append(len(a) * len(b))
        return kernel(form, theta, a, b)

    def fitted(form, inputs, errors, doubt):
        fits.append(len(inputs))
        return form.prior[0]

    monkeypatch.setattr(surrogate, "kernel", counted)
    monkeypatch.setattr(belief, "fit", fitted)
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 1, (14_000, 2))
    latency = np.exp(x[:, 0])
    points = Points(encode(x.T.tolist()), latency, latency, latency, np.ones(len(latency)))
    done = Evidence(points[:4000], np.exp(-1 - x[:4000].sum(axis=1)), np.zeros(4000))
    nothing, frame, known = points[np.arange(0)], Frame(1, 3), Fits()
    for results in range(2, 1001):
        Belief(done[:results], nothing, None, frame, 0, known)
    assert len(fits) <= 100 and max(fits) <= 200
    works = []
    for results in (1000, 4000):
        entries.clear()
        choose(points[4000:], done[:results], nothing, frame, 0, results, known, around=lambda _: points[:1300])
        assert max(entries) <= 400 * 400
        works.append(sum(entries))
    looks = [10_000, *[1300] * STEPS]
    assert max(works) <= sum(64 * look + 400 * 250 for look in looks) + 400**2 + 64**2


def test_a_better_neighbour_is_gone_on_to():
    """From a poor sample, with the rest as its neighbours: what is chosen is the best of all."""
    rng = np.random.default_rng(4)
    x = rng.uniform(0, 1, (60, 2))
    latency, errors = np.exp(x[:, 0]), np.exp(-1 - x.sum(axis=1))
    points = Points(encode(x.T.tolist()), latency, latency, latency, np.ones(len(latency)))
    done, nothing = Evidence(points[:10], errors[:10], np.zeros(10)), points[np.arange(0)]
    frame, poor = Frame(1, 3, reference_error=1.0), np.argsort(-errors[10:])[:5] + 10
    rest = np.setdiff1d(np.arange(10, 60), poor)
    best = choose(points[10:], done, nothing, frame, 0, 10, Fits())
    found = choose(points[poor], done, nothing, frame, 0, 10, Fits(), around=lambda _: points[rest])
    assert np.concatenate((poor, rest, rest))[found] == 10 + best


def test_many_results_and_a_large_pool():
    """Beyond a thousand results a subset stands for all: near the front it still knows what is good."""
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 1, (26_000, 3))
    errors = np.exp(-1 - 0.3 * x.sum(axis=1) + 0.4 * (x[:, 0] - 0.5) ** 2)
    latency = np.exp(x[:, 0] + 0.3 * x[:, 1])
    points = Points(encode(x.T.tolist()), latency, latency, latency, np.ones(len(latency)))
    seen = np.arange(1500)
    frame = Frame(float(latency.min()), float(latency.max()))
    fits = Fits()
    done = Evidence(points[seen], errors[seen], np.zeros(1500))
    row = choose(points[np.arange(1500, 26_000)], done, points[np.arange(0)], frame, 0, 1500, fits)
    assert row is not None
    found = row + 1500
    faster = errors[seen][latency[seen] <= latency[found]]
    assert errors[found] < faster.min(initial=errors[seen].max())


@pytest.mark.parametrize("name", ["demo", "yolo11n-blocks"])
def test_a_search_space_is_asked_and_told(name):
    """Conditional parameters, a space too large to list, the skeleton first; every proposal a new member of the space."""
    space = read_space(find_space(name))
    codes = SpaceCodes(space)
    known = {}

    def latency(codes):
        ms = 1 + 0.01 * codes.sum(axis=1)
        return ms, ms, ms

    def studied():
        candidates = SpaceCandidates(codes, latency, 640, lambda t: known.get(t.number))
        sampler = FrontSampler(candidates, Frame(1.0, 3.0, 1.5), seed=0)
        return optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)

    def asked(study):
        trial = study.ask()
        return space.draw(lambda name, choices: trial.suggest_categorical(name, list(choices)))

    study = studied()
    study.ask()
    known[0] = space.baseline
    study.tell(0, [0.3, 1.4])
    for number in range(1, 7):
        known[number] = asked(study)
        ms = float(latency(codes.code(known[number])[None])[0][0])
        assert ms <= 1.5
        study.tell(number, [0.3 + 0.01 * number, ms])
    assert len({architecture.id for architecture in known.values()}) == 7
    again = studied()  # as after a restart
    again.add_trials(study.get_trials())
    assert asked(again).id == asked(study).id


def test_the_outlook_promises_what_the_next_trainings_give():
    """Over the whole of five searches: expected and real gains of the next five trainings, as shares of the hypervolume."""
    expected, real = [], []
    for seed in range(5):
        study = optuna.create_study(directions=["maximize", "minimize"], sampler=TOY.sampler(seed))
        worst = float(1 - TOY.map.min())
        study.sampler.frame = replace(study.sampler.frame, reference_error=worst)
        volumes, promised = [], []
        for _ in range(40):
            trial, row = TOY.ask(study)
            outlook = study.sampler.outlook(5)
            promised.append(outlook and outlook.gain)
            study.tell(trial, [TOY.map[row], TOY.latency[row]])
            done = np.array([own.values for own in study.trials])
            steps = Steps.of(1 - done[:, 0], np.log(done[:, 1]), worst, float(np.log(TOY.latency.max())))
            volumes.append(steps.area(float(np.log(TOY.latency.min()))))
        assert promised[:4] == [None] * 4 and outlook.error < 0.02
        for step in range(8, 35):
            expected.append(promised[step])
            real.append(volumes[step + 4] / volumes[step - 1] - 1)
    assert 0.5 < np.sum(expected) / np.sum(real) < 2
    early, late = np.array(expected).reshape(5, -1)[:, :9].mean(), np.array(expected).reshape(5, -1)[:, -9:].mean()
    assert late < early / 2
