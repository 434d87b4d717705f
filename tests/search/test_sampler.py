"""Samplers: drawn from (seed, trial, results) alone, quiet, and able to live with every state that a store holds."""

from __future__ import annotations

import warnings

import optuna
import pytest
from optuna.trial import TrialState

from nas.config import SAMPLERS as NAMES
from nas.errors import InputError
from nas.search.sampler import SAMPLERS, STARTUP_TRIALS, make_sampler
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
    assert set(SAMPLERS) == set(NAMES)
    with pytest.raises(InputError, match="unknown sampler 'tep'") as error:
        make_sampler("tep", 0, 0)
    assert error.value.hint == "did you mean 'tpe'?"


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


def test_seeds_are_unrelated_and_the_same_everywhere():
    drawn = {derive(seed, trial, what) for seed in range(20) for trial in range(20) for what in ("train", "sampler")}
    assert len(drawn) == 800
    assert all(0 <= seed < 2**31 for seed in drawn)
    assert derive(0, 0, "train") == 1_824_836_794
