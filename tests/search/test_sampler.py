"""Samplers: drawn from (seed, trial, results) alone, quiet, and able to live with every state that a store holds."""

from __future__ import annotations

import warnings

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution
from optuna.samplers import RandomSampler, TPESampler
from optuna.search_space.group_decomposed import _GroupDecomposedSearchSpace
from optuna.trial import TrialState, create_trial

from nas.config import SAMPLERS as NAMES
from nas.errors import InputError
from nas.search.sampler import FRONT, SAMPLERS, STARTUP_TRIALS, GroupedTPE, groups_of, make_sampler
from nas.seeds import derive

BLOCKS = ["keep", "repvit", "irmb"]


def search(name: str, seed: int, trials: int) -> list[dict]:
    """A conditional search with two objectives in which `irmb` with many heads is best; returns what was proposed."""
    study = optuna.create_study(directions=["maximize", "minimize"])
    proposed = []
    for number in range(trials):
        study.sampler = make_sampler(name, seed, number)
        trial = study.ask()
        slots = [trial.suggest_categorical(f"{slot}.block", BLOCKS) for slot in "abc"]
        heads = [
            trial.suggest_categorical(f"{slot}.heads", [2, 4, 8]) for slot, b in zip("abc", slots, strict=True) if b == "irmb"
        ]
        proposed.append(trial.params)
        if number % 7 == 3:
            study.tell(trial, state=TrialState.FAIL)
        elif number % 7 != 5:  # and some stay open, as trials of other workers do
            trial.set_constraint("latency limit", -1.0 if number else 0.5)
            study.tell(trial, [sum(heads) / 24, 1.0])
    return proposed


def test_the_names_are_those_of_the_configuration():
    assert {*SAMPLERS, FRONT} == set(NAMES)
    with pytest.raises(InputError, match="unknown sampler 'tep'") as error:
        make_sampler("tep", 0, 0)
    assert error.value.hint == "did you mean 'tpe'?"


def test_random_draws_what_optunas_random_sampler_draws(monkeypatch):
    ours = search("random", 3, 20)
    monkeypatch.setitem(SAMPLERS, "random", lambda seed: RandomSampler(seed=seed))
    assert search("random", 3, 20) == ours


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_proposals_follow_from_seed_trial_and_results(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = search(name, 3, STARTUP_TRIALS + 10)
    assert search(name, 3, STARTUP_TRIALS + 10) == first
    assert search(name, 4, STARTUP_TRIALS + 10) != first
    assert len({tuple(sorted(params.items())) for params in first[:STARTUP_TRIALS]}) > STARTUP_TRIALS // 2


def test_tpe_learns_what_is_good():
    def share(name):
        late = [p for seed in range(3) for p in search(name, seed, 60)[30:]]
        return sum(params[f"{slot}.block"] == "irmb" for params in late for slot in "abc") / len(late) / 3

    assert share("tpe") > 1.4 * share("random")


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sets(st.sampled_from("abcdefg")), max_size=8))
def test_groups_are_those_of_optuna(asked):
    study = optuna.create_study(directions=["maximize", "minimize"])
    for names in asked:
        distributions = {name: CategoricalDistribution([1, 2]) for name in names}
        study.add_trial(create_trial(values=[1.0, 1.0], params=dict.fromkeys(names, 1), distributions=distributions))
    groups = groups_of(study.trials)
    expected = _GroupDecomposedSearchSpace().calculate(study).search_spaces
    assert sorted({tuple(group) for group in groups.values()}) == sorted(tuple(sorted(group)) for group in expected)
    assert all(name in group for name, group in groups.items())
    assert set(groups) == set().union(*asked)


def test_draws_are_distributed_as_those_of_optuna():
    """One finished search, and then many draws from it by either: of a block's share, and of heads that fit their ratio."""
    study = optuna.create_study(directions=["maximize", "minimize"])

    def draw(sampler):
        study.sampler = sampler
        trial = study.ask()
        found = {"block": trial.suggest_categorical("block", BLOCKS)}
        if found["block"] == "irmb":
            found |= {name: trial.suggest_categorical(name, [2, 4, 8]) for name in ("heads", "ratio")}
        return trial, found

    for seed in range(60):
        trial, found = draw(GroupedTPE(seed))
        fits = found.get("heads", 0) == found.get("ratio", 1)
        study.tell(trial, [fits + 0.5 * (found["block"] == "irmb") + seed / 1000, 1.0])

    def shares(make):
        drawn = []
        for seed in range(300):
            trial, found = draw(make(seed))
            study.tell(trial, state=TrialState.FAIL)
            drawn.append(found)
        irmb = [found for found in drawn if found["block"] == "irmb"]
        return len(irmb) / len(drawn), sum(found["heads"] == found["ratio"] for found in irmb) / len(irmb)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        expected = shares(lambda seed: TPESampler(multivariate=True, group=True, constant_liar=True, seed=seed))
    assert shares(GroupedTPE) == pytest.approx(expected, abs=0.08)
    assert expected[1] > 0.6  # of 1 / 3, were they drawn one by one


def test_seeds_are_unrelated_and_the_same_everywhere():
    drawn = {derive(seed, trial, what) for seed in range(20) for trial in range(20) for what in ("train", "sampler")}
    assert len(drawn) == 800
    assert all(0 <= seed < 2**31 for seed in drawn)
    assert derive(0, 0, "train") == 1_824_836_794
