"""What workers do: price an architecture, train a proxy. Functions of plain data, called by name in a worker process."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from nas.space.skeleton import TASKS

PRICE = "nas.execution.work:price"
TRAIN = "nas.execution.work:train"
TRY_WEIGHTS = "nas.execution.work:try_weights"

Report = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class PriceJob:
    """Measure the latency of a model on a target.

    `target` is its full name, `model` a resolved model YAML as a mapping; what is far over `limit_ms` is not measured
    to the last percent. With a checkpoint of other classes a head may get another width, so `weights` count here too.
    """

    model: Mapping[str, Any]
    target: str
    imgsz: int
    limit_ms: float | None = None
    weights: str | None = None


@dataclass(frozen=True)
class TrainJob:
    """Train a proxy of `model` on a part of the training images and score it on the held-out rest.

    What the architecture kept starts from the checkpoint `weights`, where there is one. `root` is the folder that the
    dataset YAML's `path` was found to mean. `held_out` is the rest's share, drawn with `split_seed`, so that all trials of
    a run share one split.
    """

    model: Mapping[str, Any]
    data: str
    root: str
    cache: str
    imgsz: int
    epochs: int
    batch: int
    lr0: float
    held_out: float
    split_seed: int
    device: str
    threads: int
    weights: str | None = None


@dataclass(frozen=True)
class WeightsJob:
    """Try the checkpoint `weights` on the skeleton `model`."""

    model: Mapping[str, Any]
    weights: str


def price(payload: Mapping[str, Any], seed: int, report: Report) -> dict[str, Any]:
    """Latency, parameters and multiply-adds of a `PriceJob`'s model; values of weights do not matter: they are drawn."""
    import torch  # noqa: PLC0415  (workers only)

    from nas.latency.cache import as_price  # noqa: PLC0415
    from nas.latency.measure import measure  # noqa: PLC0415
    from nas.latency.runtimes import SESSIONS  # noqa: PLC0415
    from nas.latency.target import Target  # noqa: PLC0415
    from nas.yolo.build import inference_form, multiply_adds, parameters  # noqa: PLC0415

    job = PriceJob(**payload)
    target = Target.parse(job.target)
    torch.manual_seed(seed)
    model = inference_form(_model(job)[0])
    params, gmacs = parameters(model), multiply_adds(model, job.imgsz) / 1e9
    session = SESSIONS[target.kind](model, target, job.imgsz)
    session.run()
    report({"quiet": True})
    return as_price(measure(session.run, job.limit_ms), params, gmacs)


def train(payload: Mapping[str, Any], seed: int, report: Report) -> dict[str, Any]:
    """mAP of a `TrainJob` on the held-out part; reports `{epoch, epochs, loss}` after every epoch.

    With a checkpoint, `transferred` is how many of how many tensors have come from it.
    """
    import torch  # noqa: PLC0415  (workers only)

    from nas.errors import UnreachableError  # noqa: PLC0415
    from nas.training.proxy import Recipe, train_proxy  # noqa: PLC0415

    job = TrainJob(**payload)
    if job.device.startswith("cuda") and not torch.cuda.is_available():
        raise UnreachableError("no CUDA device found on this worker", "search with --device cpu")
    torch.set_num_threads(job.threads)
    polygons = TASKS[job.model["head"][-1][2]] == "segment"
    fit, held_out, nc = _images(job.data, job.root, job.cache, job.imgsz, job.held_out, job.split_seed, polygons)
    torch.manual_seed(seed)
    model, transferred = _model(job)
    outcome = train_proxy(
        model,
        fit,
        held_out,
        nc=nc,
        epochs=job.epochs,
        recipe=replace(Recipe(), batch=job.batch, lr=job.lr0),
        seed=seed,
        device=torch.device(job.device),
        report=lambda progress: report(asdict(progress)),
    )
    return {**asdict(outcome), **({"transferred": transferred} if transferred else {}), "pid": os.getpid()}


def try_weights(payload: Mapping[str, Any], seed: int, report: Report) -> dict[str, Any]:  # noqa: ARG001  (as all kinds of work)
    """How many of how many tensors a `WeightsJob`'s checkpoint gives to the skeleton, `{transferred}`, or why it cannot be
    used, `{fault, cure}`."""
    from nas.errors import InputError  # noqa: PLC0415
    from nas.yolo.build import build  # noqa: PLC0415
    from nas.yolo.weights import check  # noqa: PLC0415

    job = WeightsJob(**payload)
    try:
        return {"transferred": check(Path(job.weights), build(dict(job.model)))}
    except InputError as error:
        return {"fault": error.message, "cure": error.hint}


def _model(job: PriceJob | TrainJob) -> tuple[Any, tuple[int, int] | None]:
    """The job's model, what it kept taken from the job's checkpoint, and how much that was."""
    from nas.yolo.build import build  # noqa: PLC0415
    from nas.yolo.weights import read_weights, transfer  # noqa: PLC0415

    model = build(dict(job.model))
    return model, transfer(model, read_weights(Path(job.weights))) if job.weights else None


@lru_cache(maxsize=2)
def _images(
    data: str, root: str, cache: str, imgsz: int, held_out: float, split_seed: int, polygons: bool
) -> tuple[Any, Any, int]:
    """The training part, the held-out part and the number of classes; decoded once per host, kept by this process."""
    from nas.dataset.description import read_dataset  # noqa: PLC0415
    from nas.dataset.labels import read_labels, read_polygons  # noqa: PLC0415
    from nas.yolo.decode import decode  # noqa: PLC0415

    dataset = read_dataset(Path(data), Path(root), polygons=polygons)
    parts = []
    for indices in dataset.split(held_out, split_seed):
        paths = [dataset.train[i] for i in indices]
        labels = [read_labels(path, dataset.nc) for path in paths]
        outlines = [read_polygons(path, dataset.nc) for path in paths] if polygons else None
        parts.append(decode(paths, labels, imgsz, Path(cache) / "images", outlines))
    return parts[0], parts[1], dataset.nc
