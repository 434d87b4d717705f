"""Training batches, augmented as tensors: mosaic, scale, translation and flip in one resampling, colours in one matrix.

Every random number of a batch comes from one generator seeded by (seed, epoch, step), so a batch is the same on every
machine and in every process.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from nas.yolo.decode import GREY, Images

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
RGB_TO_YIQ = (LUMA, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))
MIN_SIDE = 2.0  # pixels; boxes smaller than this after clipping are dropped, as Ultralytics does
MIN_VISIBLE = 0.1  # share of a box's area that must stay inside the image


@dataclass(frozen=True)
class Augmentation:
    """How strongly images are changed; names and meaning follow Ultralytics.

    Attributes:
        mosaic: probability that an image is joined with three others.
        scale: zoom factor drawn from 1 - scale .. 1 + scale.
        translate: shift of up to this share of the image side, each way.
        fliplr: probability of a horizontal flip.
        hsv_h: hue change of up to this share of the colour circle.
        hsv_s: saturation factor drawn from 1 - hsv_s .. 1 + hsv_s.
        hsv_v: brightness factor drawn from 1 - hsv_v .. 1 + hsv_v.
    """

    mosaic: float = 0.0
    scale: float = 0.0
    translate: float = 0.0
    fliplr: float = 0.0
    hsv_h: float = 0.0
    hsv_s: float = 0.0
    hsv_v: float = 0.0


def generator_of(*seeds: int) -> torch.Generator:
    """A generator on the CPU for this seed, epoch and step; near seeds give unrelated streams."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(seeds).generate_state(1, np.uint64)[0] >> 1))


class Batches:
    """Makes augmented batches of a set of images on a device.

    Args:
        images: the training images.
        device: where batches are made. On a GPU the pixels stay resident when they fit a tenth of its free memory.
    """

    def __init__(self, images: Images, device: torch.device) -> None:
        self.images = images
        self.device = device
        self._resident: Tensor | None = None
        if device.type == "cuda" and images.pixels.nbytes < 0.1 * torch.cuda.mem_get_info(device)[0]:
            self._resident = torch.tensor(images.pixels, device=device)

    def make(self, rows: Tensor, how: Augmentation, random: torch.Generator) -> dict[str, Tensor]:
        """One batch.

        Args:
            rows: indices of B images, int64.
            how: the augmentation.
            random: the source of every draw.

        Returns:
            `img` float32 (B, 3, S, S) in 0..1, channels last; `cls` (M, 1), `bboxes` (M, 4) as cx, cy, w, h in shares
            of the side, `batch_idx` (M,): what Ultralytics' losses read.
        """
        count, side = len(rows), self.images.imgsz
        joined = torch.rand(count, generator=random) < how.mosaic
        # Tiles: one per image, four for a mosaic. `owner` is the sample that a tile belongs to.
        partners = torch.randint(len(self.images), (count, 3), generator=random)
        present = torch.cat([torch.ones(count, 1, dtype=torch.bool), joined[:, None].expand(-1, 3)], 1)
        owner, place = present.nonzero(as_tuple=True)
        tiles = torch.cat([rows[:, None], partners], 1)[present]
        # Without any mosaic the canvas is the image itself; otherwise it has room for 2 x 2, a lone image in its middle.
        canvas_side = 2 * side if joined.any() else side
        corner = torch.stack([place % 2, place // 2], 1) * side
        corner[~joined[owner]] = (canvas_side - side) // 2

        zoom, centre, flip = self._affine(joined, canvas_side, how, random)
        colours = _colour_matrices(count, how, random)
        pixels = self._sample(tiles, owner, corner, canvas_side, zoom * flip, centre)
        pixels = pixels.flatten(2).transpose(1, 2) @ colours.transpose(1, 2).to(self.device)  # channels come last
        image = pixels.clamp_(0, 1).view(count, side, side, 3).permute(0, 3, 1, 2)
        batch_idx, classes, boxes = self._boxes(tiles, owner, corner, zoom, centre, flip)
        targets = {"cls": classes[:, None], "bboxes": boxes, "batch_idx": batch_idx}
        return {"img": image, **{name: values.to(self.device) for name, values in targets.items()}}

    def _affine(
        self, joined: Tensor, canvas_side: int, how: Augmentation, random: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Zoom (B,), the canvas point (B, 2) that lands in the middle of the output, and flip (B,) as 1 or -1."""
        count, side = len(joined), self.images.imgsz
        zoom = 1 + how.scale * _symmetric((count,), random)
        # a mosaic is seen around any point near the seam of its tiles
        wander = 0.5 * side * joined[:, None] * _symmetric((count, 2), random)
        shift = how.translate * side * _symmetric((count, 2), random) / zoom[:, None]
        flip = 1.0 - 2.0 * (torch.rand(count, generator=random) < how.fliplr)
        return zoom, canvas_side / 2 + wander + shift, flip

    def _sample(self, tiles: Tensor, owner: Tensor, corner: Tensor, canvas_side: int, zoom_x: Tensor, centre: Tensor) -> Tensor:
        """The pixels (B, 3, S, S) in 0..1: tiles laid on canvases, which are resampled once."""
        side = self.images.imgsz
        if self._resident is not None:
            raw = self._resident[tiles.to(self.device)]
        else:
            raw = torch.from_numpy(self.images.pixels[tiles.numpy()]).to(self.device)
        canvas = torch.zeros(len(centre), 3, canvas_side, canvas_side, device=self.device)
        values = raw.float().sub_(GREY).div_(255)  # grey becomes 0, the value that resampling finds outside the canvas
        for value, sample, (x, y) in zip(values, owner.tolist(), corner.tolist(), strict=True):
            canvas[sample, :, y : y + side, x : x + side] = value
        # output -> canvas, both in -1..1
        theta = torch.zeros(len(centre), 2, 3)
        theta[:, 0, 0] = side / canvas_side / zoom_x
        theta[:, 1, 1] = side / canvas_side / zoom_x.abs()
        theta[:, :, 2] = 2 * centre / canvas_side - 1
        grid = affine_grid(theta.to(self.device), [len(centre), 3, side, side], align_corners=False)
        return grid_sample(canvas, grid, align_corners=False).add_(GREY / 255)

    def _boxes(
        self, tiles: Tensor, owner: Tensor, corner: Tensor, zoom: Tensor, centre: Tensor, flip: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The labels of the tiles where the pixels went: sample (M,), class (M,) and box (M, 4) in shares."""
        side = self.images.imgsz
        labels = [self.images.labels[tile] for tile in tiles.tolist()]
        flat = torch.from_numpy(np.concatenate(labels))
        tile = torch.repeat_interleave(torch.arange(len(labels)), torch.tensor([len(label) for label in labels]))
        sample = owner[tile]
        middle = flat[:, 1:3] * side + corner[tile] - centre[sample]
        middle = middle * zoom[sample, None]
        middle[:, 0] *= flip[sample]
        size = flat[:, 3:5] * side * zoom[sample, None]
        low = (side / 2 + middle - size / 2).clamp_(0, side)
        high = (side / 2 + middle + size / 2).clamp_(0, side)
        seen = high - low
        keep = (seen > MIN_SIDE).all(1) & (seen.prod(1) > MIN_VISIBLE * size.prod(1))
        boxes = torch.cat([(low + high) / 2, seen], 1)[keep] / side
        return sample[keep].float(), flat[keep, 0], boxes


def _symmetric(shape: tuple[int, ...], random: torch.Generator) -> Tensor:
    """Uniform in -1..1."""
    return 2 * torch.rand(shape, generator=random) - 1


def _colour_matrices(count: int, how: Augmentation, random: torch.Generator) -> Tensor:
    """Per image a 3 x 3 matrix on RGB: hue turned around the grey axis, distance from grey and brightness scaled."""
    hue, saturation, value = _symmetric((3, count), random) * torch.tensor([[how.hsv_h], [how.hsv_s], [how.hsv_v]])
    to_yiq = torch.tensor(RGB_TO_YIQ)
    turned = torch.zeros(count, 3, 3)
    turned[:, 0, 0] = 1
    angle = 2 * math.pi * hue
    turned[:, 1, 1] = turned[:, 2, 2] = angle.cos() * (1 + saturation)
    turned[:, 1, 2] = -angle.sin() * (1 + saturation)
    turned[:, 2, 1] = -turned[:, 1, 2]
    matrices: Tensor = (1 + value)[:, None, None] * (torch.linalg.inv(to_yiq) @ turned @ to_yiq)
    return matrices
