"""What a worker does to score kept weights on `val`: for searches whose held-out part has been learned from."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nas.execution.work import Report

VALIDATE = "nas.execution.validate:validate"


@dataclass(frozen=True)
class ValidateJob:
    """Score the checkpoint `weights` on `part` of the images; `polygons` for one of masks. `root` is the folder that the
    dataset YAML's `path` was found to mean, `blocks` are the user's block files."""

    weights: str
    data: str
    root: str
    cache: str
    imgsz: int
    device: str
    threads: int
    polygons: bool = False
    part: str = "val"
    blocks: list[str] = field(default_factory=list)


def validate(payload: Mapping[str, Any], seed: int, report: Report) -> dict[str, Any]:  # noqa: ARG001  (as all kinds of work)
    """mAP of a `ValidateJob`'s weights: `map`, `map50`, `box_map`, over so many `images`, in `seconds`."""
    from copy import deepcopy  # noqa: PLC0415

    import torch  # noqa: PLC0415  (workers only)

    from nas.blocks.user import load_blocks  # noqa: PLC0415
    from nas.dataset.description import read_dataset  # noqa: PLC0415
    from nas.dataset.labels import read_labels, read_polygons  # noqa: PLC0415
    from nas.yolo.decode import decode  # noqa: PLC0415
    from nas.yolo.metrics import evaluate  # noqa: PLC0415
    from nas.yolo.weights import read_weights  # noqa: PLC0415

    began, job = time.perf_counter(), ValidateJob(**payload)
    torch.set_num_threads(job.threads)
    load_blocks(*job.blocks)
    dataset = read_dataset(Path(job.data), Path(job.root), polygons=job.polygons)
    paths = getattr(dataset, job.part)
    labels = [read_labels(path, dataset.nc) for path in paths]
    outlines = [read_polygons(path, dataset.nc) for path in paths] if job.polygons else None
    images = decode(paths, labels, job.imgsz, Path(job.cache) / "images", outlines)
    device = torch.device(job.device)
    model = deepcopy(read_weights(Path(job.weights))).to(device, memory_format=torch.channels_last)
    metrics = evaluate(model, images, dataset.nc, batch=32, device=device)
    fitness, seconds = metrics.fitness, time.perf_counter() - began
    known = {"map": fitness.map, "map50": fitness.map50, "box_map": metrics.boxes.map}
    return {**known, "images": len(images), "seconds": seconds}
