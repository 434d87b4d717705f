"""The teacher: the skeleton, trained on the data of the search. What may be one, and what is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nas.errors import InputError, StartError
from nas.yolo.build import build
from nas.yolo.weights import check, other_classes, read_weights, transfer

WORTHLESS = 0.02  # mAP50-95 below which a teacher has nothing to teach


@dataclass(frozen=True)
class Teacher:
    """A trained skeleton in eval mode on the CPU, and the hex digest of its weights."""

    model: Any
    digest: str


def read_teacher(path: Path, skeleton: Mapping[str, Any], names: Sequence[str]) -> Teacher:
    """A checkpoint of the skeleton, trained on these classes.

    Args:
        path: a checkpoint of Ultralytics or of a training of ours.
        skeleton: the skeleton's resolved model YAML, with the data's number of classes.
        names: the data's classes.

    Raises:
        InputError: no checkpoint, or of another task, or one that can at most start a training (see `shortfall`).
    """
    if reason := shortfall(path, skeleton, names):
        raise InputError(f"{path}: no teacher yet: {reason}", "train the skeleton from it first, or give its best.pt")
    with torch.random.fork_rng(devices=[]):
        model = build(dict(skeleton))
    source = read_weights(path)
    transfer(model, source)  # gives the head the width that it has there
    model.load_state_dict(source.state_dict())
    return teacher_of(model)


def teacher_of(model: Any) -> Teacher:
    """A skeleton that was trained here, frozen."""
    model = model.to("cpu", memory_format=torch.contiguous_format).float().eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name}{tuple(tensor.shape)}".encode() + tensor.contiguous().numpy().tobytes())
    return Teacher(model, digest.hexdigest()[:16])


def shortfall(path: Path, skeleton: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """Why a checkpoint is no teacher as it is, though the teacher's training can start from it; None where it is one.

    Raises:
        InputError: it can start nothing: no checkpoint, another task, or nothing in common with the skeleton.
    """
    with torch.random.fork_rng(devices=[]):
        model = build(dict(skeleton))
    check(path, model)  # the head has the width of the checkpoint's afterwards: a training that began on COCO leaves it wider
    own = {name: tensor.shape for name, tensor in model.state_dict().items()}
    source = read_weights(path)
    theirs = {name: tensor.shape for name, tensor in source.state_dict().items()}
    head = f"model.{len(model.model) - 1}."
    if {n: s for n, s in own.items() if not n.startswith(head)} != {n: s for n, s in theirs.items() if not n.startswith(head)}:
        return "its layers are not all those of the skeleton"
    if reason := other_classes(source, names):
        return reason
    return "its head is not that of the skeleton" if own != theirs else None


def refuse_worthless(mean_ap: float) -> None:
    """Raise StartError for a teacher that finds next to nothing, before anything learns from it."""
    if mean_ap < WORTHLESS:
        cure = "train it longer, look at the labels, or search with --from-scratch"
        raise StartError(f"the teacher's mAP50-95 on the held-out part is {mean_ap:.3f}: there is nothing to imitate", cure)
