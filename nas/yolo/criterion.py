"""Ultralytics' detection and segmentation losses for a bare model, outside Ultralytics' trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.cfg import get_cfg

Batch = dict[str, Tensor]
Whole = Callable[[Tensor], Tensor]


class Criterion:
    """The loss of a model of its task, with Ultralytics' default gains: of boxes, classes and distances, and of masks.

    The model's own `init_criterion` picks the loss: one-to-many for most heads, one-to-many plus one-to-one for
    end-to-end heads (YOLOv10, YOLO26), whose balance moves from epoch to epoch.

    Args:
        model: as `nas.yolo.build.build` makes it, already on its device; its `args` are set.
        epochs: length of the run, over which end-to-end heads shift their balance.
        whole: puts predictions of the whole batch together from those of a part, where the model sees only that.
    """

    def __init__(self, model: nn.Module, epochs: int, whole: Whole = lambda part: part) -> None:
        args: Any = get_cfg(overrides={"epochs": epochs})
        model.args = args
        self._criterion, self._whole = model.init_criterion(), whole  # type: ignore[operator]

    def __call__(self, predictions: Any, batch: Batch) -> Tensor:
        """The loss to minimise, in Ultralytics' scale (a sum over the images of the batch).

        Args:
            predictions: what the model returned in training mode.
            batch: `img` (B, 3, S, S), `cls` (M, 1), `bboxes` (M, 4) as cx, cy, w, h in shares, `batch_idx` (M,), all by
                ascending sample; for segmentation `masks` and `sem_masks` (B, S / 4, S / 4), see `nas.training.augment`.
        """
        # always in float32: anchors and boxes in bfloat16 are off by a pixel and more
        with torch.autocast(batch["img"].device.type, enabled=False):
            loss, _ = self._criterion(_as_float(predictions, self._whole), batch)
        total: Tensor = loss.sum()
        return total

    def end_epoch(self) -> None:
        """Advance the balance of an end-to-end head; nothing to do for others."""
        if hasattr(self._criterion, "update"):
            self._criterion.update()


def _as_float(predictions: Any, whole: Whole) -> Any:
    """The tensors of nested predictions in float32; feature maps, of which a loss reads no value, as mere shapes of it."""
    if isinstance(predictions, Tensor):
        return whole(predictions).float()
    if isinstance(predictions, dict):
        return {key: _shapes(value) if key == "feats" else _as_float(value, whole) for key, value in predictions.items()}
    return type(predictions)(_as_float(each, whole) for each in predictions)


def _shapes(maps: list[Tensor]) -> list[Tensor]:
    """Float32 tensors of the same shapes, which take no memory."""
    return [torch.zeros((), device=each.device).expand(each.shape) for each in maps]
