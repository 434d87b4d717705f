"""How good a network is, without training: the task's loss image by image, beside the teacher's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nas.training.augment import Augmentation, Batches, generator_of
from nas.yolo.criterion import Batch, Criterion
from nas.yolo.decode import Images
from nas.yolo.slot import predictions_from, read_from

BOOTSTRAPS = 1000
Losses = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Rise:
    """How much more loss per image a network has than the teacher, and the 90% bootstrap interval over the images."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Before:
    """Of each batch of images what a model's layers from `first` on read of those before."""

    first: int
    known: list[dict[int, Any]]


class Judge:
    """The losses of networks on the same images.

    Args:
        teacher: on `device`, in eval mode.
        images: held out from the teacher's training.
        batch: images per forward pass.
        most: judge by so many images at most, evenly spread.
    """

    def __init__(self, teacher: Any, images: Images, device: torch.device, batch: int, most: int) -> None:
        rows = np.unique(np.linspace(0, len(images) - 1, min(most, len(images))).round().astype(int)).tolist()
        batches = Batches(images, device)
        parts = [torch.tensor(rows[start : start + batch]) for start in range(0, len(rows), batch)]
        self._batches = [batches.make(part, Augmentation(), generator_of(0)) for part in parts]
        self._criterion = Criterion(teacher, epochs=1)
        self._teacher, self._device = teacher, device
        self.own = self.losses(teacher, self.before(0))

    @torch.no_grad()
    def before(self, first: int) -> Before:
        """What the teacher's layers before `first` make of the images: computed once for all that differ only from there on."""
        return Before(first, [read_from(self._teacher.eval(), first, batch["img"]) for batch in self._batches])

    @torch.no_grad()
    def losses(self, model: Any, before: Before) -> Losses:
        """The loss of each image, with the model's running statistics."""
        model.to(self._device, memory_format=torch.channels_last)
        found = []
        for batch, known in zip(self._batches, before.known, strict=True):
            predictions = predictions_from(model, before.first, known)
            parts = ((_part(predictions, i), _image(batch, i)) for i in range(len(batch["img"])))
            found += [self._criterion(*part) for part in parts]
        return torch.stack(found).double().cpu().numpy()

    def rise(self, model: Any, before: Before) -> Rise:
        """How much worse than the teacher a model is, image by image. Not finite where its loss is not.

        Args:
            before: up to where it is the teacher.
        """
        return rise_of(self.losses(model, before) - self.own)


def rise_of(changes: Losses) -> Rise:
    """The mean of some changes and its interval; equal for equal changes."""
    drawn = np.random.default_rng(0).integers(len(changes), size=(BOOTSTRAPS, len(changes)))
    low, high = np.percentile(changes[drawn].mean(1), [5, 95])
    return Rise(float(changes.mean()), float(low), float(high))


def _part(predictions: Any, index: int) -> Any:
    """The predictions for one image of a batch."""
    if isinstance(predictions, Tensor):
        return predictions[index : index + 1]
    if isinstance(predictions, dict):
        return {name: _part(value, index) for name, value in predictions.items()}
    return type(predictions)(_part(value, index) for value in predictions)


def _image(batch: Batch, index: int) -> Batch:
    inside = batch["batch_idx"] == index
    part = {
        name: values[inside] if name in {"cls", "bboxes", "batch_idx"} else values[index : index + 1]
        for name, values in batch.items()
    }
    return {**part, "batch_idx": torch.zeros_like(part["batch_idx"])}
