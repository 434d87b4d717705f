"""Who proposes: Optuna samplers, made afresh for every trial so that each draw follows from (seed, trial, results)."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler

from nas.errors import InputError, did_you_mean
from nas.seeds import derive

STARTUP_TRIALS = 10


def make_sampler(name: str, seed: int, trial: int) -> BaseSampler:
    """The sampler that proposes trial number `trial`. Raises InputError for an unknown name."""
    if name not in SAMPLERS:
        raise InputError(f"unknown sampler '{name}'", did_you_mean(name, SAMPLERS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return SAMPLERS[name](derive(seed, trial, "sampler"))


def _tpe(seed: int) -> BaseSampler:
    """Multivariate TPE; `group` because a space is conditional, `constant_liar` because trials run side by side."""
    return TPESampler(multivariate=True, group=True, constant_liar=True, n_startup_trials=STARTUP_TRIALS, seed=seed)


SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {"tpe": _tpe, "random": lambda seed: RandomSampler(seed=seed)}
