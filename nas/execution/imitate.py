"""What workers do in a search by imitation: let blocks learn, judge an architecture without training it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.alive import locked
from nas.execution.work import Report, images_of
from nas.seeds import derive
from nas.space.skeleton import TASKS

if TYPE_CHECKING:
    from nas.imitation.alternatives import Alternative
    from nas.imitation.teacher import Teacher

IMITATE = "nas.execution.imitate:imitate"
ASSEMBLE = "nas.execution.imitate:assemble"
MEET = "nas.execution.imitate:meet"
TUNE = "nas.execution.imitate:tune"
SCORED = 32  # images at a time, where there is memory for them


@dataclass(frozen=True)
class TeacherJob:
    """What all kinds of this work need: the skeleton's resolved model YAML with the data's classes, a checkpoint of it that
    knows the classes `names`, and the data, divided as for a `TrainJob`: the split `left_out`. `blocks` are the user's block
    files."""

    skeleton: Mapping[str, Any]
    teacher: str
    names: list[str]
    data: str
    root: str
    cache: str
    imgsz: int
    held_out: float
    split_seed: int
    device: str
    threads: int
    fraction: float = 1.0
    blocks: list[str] = field(default_factory=list)
    left_out: str | None = None


@dataclass(frozen=True)
class ImitateJob(TeacherJob):
    """Let `alternatives` (`Alternative.plain`) learn, by `lessons` (`Lessons.plain`; the usual ones where empty). They come to
    lie in the folder `library`, where one that was interrupted goes on."""

    alternatives: list[dict[str, Any]] = field(default_factory=list)
    library: str = ""
    lessons: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class AssembleJob(TeacherJob):
    """Put the architecture `model` together from the teacher and `library`, and score it as it is. What the library lacks
    learns first, by `lessons`. `keep` is where its weights go: a checkpoint that a `TrainJob` takes as its `weights`. Its batch
    norms are settled by `settle` batches: always where `unless` is None, else where its mAP is below that and they help."""

    model: Mapping[str, Any] = field(default_factory=dict)
    library: str = ""
    keep: str | None = None
    settle: int = 0
    unless: float | None = None
    lessons: dict[str, Any] = field(default_factory=dict)


def meet(payload: Mapping[str, Any], seed: int, report: Report) -> dict[str, Any]:  # noqa: ARG001  (as all kinds of work)
    """The teacher of a `TeacherJob`: its `digest`, `map` and `map50` on the held-out part, and whether it is known not to have
    seen that, `left_out`; `{shortfall, fresh}` where the checkpoint can only start a teacher's training, `fresh` if it was
    trained on other classes; `{fault, cure}` where it is good for nothing."""
    import torch  # noqa: PLC0415  (workers only)

    from nas.errors import InputError  # noqa: PLC0415
    from nas.imitation.teacher import refuse_worthless, shortfall  # noqa: PLC0415
    from nas.yolo.weights import other_classes, read_weights  # noqa: PLC0415

    job = TeacherJob(**payload)
    try:
        _load_blocks(job)
        if reason := shortfall(Path(job.teacher), job.skeleton, job.names):
            return {"shortfall": reason, "fresh": other_classes(read_weights(Path(job.teacher)), job.names) is not None}
        torch.set_num_threads(job.threads)
        _, held_out, nc = _images(job)
        teacher, device = _teacher(job), torch.device(job.device)
        fitness = _scored(teacher.model.to(device), held_out, nc, device).fitness
        teacher.model.to("cpu")
        refuse_worthless(fitness.map)
    except InputError as error:
        return {"fault": error.message, "cure": error.hint}
    marked = getattr(read_weights(Path(job.teacher)), "left_out", None)
    left_out = job.left_out is not None and marked == job.left_out
    return {"digest": teacher.digest, "map": fitness.map, "map50": fitness.map50, "left_out": left_out}


def imitate(payload: Mapping[str, Any], seed: int, report: Report) -> dict[str, Any]:  # noqa: ARG001  (see `_learn`)
    """Let an `ImitateJob`'s alternatives learn; reports `{epoch, epochs, error, students}` after every epoch.

    Returns by key what the library knows of each, dropped ones with their reason.
    """
    import torch  # noqa: PLC0415  (workers only)

    from nas.imitation.alternatives import Alternative  # noqa: PLC0415
    from nas.imitation.library import Library  # noqa: PLC0415

    job = ImitateJob(**payload)
    torch.set_num_threads(job.threads)
    alternatives = [Alternative.of(plain) for plain in job.alternatives]
    _learn(job, alternatives, report)
    library = Library(Path(job.library))
    entries = {alternative.key: library.get(alternative) for alternative in alternatives}
    return {"entries": {key: asdict(entry) for key, entry in entries.items() if entry is not None}}


def _learn(job: ImitateJob | AssembleJob, alternatives: Sequence[Alternative], report: Report) -> None:
    """Let the library have these. Workers that need the same one wait for each other; whoever teaches it draws alike."""
    import torch  # noqa: PLC0415  (workers only)

    from nas.imitation.channels import has_widths  # noqa: PLC0415
    from nas.imitation.course import Course  # noqa: PLC0415
    from nas.imitation.learn import Lessons  # noqa: PLC0415
    from nas.imitation.library import Library  # noqa: PLC0415
    from nas.training.precision import training_dtype  # noqa: PLC0415

    library = Library(Path(job.library))
    if not library.missing(alternatives) and has_widths(library.folder):
        return
    library.folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as locks:
        for alternative in sorted(library.missing(alternatives), key=lambda each: each.key):  # in one order: no deadlock
            locks.enter_context(locked(library.folder / alternative.key))
        _load_blocks(job)
        fit, held_out, _ = _images(job)
        device = torch.device(job.device)
        precision = training_dtype(device, Path(job.cache))
        lessons, seed = Lessons.of(job.lessons) if job.lessons else Lessons(), derive(job.split_seed, 0, "imitation")
        course = None
        while course is None:
            try:
                course = Course(job.skeleton, _teacher(job).model, fit, held_out, library, lessons, seed, device, precision)
            except (MemoryError, torch.OutOfMemoryError):  # already to look at the teacher takes too much
                if lessons.training.batch == 1:
                    raise
                lessons = replace(lessons, training=lessons.training.halved(), first=2 * lessons.first)  # the same images
        course.take(alternatives, lambda lesson: report(asdict(lesson)))


def assemble(payload: Mapping[str, Any], seed: int, report: Report) -> dict[str, Any]:  # noqa: ARG001  (draws nothing)
    """mAP of an `AssembleJob`'s network on the held-out part, untrained: `map`, `map50`, `box_map`, `seconds`, and the layers
    that are `unfit`, whose weights do not do what they have learned."""
    from copy import deepcopy  # noqa: PLC0415

    import torch  # noqa: PLC0415  (workers only)

    from nas.imitation.alternatives import differences  # noqa: PLC0415
    from nas.imitation.assemble import assembler_of  # noqa: PLC0415
    from nas.imitation.norms import settle_norms  # noqa: PLC0415
    from nas.training.augment import Augmentation, Batches, generator_of  # noqa: PLC0415
    from nas.yolo.checkpoints import save_checkpoint  # noqa: PLC0415

    began = time.perf_counter()
    job = AssembleJob(**payload)
    torch.set_num_threads(job.threads)
    _load_blocks(job)
    _learn(job, differences(job.model, job.skeleton), report)
    fit, held_out, nc = _images(job)
    device = torch.device(job.device)
    made = assembler_of(job.skeleton, _teacher(job).model, Path(job.library)).assemble(job.model)
    model = made.model.to(device, memory_format=torch.channels_last)
    batches = Batches(fit, device)
    order = torch.randperm(len(fit), generator=generator_of(job.split_seed))
    rows = torch.split(order, 16)[: job.settle]

    def settled() -> Any:
        settle_norms(model, (batches.make(part, Augmentation(), generator_of(0))["img"] for part in rows))
        return _scored(model, held_out, nc, device)

    if rows and job.unless is None:
        metrics = settled()
    else:
        metrics, before = _scored(model, held_out, nc, device), deepcopy(model.state_dict())
        if rows and metrics.fitness.map < (job.unless or 0.0):
            again = None
            with suppress(MemoryError, torch.OutOfMemoryError):  # scoring finds a batch that fits; unsettled it is usable too
                again = settled()
            if again is not None and again.fitness.map > metrics.fitness.map:
                metrics = again
            else:
                model.load_state_dict(before)
    if job.keep is not None:
        save_checkpoint(model, Path(job.keep), job.names)
    fitness, seconds = metrics.fitness, time.perf_counter() - began
    known = {"map": fitness.map, "map50": fitness.map50, "box_map": metrics.boxes.map, "seconds": seconds}
    return {**known, "unfit": list(made.unfit)}


def tune(payload: Mapping[str, Any], seed: int, report: Report) -> dict[str, Any]:
    """Train an assembled network on: `{assemble, train}` are an `AssembleJob` and the `TrainJob` whose `weights` it writes."""
    from nas.execution.work import train  # noqa: PLC0415

    start = Path(payload["train"]["weights"])
    start.parent.mkdir(parents=True, exist_ok=True)
    try:
        assemble(payload["assemble"], seed, report)
        return train(payload["train"], seed, report)
    finally:
        start.unlink(missing_ok=True)


def _images(job: TeacherJob) -> tuple[Any, Any, int]:
    polygons = TASKS[job.skeleton["head"][-1][2]] == "segment"
    return images_of(job.data, job.root, job.cache, job.imgsz, job.held_out, job.split_seed, polygons, job.fraction)


def _scored(model: Any, images: Any, nc: int, device: Any) -> Any:
    """Its metrics on some images, as many at a time as there is memory for."""
    import torch  # noqa: PLC0415  (workers only)

    from nas.yolo.metrics import evaluate  # noqa: PLC0415

    batch = SCORED
    while True:
        try:
            return evaluate(model, images, nc, batch=batch, device=device)
        except (MemoryError, torch.OutOfMemoryError):
            if batch == 1:
                raise
        batch //= 2


def _load_blocks(job: TeacherJob) -> None:
    import torch  # noqa: PLC0415  (workers only)

    from nas.blocks.user import load_blocks  # noqa: PLC0415

    with torch.random.fork_rng(devices=[]):  # the user's files run here, and draw nothing that a model would miss
        load_blocks(*job.blocks)


def _teacher(job: TeacherJob) -> Teacher:
    return _read_teacher(job.teacher, json.dumps(job.skeleton), tuple(job.names))


@lru_cache(maxsize=1)
def _read_teacher(path: str, skeleton: str, names: tuple[str, ...]) -> Teacher:
    """A worker's teacher stays with it."""
    from nas.imitation.teacher import read_teacher  # noqa: PLC0415

    return read_teacher(Path(path), json.loads(skeleton), names)
