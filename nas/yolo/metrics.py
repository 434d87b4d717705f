"""mAP of a model on decoded images, with Ultralytics' own NMS, matching and average precision."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torchvision  # type: ignore[import-untyped]  # noqa: F401  once imported, Ultralytics uses its faster NMS
from torch import Tensor, nn
from ultralytics.engine.validator import BaseValidator
from ultralytics.utils.metrics import ap_per_class, box_iou
from ultralytics.utils.nms import non_max_suppression
from ultralytics.utils.ops import xywh2xyxy

from nas.yolo.decode import Images, Labels


@dataclass(frozen=True)
class Metrics:
    """Detection quality, all in 0..1.

    Attributes:
        map: mAP50-95, the mean over the classes that have labels and over the IoU thresholds 0.50, 0.55, …, 0.95.
        map50: the same at IoU 0.50.
        per_class: mAP50-95 of each class that has labels, by class index.
    """

    map: float
    map50: float
    per_class: dict[int, float]


class _Matcher:
    """Ultralytics' assignment of predictions to labels, without the rest of its validator."""

    iouv = torch.linspace(0.5, 0.95, 10)
    match = BaseValidator.match_predictions


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
) -> Metrics:
    """Predict and score, as Ultralytics' `val` does on square images.

    The forward pass runs in float32, whatever the training ran in: one pass over the held-out images is a few
    percent of a run, and heads decode boxes in the precision of their features, where bfloat16 rounds a coordinate
    of 160 by up to half a pixel.

    Args:
        model: a detection model on `device`; set to evaluation mode and left so.
        images: what to predict, with labels.
        nc: number of classes.
        batch: images per forward pass.
        device: where the model is.
        conf: lowest confidence of a detection that counts.
        iou: overlap above which NMS drops the weaker of two boxes (end-to-end heads need no NMS).
        max_det: most detections kept per image, raised where an image has more labels.
    """
    model.eval()
    end2end = bool(getattr(model, "end2end", False))
    max_det = max(max_det, *map(len, images.labels)) if len(images) else max_det
    stats: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
    for start in range(0, len(images), batch):
        pixels = torch.from_numpy(np.array(images.pixels[start : start + batch])).to(device)
        pixels = pixels.float().div_(255).contiguous(memory_format=torch.channels_last)
        found = non_max_suppression(
            model(pixels),
            conf,
            iou,
            nc=nc,
            multi_label=True,
            max_det=max_det,
            end2end=end2end,
            max_time_img=math.inf,  # its wall-clock limit silently drops images on a busy machine
        )
        labels = images.labels[start : start + batch]
        stats += [_matched(boxes.cpu(), truth, images.imgsz) for boxes, truth in zip(found, labels, strict=True)]
    if not stats:
        return Metrics(0.0, 0.0, {})
    ap, classes = ap_per_class(*(np.concatenate(column) for column in zip(*stats, strict=True)))[5:7]
    if not len(classes):
        return Metrics(0.0, 0.0, {})
    per_class = {int(c): float(row.mean()) for c, row in zip(classes, ap, strict=True)}
    return Metrics(float(ap.mean()), float(ap[:, 0].mean()), per_class)


def _matched(found: Tensor, truth: Labels, imgsz: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of one image: hits (n, 10) at the ten IoU thresholds, confidences (n,), predicted and true classes."""
    classes, boxes = torch.from_numpy(truth[:, 0]), xywh2xyxy(torch.from_numpy(truth[:, 1:])) * imgsz
    hits = np.zeros((len(found), len(_Matcher.iouv)), dtype=bool)
    if len(found) and len(truth):
        hits = _Matcher().match(found[:, 5], classes, box_iou(boxes, found[:, :4])).numpy()
    return hits, found[:, 4].numpy(), found[:, 5].numpy(), truth[:, 0]
