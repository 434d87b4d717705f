"""What workers do: price an architecture, score it untrained, train its proxy. Functions of plain data, called by name."""

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
SCORES = "nas.execution.work:scores"

Report = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class PriceJob:
    """Measure the latency of a model on a target.

    `target` is its full name, `model` a resolved model YAML as a mapping; what is far over `limit_ms` is not measured
    to the last percent.
    """

    model: Mapping[str, Any]
    target: str
    imgsz: int
    limit_ms: float | None = None


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


@dataclass(frozen=True)
class TrainJob:
    """Train a proxy of `model` on a part of the training images and score it on the held-out rest.

    `root` is the folder that the dataset YAML's `path` was found to mean. `held_out` is the rest's share, drawn with
    `split_seed`, so that all trials of a run share one split.
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


def price(payload: Mapping[str, Any], seed: int, report: Report) -> dict[str, Any]:
    """Latency, parameters and multiply-adds of a `PriceJob`'s model; weights do not matter and are drawn from `seed`."""
    import torch  # noqa: PLC0415  (workers only)

    from nas.latency.cache import as_price  # noqa: PLC0415
    from nas.latency.measure import measure  # noqa: PLC0415
    from nas.latency.runtimes import SESSIONS  # noqa: PLC0415
    from nas.latency.target import Target  # noqa: PLC0415
    from nas.yolo.build import build, inference_form, multiply_adds, parameters  # noqa: PLC0415

    job = PriceJob(**payload)
    target = Target.parse(job.target)
    torch.manual_seed(seed)
    model = inference_form(build(dict(job.model)))
    params, gmacs = parameters(model), multiply_adds(model, job.imgsz) / 1e9
    session = SESSIONS[target.kind](model, target, job.imgsz)
    session.run()
    report({"quiet": True})
    return as_price(measure(session.run, job.limit_ms), params, gmacs)


def scores(payload: Mapping[str, Any], seed: int, report: Report) -> dict[str, float]:  # noqa: ARG001  (takes a second)
    """Zero-cost scores of a `ScoreJob`'s model by name (`nas.training.zero_cost.SCORES`), its weights drawn from `seed`.

    All jobs of one split see the same images. On one thread, so that a score does not depend on how many there are.
    """
    import torch  # noqa: PLC0415  (workers only)

    from nas.training.zero_cost import score_batch, zero_cost_scores  # noqa: PLC0415
    from nas.yolo.build import build  # noqa: PLC0415

    job = ScoreJob(**payload)
    torch.set_num_threads(1)
    polygons = TASKS[job.model["head"][-1][2]] == "segment"
    fit, _, _ = _images(job.data, job.root, job.cache, job.imgsz, job.held_out, job.split_seed, polygons)
    torch.manual_seed(seed)
    return zero_cost_scores(build(dict(job.model)), score_batch(fit, job.split_seed))


def train(payload: Mapping[str, Any], seed: int, report: Report) -> dict[str, Any]:
    """mAP of a `TrainJob` on the held-out part; reports `{epoch, epochs, loss}` after every epoch."""
    import torch  # noqa: PLC0415  (workers only)

    from nas.errors import UnreachableError  # noqa: PLC0415
    from nas.training.proxy import Recipe, train_proxy  # noqa: PLC0415
    from nas.yolo.build import build  # noqa: PLC0415

    job = TrainJob(**payload)
    if job.device.startswith("cuda") and not torch.cuda.is_available():
        raise UnreachableError("no CUDA device found on this worker", "search with --device cpu")
    torch.set_num_threads(job.threads)
    polygons = TASKS[job.model["head"][-1][2]] == "segment"
    fit, held_out, nc = _images(job.data, job.root, job.cache, job.imgsz, job.held_out, job.split_seed, polygons)
    torch.manual_seed(seed)
    outcome = train_proxy(
        build(dict(job.model)),
        fit,
        held_out,
        nc=nc,
        epochs=job.epochs,
        recipe=replace(Recipe(), batch=job.batch, lr=job.lr0),
        seed=seed,
        device=torch.device(job.device),
        report=lambda progress: report(asdict(progress)),
    )
    return {**asdict(outcome), "pid": os.getpid()}


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
