"""What a row of a table gives at each rung, and how long that takes: `nas.jobs.Jobs` for a simulated search.

A rung whose column is absent is drawn: the normal scores of the rung above are mixed with noise (a Gaussian copula), so
that both rank with the asked Kendall's tau, by tau = 2/pi * arcsin(rho) (M. G. Kendall, "Rank and product-moment
correlation", Biometrika 36, 1949). Row i draws the same from the same seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri

from nas.execution.simulate import SIMULATE
from nas.jobs import Step
from nas.search.ladder import FACTOR
from nas.seeds import derive
from nas.simulate.space import ROW
from nas.simulate.table import Floats, Table
from nas.space.architecture import Architecture

HOUR = 3600.0  # of training takes a row of median latency, where the table does not say
SHRINK = 0.8  # a drawn rung's accuracies lie so much lower than those of the rung above


class SimulatedJobs:
    """Trainings that are looked up.

    Args:
        rungs: how many; the highest columns of the table, and below these drawn ones.
        tau: Kendall's, between a drawn rung and the one above.
        seed: of what is drawn.
    """

    def __init__(self, table: Table, rungs: int, tau: float, seed: int) -> None:
        self.lengths, self.curves = curves(table, rungs, tau, seed)
        seconds = table.seconds
        self._seconds = HOUR * table.latency / np.median(table.latency) if seconds is None else seconds

    @property
    def shares(self) -> Sequence[float]:
        return [1 / FACTOR] * (len(self.curves) - 1)

    @property
    def validates(self) -> bool:
        return False

    def refusal(self, architecture: Architecture) -> str | None:  # noqa: ARG002  (every row was trained)
        return None

    def job(self, step: Step, model: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        row, before = model[ROW], 0.0 if step.repeat or not step.rung else self.lengths[step.rung - 1]
        seconds = float(self._seconds[row]) * (self.lengths[step.rung] - before)
        return SIMULATE, {"seconds": seconds, "data": {"map": float(self.curves[step.rung][row])}}


def curves(table: Table, rungs: int, tau: float, seed: int) -> tuple[list[float], list[Floats]]:
    """Of each rung, the lowest first: its length as a share of a whole training, and the accuracy of every row in [0, 1]."""
    known = list(table.lower.items())[-(rungs - 1) :] if rungs > 1 else []
    whole = table.length or (FACTOR * known[-1][0] if known else 1.0)
    lengths = [at / whole for at, _ in known] + [1.0]
    found = [values / table.ceiling for _, values in known] + [table.accuracy / table.ceiling]
    while len(found) < rungs:
        lengths.insert(0, lengths[0] / FACTOR)
        found.insert(0, foretell(found[0], tau, derive(seed, len(found), "curve")))
    return lengths, found


def foretell(accuracies: Floats, tau: float, seed: int) -> Floats:
    """What less training might have given: lower accuracies that rank with this Kendall's tau to the given ones."""
    n = len(accuracies)
    scores = np.empty(n)
    scores[np.argsort(accuracies, kind="stable")] = ndtri((np.arange(n) + 0.5) / n)
    rho = math.sin(math.pi * tau / 2)
    noise = np.random.default_rng(seed).standard_normal(n)
    mixed = ndtr(rho * scores + math.sqrt(max(0.0, 1 - rho * rho)) * noise)
    return np.asarray(SHRINK * np.quantile(accuracies, mixed))
