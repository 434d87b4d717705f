"""A trained architecture as an Ultralytics checkpoint: it loads with `YOLO(path)`, trains on, exports."""

from __future__ import annotations

import io
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import torch
import ultralytics
from ultralytics.nn.tasks import BaseModel, guess_model_task

from nas.files import write_whole


def save_checkpoint(model: BaseModel, path: Path, names: Sequence[str], left_out: str | None = None) -> None:
    """Write a model in half precision, as Ultralytics' own checkpoints are.

    Args:
        names: the classes' names; Ultralytics' own numbers stand where there are none.
        left_out: the split whose held-out part it was not trained on, as the model's attribute of that name. A training that
            goes on from the checkpoint makes a model of its own, without it.

    Raises:
        OSError: the file cannot be written; one from before stays.
    """
    copy = deepcopy(model).to("cpu", memory_format=torch.contiguous_format).eval().half()
    copy.criterion = None
    copy.left_out = left_out
    if names:
        copy.names = dict(enumerate(names))
    for parameter in copy.parameters():
        parameter.requires_grad_(False)
    file = io.BytesIO()
    known = {"epoch": -1, "model": copy, "ema": None, "optimizer": None, "train_args": {"task": guess_model_task(copy)}}
    torch.save({**known, "version": ultralytics.__version__, "license": "AGPL-3.0"}, file)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, file.getvalue())
