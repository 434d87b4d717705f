"""Who proposes: Optuna samplers, made afresh for every trial so that each draw follows from (seed, trial, results)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from nas.errors import InputError, did_you_mean
from nas.seeds import derive

STARTUP_TRIALS = 10
FRONT = "front"  # `nas.search.front_sampler`, which needs more than a seed


class OneByOne(BaseSampler):
    """Says what a parameter is when it is asked for, not before; `infer_relative_search_space` is the begin of a trial."""

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:  # noqa: ARG002
        return {}

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:  # noqa: ARG002
        return {}


class Uniform(OneByOne):
    """Draw for draw what Optuna's `RandomSampler` draws, in a quarter of its time: for categorical parameters, the only ones
    that a search space has."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.RandomState(seed)  # as Optuna's

    def sample_independent(
        self,
        study: Study,  # noqa: ARG002
        trial: FrozenTrial,  # noqa: ARG002
        param_name: str,  # noqa: ARG002
        param_distribution: BaseDistribution,
    ) -> Any:
        """Raises TypeError for a parameter that is not categorical."""
        if not isinstance(param_distribution, CategoricalDistribution):
            raise TypeError(f"{param_distribution} is not categorical")
        choices = param_distribution.choices
        return choices[int(self._random.random_sample(len(choices)).argmax())]


class GroupedTPE(OneByOne):
    """Multivariate TPE by groups, as Optuna's `TPESampler(group=True)`; draws only the groups that a trial asks for.

    A group is parameters that always occur together, modelled jointly: in a conditional space no more can be. Optuna draws
    every group before the first parameter is known, three quarters of them for blocks that are then not chosen.
    `constant_liar`, because trials run side by side. Trials may run, but not be drawn, side by side.
    """

    def __init__(self, seed: int) -> None:
        self._tpe = TPESampler(multivariate=True, constant_liar=True, n_startup_trials=STARTUP_TRIALS, seed=seed)
        self._groups: dict[str, dict[str, BaseDistribution]] = {}
        self._drawn: dict[str, Any] = {}

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:  # noqa: ARG002
        """A trial begins. Nothing is drawn yet: `sample_independent` does so, when it is known what is asked for."""
        self._groups = groups_of(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
        self._drawn = {}
        return {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        if param_name not in self._drawn and param_name in self._groups:
            self._drawn |= self._tpe.sample_relative(study, trial, self._groups[param_name])
        if param_name in self._drawn:
            return self._drawn[param_name]
        # Among the startup trials, or never asked for in a finished trial.
        return self._tpe.sample_independent(study, trial, param_name, param_distribution)


def groups_of(trials: Sequence[FrozenTrial]) -> dict[str, dict[str, BaseDistribution]]:
    """The group of every parameter: the distributions, sorted by name, of those that occur in exactly the same trials."""
    occurs: dict[str, list[int]] = defaultdict(list)
    distributions: dict[str, BaseDistribution] = {}
    for trial in trials:
        for name in trial.params:
            occurs[name].append(trial.number)
        distributions |= trial.distributions
    members: dict[tuple[int, ...], dict[str, BaseDistribution]] = defaultdict(dict)
    for name in sorted(occurs):
        members[tuple(occurs[name])][name] = distributions[name]
    return {name: members[tuple(numbers)] for name, numbers in occurs.items()}


def make_sampler(name: str, seed: int, trial: int) -> BaseSampler:
    """The sampler that proposes trial number `trial`. Raises InputError for an unknown name."""
    if name not in SAMPLERS:
        raise InputError(f"unknown sampler '{name}'", did_you_mean(name, SAMPLERS))
    return SAMPLERS[name](derive(seed, trial, "sampler"))


SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {"tpe": GroupedTPE, "random": Uniform}
