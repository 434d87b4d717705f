"""mAP of a model on decoded images, with Ultralytics' own NMS, matching and average precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torchvision  # type: ignore[import-untyped]  # noqa: F401  once imported, Ultralytics uses its faster NMS
from torch import Tensor, nn
from ultralytics.engine.validator import BaseValidator
from ultralytics.utils.metrics import ap_per_class, box_iou, mask_iou
from ultralytics.utils.nms import non_max_suppression
from ultralytics.utils.ops import process_mask, xywh2xyxy

from nas.alive import beat
from nas.yolo.decode import Images
from nas.yolo.masks import overlap_mask


@dataclass(frozen=True)
class AveragePrecision:
    """All in 0..1.

    Attributes:
        map: mAP50-95, the mean over the classes that have labels and over the IoU thresholds 0.50, 0.55, …, 0.95.
        map50: the same at IoU 0.50.
        per_class: mAP50-95 of each class that has labels, by class index.
    """

    map: float
    map50: float
    per_class: dict[int, float]


@dataclass(frozen=True)
class Metrics:
    """Quality of the predictions: where `boxes` overlap, and, of a segmentation model, where `masks` do."""

    boxes: AveragePrecision
    masks: AveragePrecision | None = None

    @property
    def fitness(self) -> AveragePrecision:
        """What a model of its task is judged by."""
        return self.masks or self.boxes


class _Matcher:
    """Ultralytics' assignment of predictions to labels, without the rest of its validator."""

    iouv = torch.linspace(0.5, 0.95, 10)
    match = BaseValidator.match_predictions


@dataclass(frozen=True)
class _Truth:
    """The labels of an image: class (n,), corners (n, 4) in pixels, and, where there are polygons, masks (n, S / 4 * S / 4)
    of 0 and 1."""

    classes: Tensor
    boxes: Tensor
    masks: Tensor


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    images: Images,
    nc: int,
    *,
    batch: int,
    device: torch.device,
    conf: float = 0.001,
    iou: float = 0.7,
    max_det: int = 300,
    part: slice = slice(None),
    joined: Callable[[Tensor], Tensor] = lambda rows: rows,
) -> Metrics:
    """Predict and score, as Ultralytics' `val` does on square images.

    The forward pass runs in float32, whatever the training ran in: one pass over the held-out images is a few
    percent of a run, and heads decode boxes in the precision of their features, where bfloat16 rounds a coordinate
    of 160 by up to half a pixel.

    Args:
        model: a detection or segmentation model on `device`; set to evaluation mode and left so.
        images: what to predict, with labels; with polygons for a segmentation model.
        nc: number of classes.
        batch: images per forward pass.
        device: where the model is.
        conf: lowest confidence of a detection that counts.
        iou: overlap above which NMS drops the weaker of two boxes (end-to-end heads need no NMS).
        max_det: most detections kept per image, raised where an image has more labels.
        part: which images to predict here, where others predict the rest.
        joined: puts together what all of them have found, rows (any number, columns) of each after those of the one before.
    """
    model.eval()
    end2end = bool(getattr(model, "end2end", False))
    max_det = max(max_det, *map(len, images.labels)) if len(images) else max_det
    boxes, masks = _Statistics(), _Statistics()
    first, last, _ = part.indices(len(images))
    for start in range(first, last, batch):
        beat()
        pixels = torch.from_numpy(images.read(slice(start, min(last, start + batch)))).to(device)
        pixels = pixels.float().div_(255).contiguous(memory_format=torch.channels_last)
        predictions = model(pixels)[0]
        predictions, prototypes = (predictions, None) if images.polygons is None else predictions
        found = non_max_suppression(
            predictions,
            conf,
            iou,
            nc=nc,
            multi_label=True,
            max_det=max_det,
            end2end=end2end,
            max_time_img=math.inf,  # its wall-clock limit silently drops images on a busy machine
        )
        for index, detections in enumerate(found):
            truth = _truth(images, start + index)
            boxes.add(detections, truth, box_iou(truth.boxes.to(device), detections[:, :4]))
            if prototypes is not None:
                shape = (images.imgsz, images.imgsz)
                drawn = process_mask(prototypes[index], detections[:, 6:], detections[:, :4], shape)
                masks.add(detections, truth, mask_iou(truth.masks.to(device), drawn.flatten(1).float()))
    return Metrics(boxes.precision(joined), None if images.polygons is None else masks.precision(joined))


def _truth(images: Images, row: int) -> _Truth:
    """The labels of an image, those with polygons as Ultralytics' validation has them: by size, the largest first, each
    mask only where no smaller object covers it."""
    labels, side = images.labels[row], images.imgsz
    polygons = [] if images.polygons is None else images.polygons[row]
    mask, order = overlap_mask(polygons, side, exact=True)
    if images.polygons is not None:
        labels = labels[order]
    masks = torch.from_numpy(mask.reshape(1, -1) == np.arange(1, len(order) + 1)[:, None]).float()
    return _Truth(torch.from_numpy(labels[:, 0]), xywh2xyxy(torch.from_numpy(labels[:, 1:])) * side, masks)


class _Statistics:
    """What average precision is computed from: hits, confidences and classes of all predictions, and the true classes."""

    def __init__(self) -> None:
        self._found, self._labels = [torch.zeros(0, len(_Matcher.iouv) + 2)], [torch.zeros(0, 1)]

    def add(self, found: Tensor, truth: _Truth, overlap: Tensor) -> None:
        """Take in an image: detections (n, 6 and more) as NMS returns them, and their overlap (labels, n) with the truth."""
        found = found.cpu()
        hits = torch.zeros(len(found), len(_Matcher.iouv))
        if overlap.numel():
            hits = _Matcher().match(found[:, 5], truth.classes, overlap.cpu()).float()
        self._found.append(torch.cat([hits, found[:, 4:6]], 1))
        self._labels.append(truth.classes[:, None])

    def precision(self, joined: Callable[[Tensor], Tensor]) -> AveragePrecision:
        found, labels = (joined(torch.cat(rows)).numpy() for rows in (self._found, self._labels))
        if not len(labels):
            return AveragePrecision(0.0, 0.0, {})
        ap, classes = ap_per_class(found[:, :-2].astype(bool), found[:, -2], found[:, -1], labels[:, 0])[5:7]
        if not len(classes):
            return AveragePrecision(0.0, 0.0, {})
        per_class = {int(c): float(row.mean()) for c, row in zip(classes, ap, strict=True)}
        return AveragePrecision(float(ap.mean()), float(ap[:, 0].mean()), per_class)
