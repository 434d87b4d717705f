"""What workers do: price an architecture, score it untrained, train its proxy. Functions of plain data, called by name."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.execution.gang import together
from nas.limits import Limits
from nas.space.skeleton import TASKS

if TYPE_CHECKING:
    import torch

    from nas.training.peers import Peers
    from nas.training.proxy import Progress
    from nas.training.recipe import Recipe

PRICE = "nas.execution.work:price"
TRAIN = "nas.execution.work:train"
TRAIN_PART = "nas.execution.work:train_part"
TRY_WEIGHTS = "nas.execution.work:try_weights"
SCORES = "nas.execution.work:scores"
WRITE_PROBES = "nas.execution.work:write_probes"
UNSTABLE = "latency unstable"

Report = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class PriceJob:
    """Price a model on a target.

    `target` is its full name, `imgsz` the side of its image unless it names its own, `model` a resolved model YAML as a
    mapping. `limits` are those of `nas.limits.Limits`, by name: what is far over that on latency is not measured to the last
    percent, and what is over another is not timed at all, nor what is not to be `timed`. `allow_noisy`: a figure in any case,
    marked and with a wider interval. `rows`: profiled too. With a checkpoint of other classes a head may get another width, so
    `weights` count here too. `blocks` are the user's block files that the model needs, as for every job.
    """

    model: Mapping[str, Any]
    target: str
    imgsz: int
    limits: Mapping[str, float | None] = field(default_factory=dict)
    weights: str | None = None
    allow_noisy: bool = False
    rows: bool = False
    timed: bool = True
    blocks: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class ScoreJob:
    """Score `model` untrained, by a few images of the part that a `TrainJob` of the same fields trains on."""

    model: Mapping[str, Any]
    data: str
    root: str
    cache: str
    imgsz: int
    held_out: float
    split_seed: int
    blocks: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class TrainJob:
    """Train a proxy of `model` on a part of the training images and score it on the held-out rest.

    What the architecture kept starts from the checkpoint `weights`, where there is one. `root` is the folder that the
    dataset YAML's `path` was found to mean. `held_out` is the rest's share, drawn with `split_seed`, so that all trials of
    a run share one split; of the training part `fraction` is used. `rungs` are epochs, `until` the one to stop at (the last
    where None). `state` is the file from which an interrupted training goes on, `keep` where the trained weights go, with
    the classes' `names`; None keeps neither. `left_out` names the split whose held-out part what is kept has not seen, for
    whoever begins with it (`nas.syllabus.split_name`). `teacher` is a checkpoint whose outputs teach beside the labels. On
    more than one of the worker's `devices` a process for each trains its part of every batch; of CPUs only tests ask for more.
    """

    model: Mapping[str, Any]
    data: str
    root: str
    cache: str
    imgsz: int
    rungs: list[int]
    batch: int
    lr0: float
    held_out: float
    split_seed: int
    device: str
    threads: int
    devices: int = 1
    names: list[str] = field(default_factory=list)
    weights: str | None = None
    fraction: float = 1.0
    until: int | None = None
    state: str | None = None
    keep: str | None = None
    blocks: list[str] = field(default_factory=list)
    teacher: str | None = None
    left_out: str | None = None


@dataclass(frozen=True)
class WeightsJob:
    """Try the checkpoint `weights` on the skeleton `model`; `names` are the data's classes, `left_out` its split."""

    model: Mapping[str, Any]
    weights: str
    names: list[str]
    blocks: list[str] = field(default_factory=list)
    left_out: str | None = None


@dataclass(frozen=True)
class ProbesJob:
    """Write `architectures` of the search space `space` as a probe folder (`nas.latency.probes.Probes` says what the other
    fields mean); the device has the table `table` already."""

    folder: str
    space: str
    architectures: list[Mapping[str, Any]]
    imgsz: list[int]
    nc: int
    batch: int
    table: str
    then: str
    blocks: list[str] = field(default_factory=list)


def price(payload: Mapping[str, Any], seed: int, report: Report) -> dict[str, Any]:
    """Latency and footprint of a `PriceJob`'s model; its footprint alone where that breaks a limit. Values of weights do
    not matter: they are drawn.

    `rows`, where asked for and where the runtime has a profile, are the milliseconds of each row by its index as text; they
    add up to `ms`.

    `measured_on`, of what was timed, is the stamp of the target on this machine (`Target.stamp`).

    Raises:
        UnstableError: its message begins with `UNSTABLE` and is alike where the cause is alike.
    """
    import torch  # noqa: PLC0415  (workers only)

    from nas.errors import InputError, UnstableError  # noqa: PLC0415
    from nas.latency.cache import as_price  # noqa: PLC0415
    from nas.latency.measure import Unstable  # noqa: PLC0415
    from nas.latency.runtimes import SESSIONS  # noqa: PLC0415
    from nas.latency.target import Target  # noqa: PLC0415
    from nas.latency.timing import timed  # noqa: PLC0415
    from nas.yolo.build import inference_form, is_end2end  # noqa: PLC0415
    from nas.yolo.footprint import footprint  # noqa: PLC0415

    job = PriceJob(**payload)
    target = Target.parse(job.target).at(job.imgsz)
    if target.kind not in SESSIONS:
        raise InputError(f"target {target} is another device's: nothing can be measured on it here", "measure it there")
    torch.manual_seed(seed)
    model = inference_form(_model(job)[0])
    shape, written_out = (target.batch, 3, target.height, target.width), target.runtime == "onnxruntime"
    known = asdict(footprint(model, shape, target.precision, attention_written_out=written_out))
    known["end2end"] = is_end2end(model)
    limits = Limits(**job.limits)
    if not job.timed or limits.broken(known):
        return known
    session = SESSIONS[target.kind](model, target)
    session.run()
    report({"quiet": True})
    try:
        latency = timed(session, target, limits.ms, allow_noisy=job.allow_noisy)
    except Unstable as error:
        raise UnstableError(f"{UNSTABLE}: {error}", "let the machine come to rest, or --allow-noisy") from error
    rows = session.rows() if job.rows else None
    scale = latency.ms / sum(rows.values()) if rows else 1.0
    profile = {"rows": {str(row): ms * scale for row, ms in rows.items()}} if rows else {}
    return as_price(latency, known) | profile | {"measured_on": target.stamp()}


def write_probes(payload: Mapping[str, Any], seed: int, report: Report) -> dict[str, Any]:  # noqa: ARG001  (as all kinds of work)
    """Write the folder of a `ProbesJob`; how many `bytes` its models have."""
    from nas.blocks.user import load_blocks  # noqa: PLC0415
    from nas.latency import probes  # noqa: PLC0415
    from nas.space.architecture import Architecture  # noqa: PLC0415
    from nas.space.reader import read_space  # noqa: PLC0415

    job = ProbesJob(**payload)
    load_blocks(*job.blocks)
    space = read_space(Path(job.space))
    chosen = [Architecture.from_dict(entry) for entry in job.architectures]
    height, width = job.imgsz
    wanted = probes.Probes(space.skeleton, chosen, (height, width), job.nc, job.batch, job.table, job.then)
    return {"bytes": probes.write_probes(Path(job.folder), wanted, more=True, say=lambda line: report({"note": line}))}


def scores(payload: Mapping[str, Any], seed: int, report: Report) -> dict[str, float]:  # noqa: ARG001  (takes a second)
    """Zero-cost scores of a `ScoreJob`'s model by name (`nas.training.zero_cost.SCORES`), its weights drawn from `seed`.

    All jobs of one split see the same images. On one thread, so that a score does not depend on how many there are.
    """
    import torch  # noqa: PLC0415  (workers only)

    from nas.training.zero_cost import score_batch, zero_cost_scores  # noqa: PLC0415

    job = ScoreJob(**payload)
    torch.set_num_threads(1)
    fit, _, _ = _images(job)
    torch.manual_seed(seed)
    return zero_cost_scores(_built(job), score_batch(fit, job.split_seed))


def train(payload: Mapping[str, Any], seed: int, report: Report) -> dict[str, Any]:
    """mAP of a `TrainJob` on the held-out part; reports `{epoch, epochs, loss}` after every epoch. Without memory for its batch
    it is tried again with half of it, and the result says `halved`.

    With a checkpoint, `transferred` is how many of how many tensors have come from it. Images that cannot be read are listed
    in `skipped`; where they are too many, there is only `{fault, cure}`: no other trial could do better.
    """
    job = TrainJob(**payload)

    def run(*, halved: bool) -> dict[str, Any]:
        if job.devices == 1:
            return _trained(job, seed, report, halved=halved)
        _give_back()
        own = {"job": asdict(job), "halved": halved}
        return dict(together(job.devices, TRAIN_PART, own, seed, report))

    try:
        return run(halved=False)
    except MemoryError:
        if job.devices > 1 and job.batch // 2 < job.devices:
            raise
        # what the first try had taken is free again once its frames are gone
        report({"epoch": 0, "epochs": job.rungs[-1], "note": f"out of memory at batch {job.batch}; tried again with half"})
        if job.state is not None:
            Path(job.state).unlink(missing_ok=True)
    _give_back()
    return {**run(halved=True), "halved": True}


def train_part(payload: Mapping[str, Any], seed: int, report: Report) -> dict[str, Any]:
    """What one of those does that train a model together: `{job, halved, rank, count, meet}`, see `nas.execution.gang`. Returns
    as `train`, to each the same."""
    import torch  # noqa: PLC0415  (workers only)

    from nas.errors import UnreachableError  # noqa: PLC0415
    from nas.training.peers import Peers  # noqa: PLC0415

    job, rank, count = TrainJob(**payload["job"]), payload["rank"], payload["count"]
    device = torch.device("cpu")
    if job.device == "cuda":
        if torch.cuda.device_count() < count:
            what = f"{torch.cuda.device_count()} CUDA devices on this worker, {count} are needed for a trial"
            raise UnreachableError(what, "lower --gpus-per-trial")
        if len(models := {torch.cuda.get_device_name(index) for index in range(count)}) > 1:
            what = f"the GPUs of one trial differ: {', '.join(sorted(models))}"
            raise UnreachableError(what, "lower --gpus-per-trial, or search where a host has GPUs of one model")
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    try:
        return _trained(job, seed, report, halved=payload["halved"], peers=Peers.meet(payload["meet"], rank, count, device))
    finally:
        _give_back()


def _give_back() -> None:
    """Memory of the GPU that this process keeps for itself, if it has used any."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _trained(job: TrainJob, seed: int, report: Report, *, halved: bool, peers: Peers | None = None) -> dict[str, Any]:
    """One try of a `TrainJob`, at half its batch where `halved`. Raises MemoryError."""
    import torch  # noqa: PLC0415  (workers only)

    from nas.errors import InputError, UnreachableError  # noqa: PLC0415
    from nas.training.checkpoint import StateError  # noqa: PLC0415
    from nas.training.peers import Peers  # noqa: PLC0415
    from nas.training.precision import CHOICES, training_dtype  # noqa: PLC0415
    from nas.training.recipe import Recipe  # noqa: PLC0415

    peers = peers or Peers()
    if job.device.startswith("cuda") and not torch.cuda.is_available():
        raise UnreachableError("no CUDA device found on this worker", "search with --device cpu")
    torch.set_num_threads(job.threads)
    try:
        _images(job)
    except InputError as error:
        return {"fault": error.message, "cure": error.hint}
    precision = CHOICES[peers.told(CHOICES.index(training_dtype(torch.device(job.device), Path(job.cache))))]
    recipe = replace(Recipe(), batch=job.batch, lr=job.lr0)
    how = job, seed, report, recipe.halved() if halved else recipe, precision, peers
    try:
        try:
            return _scored(*how)
        except StateError as error:  # of a machine, a version or a batch that was another: not worth a trial
            report({"epoch": 0, "epochs": job.rungs[-1], "note": f"{error.message}; trained anew"})
            Path(job.state or "").unlink(missing_ok=True)
            return _scored(*how)
    except torch.OutOfMemoryError as error:
        raise MemoryError from error


def _scored(job: TrainJob, seed: int, report: Report, recipe: Recipe, precision: torch.dtype, peers: Peers) -> dict[str, Any]:
    import torch  # noqa: PLC0415  (workers only)

    from nas.training.proxy import train_proxy  # noqa: PLC0415
    from nas.yolo.checkpoints import save_checkpoint  # noqa: PLC0415
    from nas.yolo.weights import read_weights  # noqa: PLC0415

    def told(progress: Progress) -> None:
        print(progress, flush=True)  # noqa: T201  (the attempt's log)
        report(asdict(progress))

    fit, held_out, nc = _images(job)
    torch.manual_seed(seed)
    model, transferred = _model(job)
    outcome = train_proxy(
        model,
        fit,
        held_out,
        nc=nc,
        rungs=job.rungs,
        until=job.until,
        recipe=recipe,
        seed=seed,
        device=torch.device(job.device),
        precision=precision,
        report=told,
        state=None if job.state is None else Path(job.state),
        peers=peers,
        teacher=None if job.teacher is None else deepcopy(read_weights(Path(job.teacher))),
    )
    if job.keep is not None and peers.first:
        save_checkpoint(model, Path(job.keep), job.names, job.left_out)
    skipped = [str(path) for path in fit.skipped]
    known = {"transferred": transferred, "skipped": skipped, "pid": os.getpid()}
    return {**asdict(outcome), **{name: value for name, value in known.items() if value}}


def try_weights(payload: Mapping[str, Any], seed: int, report: Report) -> dict[str, Any]:  # noqa: ARG001  (as all kinds of work)
    """How many of how many tensors a `WeightsJob`'s checkpoint gives to the skeleton, and whether it was trained on other
    classes, or by a search that left this held-out part out, `{transferred, fresh}`; or why it cannot be used, `{fault, cure}`.
    """
    from nas.errors import InputError  # noqa: PLC0415
    from nas.yolo.weights import check, other_classes, read_weights  # noqa: PLC0415

    job = WeightsJob(**payload)
    try:
        given = check(Path(job.weights), _built(job))
        model = read_weights(Path(job.weights))
        left_out = job.left_out is not None and getattr(model, "left_out", None) == job.left_out
        return {"transferred": given, "fresh": left_out or other_classes(model, job.names) is not None}
    except InputError as error:
        return {"fault": error.message, "cure": error.hint}


def _model(job: PriceJob | TrainJob) -> tuple[Any, tuple[int, int] | None]:
    """The job's model, what it kept taken from the job's checkpoint, and how much that was."""
    from nas.yolo.weights import read_weights, transfer  # noqa: PLC0415

    model = _built(job)
    return model, transfer(model, read_weights(Path(job.weights))) if job.weights else None


def _built(job: PriceJob | TrainJob | WeightsJob | ScoreJob) -> Any:
    """The job's model, drawn anew; the user's block files run here, and draw nothing that the model would miss."""
    import torch  # noqa: PLC0415  (workers only)

    from nas.blocks.user import load_blocks  # noqa: PLC0415
    from nas.yolo.build import build  # noqa: PLC0415

    with torch.random.fork_rng(devices=[]):
        load_blocks(*job.blocks)
    return build(dict(job.model))


def _images(job: TrainJob | ScoreJob) -> tuple[Any, Any, int]:
    polygons = TASKS[job.model["head"][-1][2]] == "segment"
    fraction = job.fraction if isinstance(job, TrainJob) else 1.0
    return images_of(job.data, job.root, job.cache, job.imgsz, job.held_out, job.split_seed, polygons, fraction)


@lru_cache(maxsize=2)
def images_of(
    data: str, root: str, cache: str, imgsz: int, held_out: float, split_seed: int, polygons: bool, fraction: float = 1.0
) -> tuple[Any, Any, int]:
    """The part to train on, of which `fraction` is taken, the held-out part, and the number of classes.

    All of `train` is decoded once per host, whatever the split; this process keeps what it has read.
    """
    from nas.dataset.description import read_dataset  # noqa: PLC0415
    from nas.dataset.labels import read_labels, read_polygons  # noqa: PLC0415
    from nas.yolo.decode import decode  # noqa: PLC0415

    dataset = read_dataset(Path(data), Path(root), polygons=polygons)
    labels = [read_labels(path, dataset.nc) for path in dataset.train]
    outlines = [read_polygons(path, dataset.nc) for path in dataset.train] if polygons else None
    images = decode(dataset.train, labels, imgsz, Path(cache) / "images", outlines)
    unreadable = set(images.skipped)
    readable = (index for index, path in enumerate(dataset.train) if path not in unreadable)
    row_of = {index: row for row, index in enumerate(readable)}
    fit, rest = ([row_of[i] for i in part if i in row_of] for part in dataset.split(held_out, split_seed))
    fit = sorted(random.Random(split_seed).sample(fit, max(1, round(fraction * len(fit)))))
    return images.take(fit), images.take(rest), dataset.nc
