"""How good a network is, without training: the task's loss image by image, beside the teacher's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from nas.alive import beat
from nas.training.augment import Augmentation, Batches, generator_of
from nas.yolo.criterion import Batch, Criterion
from nas.yolo.decode import Images
from nas.yolo.slot import predictions_of, read_from

BOOTSTRAPS = 1000
Losses = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Rise:
    """How much more loss per image a network has than the teacher, and the 90% bootstrap interval over the images."""

    mean: float
    low: float
    high: float


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
        self.own = self.losses([teacher.model], 0)[0]

    @torch.no_grad()
    def losses(self, tails: Sequence[Sequence[nn.Module]], first: int) -> list[Losses]:
        """The loss of each image with the running statistics, of networks that are the teacher up to layer `first`: what it
        makes of the images is computed once for all of them.

        Args:
            tails: their other layers, which tell what they read as the teacher's do.
        """
        found: list[list[Tensor]] = [[] for _ in tails]
        for tail in tails:
            for layer in tail:
                layer.to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        for batch in self._batches:
            known = read_from(self._teacher.eval(), first, batch["img"])
            for losses, tail in zip(found, tails, strict=True):
                beat()
                predictions = predictions_of(tail, self._teacher.save, known)
                parts = ((_part(predictions, i), _image(batch, i)) for i in range(len(batch["img"])))
                losses += [self._criterion(*part) for part in parts]
        return [torch.stack(losses).double().cpu().numpy() for losses in found]

    def rises(self, tails: Sequence[Sequence[nn.Module]], first: int) -> list[Rise]:
        """How much worse than the teacher each is, image by image. Not finite where its loss is not."""
        return [rise_of(losses - self.own) for losses in self.losses(tails, first)]


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
