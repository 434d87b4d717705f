"""What a worker is asked to do for a trial of a search by imitation: assemble, train on, score what was kept. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from nas.config import RunConfig
from nas.execution.imitate import ASSEMBLE, TUNE, AssembleJob
from nas.execution.validate import VALIDATE
from nas.execution.work import TrainJob
from nas.imitation.alternatives import alternative_of
from nas.jobs import Step, validation
from nas.runs.trials import TrialFolders
from nas.search.ladder import FACTOR
from nas.space.architecture import Architecture
from nas.space.search_space import SearchSpace
from nas.teaching import Teaching

# A network of many narrow slots may find nothing only because its norms expect what the teacher's layers saw. Below this share
# of the teacher's mAP they are measured anew by so many batches; near the teacher that costs a little mAP.
GOOD, SETTLE = 0.75, 4
ASSEMBLED_SHARE = 1 / 9  # of a stratum of assembled networks that is trained on: they rank well and cost next to nothing


class AssembledJobs:
    """Trainings of a search by imitation: rung 0 is the assembled network as it is, those above train it on.

    Args:
        teaching: after its `run`.
        folders: where the state and the weights of each trial go.
    """

    def __init__(
        self, config: RunConfig, space: SearchSpace, teaching: Teaching, train: TrainJob, folders: TrialFolders
    ) -> None:
        self._epochs, self._space, self._teaching, self._train, self._folders = (
            config.rung_epochs,
            space,
            teaching,
            train,
            folders,
        )

    @property
    def shares(self) -> Sequence[float]:
        return [ASSEMBLED_SHARE, *[1 / FACTOR] * (len(self._epochs) - 1)]

    @property
    def validates(self) -> bool:
        return self._teaching.has_seen_all

    def refusal(self, architecture: Architecture) -> str | None:
        for placement in architecture.placements:
            if reason := self._teaching.dropped(alternative_of(self._space, placement)):
                return f"{placement.slot}: {placement.block} could not learn from the teacher: {reason}"
        return None

    def job(self, step: Step, model: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        if step.validates:
            return VALIDATE, validation(self._train, model, self._folders.weights(step.number))
        library, unless = str(self._teaching.library.folder), GOOD * self._teaching.mean_ap
        assembled = AssembleJob(**self._teaching.job(), model=model, library=library, settle=SETTLE, unless=unless)
        if step.rung == 0:
            return ASSEMBLE, asdict(assembled)
        start = self._folders.folder(step.number) / f"assembled{step.repeat}.pt"
        weights = self._folders.weights(step.number)
        kept = step.rung == len(self._epochs) and not weights.is_file()
        train = replace(
            self._train,
            model=model,
            weights=str(start),
            until=self._epochs[step.rung - 1],
            # one that was trained here had no time to end: networks soon know better, and it would hold them back
            teacher=assembled.teacher if self._teaching.is_users_own else None,
            state=str(self._folders.state(step.number, step.repeat)),
            keep=str(weights) if kept else None,
        )
        return TUNE, {"assemble": asdict(replace(assembled, keep=str(start))), "train": asdict(train)}
