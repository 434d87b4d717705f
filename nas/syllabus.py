"""How long a teacher is trained, who learns from it in which order, and where that comes to lie. No torch."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nas.cache import cache_root
from nas.config import Budget
from nas.dataset.description import Dataset
from nas.execution.imitate import TeacherJob
from nas.execution.work import TrainJob
from nas.imitation.alternatives import Alternative, alternatives_of
from nas.imitation.library import Library
from nas.space.search_space import SearchSpace

TEACH_SHARE, IMITATE_SHARE = 0.3, 0.2  # of the budget, at most
TEACHER_EPOCHS = 100  # at most; in a budget of trials so many times the epochs of one
TIMES_A_TRIAL = 6
WORTH_A_TRIAL = 5  # times a trial's epochs: a teacher of less is worth no imitation (docs/imitation.md, "Whole searches")


def teacher_epochs(budget: Budget, epochs: int, seconds: float) -> int:
    """How long a teacher is trained, where one epoch takes so many seconds and a trial is trained for `epochs`."""
    if budget.kind == "trials":
        return min(TEACHER_EPOCHS, TIMES_A_TRIAL * epochs)
    return int(max(1, min(TEACHER_EPOCHS, TEACH_SHARE * budget.amount / seconds)))


def worthwhile_epochs(epochs: int) -> int:
    """How long a teacher must be trained to be worth imitating, where a trial is trained for `epochs`."""
    return min(TEACHER_EPOCHS, WORTH_A_TRIAL * epochs)


def split_name(dataset: Dataset, train: TrainJob) -> str:
    """Names what a training leaves out: the data, the share, and how it is drawn."""
    return f"{dataset.digest} {train.held_out} {train.split_seed}"


def teacher_job(train: TrainJob, skeleton: Mapping[str, Any], path: str) -> TeacherJob:
    """What all work with the teacher at `path` needs, on the data of a training."""
    names = TeacherJob.__dataclass_fields__.keys() - {"skeleton", "teacher"}
    return TeacherJob(skeleton=skeleton, teacher=path, **{name: getattr(train, name) for name in names})


def library_of(digest: str, skeleton: Mapping[str, Any], dataset: Dataset, train: TrainJob) -> Library:
    """Where the blocks lie that learn from a teacher on the data of a training. A user's block that was edited is another."""
    files = [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in train.blocks]
    return Library.of(
        cache_root(),
        **({"blocks": files} if files else {}),
        teacher=digest,
        skeleton=skeleton,
        data=dataset.digest,
        imgsz=train.imgsz,
        held_out=train.held_out,
        split=train.split_seed,
        fraction=train.fraction,
        device=train.device,
    )


def in_turn(space: SearchSpace) -> Iterator[Alternative]:
    """All alternatives of a space: of each slot the first of every block, then the second ones, and so on."""
    queues: list[list[Alternative]] = []
    for options in alternatives_of(space).values():
        by_block: dict[str, list[Alternative]] = {}
        for alternative in options.values():
            if alternative is not None:
                by_block.setdefault(alternative.module, []).append(alternative)
        queues += by_block.values()
    seen: set[str] = set()
    for rank in itertools.zip_longest(*queues):
        for alternative in rank:
            if alternative is not None and alternative.key not in seen:
                seen.add(alternative.key)
                yield alternative
