"""Polygons to masks, drawn as Ultralytics draws them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from ultralytics.data.utils import polygons2masks_overlap
from ultralytics.utils.ops import resample_segments, segment2box

from nas.yolo.decode import Points

MASK_RATIO = 4
"""Pixels of the image per pixel of a mask, each way: the resolution of the heads' prototypes."""
EXACT = 1000
"""Points per outline to which Ultralytics fills up polygons before it draws them."""

Mask = npt.NDArray[np.int32]


def overlap_mask(polygons: Sequence[Points], side: int, *, exact: bool = False) -> tuple[Mask, npt.NDArray[np.int64]]:
    """One mask of all objects of an image.

    Args:
        polygons: outlines of the objects, each (points, 2) x, y in pixels; they may reach beyond the image.
        side: of the square image in pixels.
        exact: to the pixel what Ultralytics' validation draws, at several times the cost.

    Returns:
        int32 (side / 4, side / 4): 0 where nothing is, k + 1 where the k-th largest object is (of several the smallest),
        and the indices of `polygons` from the largest to the smallest.
    """
    if not polygons:
        return np.zeros((side // MASK_RATIO, side // MASK_RATIO), np.int32), np.zeros(0, np.int64)
    outlines = list(polygons)
    if exact:
        outlines = resample_segments(outlines, n=max(EXACT, 1 + max(map(len, outlines))))
    mask, order = polygons2masks_overlap((side, side), outlines, downsample_ratio=MASK_RATIO)
    return mask.astype(np.int32), order


def visible_boxes(polygons: Sequence[Points], side: int) -> npt.NDArray[np.float32]:
    """(n, 4) left, top, right, bottom of what lies inside the square image; zeros where nothing does."""
    boxes = [segment2box(points, side, side) for points in polygons]
    return np.array(boxes, np.float32).reshape(-1, 4)
