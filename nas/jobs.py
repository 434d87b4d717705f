"""What a worker is asked to do for a trial at a rung. The study knows neither how nor from what it learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from nas.cache import cache_root
from nas.config import RunConfig
from nas.dataset.description import Dataset
from nas.execution.validate import VALIDATE, ValidateJob
from nas.execution.work import TRAIN, TrainJob
from nas.hardware import threads_per_worker
from nas.runs.trials import TrialFolders
from nas.search.ladder import FACTOR
from nas.seeds import derive
from nas.space.architecture import Architecture
from nas.space.skeleton import TASKS


@dataclass(frozen=True)
class Step:
    """One step of a trial: to a rung, from 0, or (`repeat` above 0) the whole way again with another seed, to confirm it, or
    (`validates`) the weights that it kept scored on `val`."""

    number: int
    rung: int
    repeat: int = 0
    validates: bool = False

    @property
    def again(self) -> bool:
        """Whether the trial was done before."""
        return self.validates or self.repeat > 0


class Jobs(Protocol):
    """The trainings of a search."""

    @property
    def shares(self) -> Sequence[float]:
        """How many of a stratum go on from each rung but the highest."""
        ...

    @property
    def validates(self) -> bool:
        """Whether members of the front are scored on `val` too, as the held-out part has been learned from."""
        ...

    def refusal(self, architecture: Architecture) -> str | None:
        """Why an architecture cannot be trained, if it is known beforehand."""
        ...

    def job(self, step: Step, model: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """The kind of attempt and its payload that take a trial to its next rung. `model` is its model YAML."""
        ...


class ProxyJobs:
    """Proxies trained from scratch, or from a checkpoint as far as they kept it.

    Args:
        folders: where the state and the weights of each trial go.
        validates: whether the checkpoint may have learned from the held-out part.
    """

    def __init__(
        self, config: RunConfig, dataset: Dataset, blocks: Sequence[str], folders: TrialFolders, *, validates: bool = False
    ) -> None:
        self._epochs, self._folders, self._validates = config.rung_epochs, folders, validates
        self._common = training_job(config, dataset, blocks)

    @property
    def shares(self) -> Sequence[float]:
        return [1 / FACTOR] * (len(self._epochs) - 1)

    @property
    def validates(self) -> bool:
        return self._validates

    def refusal(self, architecture: Architecture) -> str | None:  # noqa: ARG002  (whatever can be built can be trained)
        return None

    def job(self, step: Step, model: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        weights = self._folders.weights(step.number)
        if step.validates:
            return VALIDATE, validation(self._common, model, weights)
        kept = step.rung == len(self._epochs) - 1 and not weights.is_file()
        job = replace(
            self._common,
            model=model,
            until=self._epochs[step.rung],
            state=str(self._folders.state(step.number, step.repeat)),
            keep=str(weights) if kept else None,
        )
        return TRAIN, dict(vars(job))  # as asdict, but that copies the whole model, leaf by leaf


def validation(train: TrainJob, model: Mapping[str, Any], weights: Path) -> dict[str, Any]:
    """The payload that scores the weights of a trained model on `val`."""
    names = ("data", "root", "cache", "imgsz", "device", "threads", "blocks")
    common = {name: getattr(train, name) for name in names}
    return asdict(ValidateJob(str(weights), polygons=TASKS[model["head"][-1][2]] == "segment", **common))


def training_job(config: RunConfig, dataset: Dataset, blocks: Sequence[str]) -> TrainJob:
    """What all trainings of a search have in common; the model is yet to be put in."""
    return TrainJob(
        {},
        data=str(dataset.yaml),
        root=str(dataset.root),
        cache=str(cache_root()),
        imgsz=config.imgsz,
        rungs=config.rung_epochs,
        batch=config.batch,
        lr0=config.lr0,
        held_out=config.held_out,
        split_seed=derive(config.seed, 0, "split"),
        device=config.device,
        devices=config.devices,
        threads=1 if config.address else threads_per_worker(config.workers, config.device),
        names=list(dataset.names),
        fraction=config.fraction,
        weights=config.weights,
        blocks=list(blocks),
    )
