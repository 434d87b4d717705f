"""What the phases teach and imitate would take of a budget, and what a trial costs then; told by `nas search --dry-run`.

A checkpoint is met as a search would meet it: whether it is a teacher, what it is worth, and what has learned from it already.
What learning costs is rehearsed: a few alternatives learn from the skeleton of the rehearsal, on its few images.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from nas.assembled import ASSEMBLED_SHARE
from nas.config import Budget, RunConfig
from nas.dataset.description import Dataset
from nas.errors import StartError, StoppedError
from nas.execution.executor import Attempt, Executor, Progress, Result
from nas.execution.imitate import IMITATE, MEET, ImitateJob
from nas.execution.work import TrainJob
from nas.imitation.library import ROUNDS
from nas.pricing import POLL_SECONDS
from nas.review.record import duration
from nas.search.ladder import FACTOR
from nas.space.architecture import model_yaml
from nas.space.search_space import SearchSpace
from nas.syllabus import IMITATE_SHARE, in_turn, library_of, split_name, teacher_epochs, teacher_job, worthwhile_epochs

REHEARSED = 3  # alternatives
NEVER_ENOUGH = -1e9  # all rounds are to be timed


@dataclass(frozen=True)
class Met:
    """What there is before a search begins: the teacher's mAP, or None where it is yet to be trained; how many alternatives
    there are, and how many of them have learned; whether the held-out part may have been `seen`."""

    mean_ap: float | None
    words: str
    alternatives: int
    learned: int
    seen: bool


@dataclass(frozen=True)
class Learning:
    """Seconds that one alternative takes: beside its epochs, and for an image of an epoch."""

    beside: float
    image: float

    def seconds(self, count: int, images: int) -> tuple[float, float]:
        """Of so many alternatives, where all are good enough as they begin and where all go through all rounds."""
        epochs = 0, sum(ROUNDS)
        low, high = (count * (self.beside + each * images * self.image) for each in epochs)
        return low, high


@dataclass(frozen=True)
class Shares:
    """How a budget is divided: seconds for the teacher, who is trained for `epochs`, seconds for imitation at least and at
    most, and what is `left` for trials at least, in the budget's unit. `limited`: imitation ends before all have learned."""

    teach: float
    imitate: tuple[float, float]
    left: float
    epochs: int = 0
    limited: bool = False


def meet(config: RunConfig, space: SearchSpace, dataset: Dataset, train: TrainJob, executor: Executor, folder: Path) -> Met:
    """Look at the checkpoint that a search would begin with.

    Args:
        train: a training of the search.

    Raises:
        StartError: it can start no search by imitation.
        StoppedError: that could not be found out.
    """
    wanted, skeleton = list(in_turn(space)), model_yaml(space.skeleton, space.baseline, dataset.nc)
    if config.weights is None:
        return Met(None, "the skeleton is trained first, without the held-out part", len(wanted), 0, seen=False)
    name = Path(config.weights).name
    train = replace(train, left_out=split_name(dataset, train))
    told, _, _ = _done(executor, Attempt("meet", MEET, asdict(teacher_job(train, skeleton, config.weights))), folder)
    if "shortfall" in told:
        seen = "" if told["fresh"] else ", which may have seen the held-out part"
        words = f"{name} is no teacher as it is ({told['shortfall']}): the teacher's training starts from it{seen}"
        return Met(None, words, len(wanted), 0, seen=bool(seen))
    left = library_of(told["digest"], skeleton, dataset, train).missing(wanted)
    left_out = bool(told.get("left_out"))
    words = f"{name} is taken as it is: mAP50-95 {told['map']:.3f} on the held-out part, which it "
    words += "has not seen" if left_out else "may have seen"
    return Met(told["map"], words, len(wanted), len(wanted) - len(left), seen=not left_out)


def rehearse_learning(space: SearchSpace, train: TrainJob, images: int, executor: Executor, folder: Path) -> Learning:
    """Let a few alternatives learn from the skeleton that a small training has kept, on the `images` that it saw.

    Raises:
        StoppedError: it fails.
    """
    wanted = list(in_turn(space))
    some = wanted[:: max(1, len(wanted) // REHEARSED)][:REHEARSED]
    if not some:
        return Learning(0.0, 0.0)
    common = asdict(teacher_job(train, train.model, str(train.keep)))
    plain = [alternative.plain() for alternative in some]
    job = ImitateJob(**common, alternatives=plain, library=str(folder / "library"), lessons={"enough": NEVER_ENOUGH})
    _, reports, seconds = _done(executor, Attempt("learn", IMITATE, asdict(job)), folder)
    lessons = [report for report in reports if report.data.get("students")]  # the others are signs of life
    epochs = [
        (later.seconds - earlier.seconds) / later.data["students"]
        for earlier, later in pairwise(lessons)
        if later.data["epoch"] > earlier.data["epoch"]
    ]
    each = statistics.median(epochs) if epochs else 0.0
    beside = seconds - each * sum(lesson.data["students"] for lesson in lessons)
    return Learning(max(0.0, beside) / len(some), each / images)


def shares(
    budget: Budget, met: Met, learning: Learning, *, epoch: float, meeting: float, epochs: int, images: int, workers: int
) -> Shares:
    """Divide a budget.

    Args:
        epoch: seconds of an epoch of the skeleton.
        meeting: seconds of scoring it once.
        epochs: of a trial.
        images: to learn from.
        workers: side by side, who share a budget of wall-clock time.
    """
    long = 0 if met.mean_ap is not None else teacher_epochs(budget, epochs, epoch + meeting)
    teach = meeting + long * epoch + (2 * meeting + epoch if long and budget.kind != "trials" else 0.0)
    side = workers if budget.kind == "wall" else 1
    low, high = (each / side for each in learning.seconds(met.alternatives - met.learned, images))
    if budget.kind == "trials":
        return Shares(teach, (low, high), budget.amount, long)
    most = IMITATE_SHARE * budget.amount
    left = max(0.0, budget.amount - teach - min(high, most))
    return Shares(teach, (min(low, most), min(high, most)), left, long, limited=low > most)


def climbs(legs: list[float], assembled: float) -> tuple[float, float]:
    """What a trial costs beside its assembled evaluation: on average over all (see `AssembledJobs.shares`), and of one that
    goes all the way.

    Args:
        legs: seconds of training and scoring from each rung to the next.
        assembled: seconds of assembling and scoring, before each of them.
    """
    each = [assembled + leg for leg in legs]
    return ASSEMBLED_SHARE * sum(seconds / FACTOR**place for place, seconds in enumerate(each)), sum(each)


def too_little(config: RunConfig, met: Met, seconds: float) -> str:
    """Why a search that may imitate will not, where an epoch of the skeleton takes so many seconds; empty where it will."""
    budget = Budget.parse(config.budget)
    if met.mean_ap is not None:
        return ""
    epochs = teacher_epochs(budget, config.epochs, seconds * (config.held if budget.kind == "device" else 1))
    least = worthwhile_epochs(config.epochs)
    return (
        ""
        if epochs >= least
        else f"from scratch: the budget buys a teacher {epochs} epochs, imitation is worth it from {least} on"
    )


def lines(budget: Budget, met: Met, found: Shares) -> list[str]:
    """The two phases in words."""

    def part(seconds: float) -> str:
        return duration(seconds) + (f", {seconds / budget.amount:.0%} of the budget" if budget.kind != "trials" else "")

    trained = f"; {found.epochs} epoch{'s'[: found.epochs > 1]}" if found.epochs else ""
    told = [f"teach      {met.words}{trained}: {part(found.teach)}"]
    known = f"{met.learned:,} of {met.alternatives:,} alternatives have learned already"
    if met.learned == met.alternatives:
        return [*told, f"imitate    {known}"]
    low, high = map(duration, found.imitate)
    time = low if low == high else f"{low} to {high}, as more or fewer are good enough as they begin"
    limit = "" if budget.kind == "trials" else f" (about {IMITATE_SHARE:.0%} of the budget"
    limit += ", so some learn when an architecture needs them)" if found.limited else ")" if limit else ""
    return [*told, f"imitate    {known}; the others: {time}{limit}"]


def _done(executor: Executor, attempt: Attempt, folder: Path) -> tuple[Mapping[str, Any], list[Progress], float]:
    """One job's result, what it reported on the way, and its seconds."""
    executor.start(attempt)
    reports: list[Progress] = []
    while True:
        for event in executor.poll(POLL_SECONDS):
            if isinstance(event, Progress):
                reports.append(event)
            elif not isinstance(event, Result):
                raise StoppedError(f"imitation cannot be rehearsed: {event.reason}", f"see {folder}")
            elif "fault" in event.data:
                raise StartError(event.data["fault"], event.data["cure"])
            else:
                return event.data, reports, event.seconds
