"""What a worker does so that nothing that is timed after it has to wait for images: it decodes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nas.execution.work import Report, TrainJob, images_of
from nas.space.skeleton import TASKS

DECODE = "nas.execution.decode:decode"


def decode(payload: Mapping[str, Any], seed: int, report: Report) -> dict[str, Any]:  # noqa: ARG001  (as all kinds of work)
    """Its host has the `images`, so many, of a `TrainJob` in its cache afterwards; `{fault, cure}` where there are none."""
    from nas.errors import InputError  # noqa: PLC0415

    job = TrainJob(**payload)
    polygons = TASKS[job.model["head"][-1][2]] == "segment"
    try:
        where = job.data, job.root, job.cache, job.imgsz
        fit, held_out, _ = images_of(*where, job.held_out, job.split_seed, polygons, job.fraction)
    except InputError as error:
        return {"fault": error.message, "cure": error.hint}
    return {"images": len(fit) + len(held_out)}
