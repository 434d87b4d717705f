"""A frozen teacher who helps in a training: the model's head is drawn to what the teacher's says of the same images.

Cross entropy with the teacher's class probabilities and with its distributions of box edges, each weighted by how sure the
teacher is of an object there, in the proportions of Ultralytics' own loss (0.5 and 1.5) and in its scale. (G. Hinton,
O. Vinyals and J. Dean, "Distilling the Knowledge in a Neural Network", 2015; of box edges: Z. Zheng et al., "Localization
Distillation for Dense Object Detection", CVPR 2022.) What it is worth: `docs/imitation.md`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from nas.yolo.slot import predictions_with_fixed_norms

CLASSES, EDGES = 0.5, 1.5  # Ultralytics' gains of its class and edge losses
Predictions = dict[str, Any]


class Tutor:
    """What a teacher adds to the loss.

    Args:
        teacher: a model of the same head, number of classes and task, on the device.
    """

    def __init__(self, teacher: nn.Module) -> None:
        self._teacher = teacher.requires_grad_(False).eval()

    @torch.no_grad()
    def says(self, images: Tensor) -> Predictions:
        """Of some images, in the arithmetic of the caller."""
        return _dense(predictions_with_fixed_norms(self._teacher, images))

    def loss(self, predictions: Any, said: Predictions, images: int, total: Callable[[Tensor], Tensor]) -> Tensor:
        """The term, a sum over the `images` of a batch like Ultralytics' losses.

        Args:
            predictions: of the model in training mode.
            said: what the teacher says of the same images.
            total: sums over all who train together, each on a part of the batch.
        """
        own = _dense(predictions)
        with torch.autocast(own["scores"].device.type, enabled=False):
            scores, goal = own["scores"].float(), said["scores"].float().sigmoid()
            sure = goal.amax(1)  # (B, anchors)
            weight = total(sure.sum()).clamp(min=1.0)
            classes = binary_cross_entropy_with_logits(scores, goal, reduction="sum")
            edges, aims = (each["boxes"].float().unflatten(1, (4, -1)).transpose(1, 2) for each in (own, said))  # bins second
            distances = cross_entropy(edges, aims.softmax(1), reduction="none").mean(1)
            term: Tensor = images * (CLASSES * classes + EDGES * (distances * sure).sum()) / weight
            return term


def _dense(predictions: Any) -> Predictions:
    """What a head says of every anchor: of an end-to-end head, the part that learns from many."""
    found: Predictions = predictions.get("one2many", predictions)
    return found
