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
from torch.nn.functional import grid_sample

from nas.yolo.decode import GREY, Images, Points
from nas.yolo.masks import MASK_RATIO, overlap_mask, visible_boxes

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

    @property
    def moves(self) -> bool:
        """Whether pixels come to lie between those of the image; a flip alone does not do that."""
        return bool(self.mosaic or self.scale or self.translate)

    @property
    def colours(self) -> bool:
        """Whether colours change."""
        return bool(self.hsv_h or self.hsv_s or self.hsv_v)


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
        size = len(images) * 3 * images.imgsz**2
        if device.type == "cuda" and size < 0.1 * torch.cuda.mem_get_info(device)[0]:
            self._resident = torch.from_numpy(images.read(slice(None))).to(device)

    def make(self, rows: Tensor, how: Augmentation, random: torch.Generator, part: slice = slice(None)) -> dict[str, Tensor]:
        """One batch.

        Args:
            rows: indices of B images, int64.
            how: the augmentation.
            random: the source of every draw.
            part: of which images the pixels are wanted; whatever it is, the draws and the targets are the whole batch's.

        Returns:
            `img` float32 (B, or the part, 3, S, S) in 0..1, channels last; `cls` (M, 1), `bboxes` (M, 4) as cx, cy, w, h in
            shares of the side, `batch_idx` (M,): what Ultralytics' losses read. Of images with polygons also `masks` (B, S / 4,
            S / 4), k + 1 where the k-th object of a sample is, and `sem_masks`, alike, the class of what is there.
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
        first, last, _ = part.indices(count)
        drawn = (first <= owner) & (owner < last)
        if how.moves:
            seen = tiles[drawn], owner[drawn] - first, corner[drawn]
            image = self._sample(*seen, canvas_side, (zoom * flip)[part], centre[part])
        else:  # a tenth of a short training's time, saved: nothing needs to be resampled
            image = self._read(tiles[drawn]).float().div_(255)
            image = torch.where((flip[part] < 0).view(-1, 1, 1, 1).to(self.device), image.flip(-1), image)
        if how.colours:
            pixels = image.flatten(2).transpose(1, 2) @ colours[part].transpose(1, 2).to(self.device)  # channels come last
            image = pixels.clamp_(0, 1).view(last - first, side, side, 3).permute(0, 3, 1, 2)
        image = image.contiguous(memory_format=torch.channels_last)
        move = _Move(tiles, owner, corner, zoom, centre, flip, side)
        targets = self._boxes(move) if self.images.polygons is None else self._masks(move, self.images.polygons)
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
        canvas = torch.empty(len(centre), 3, canvas_side, canvas_side, device=self.device)
        for sample in torch.bincount(owner).lt(4).nonzero().flatten().tolist() if canvas_side > side else ():
            canvas[sample] = 0  # around a lone image
        # grey becomes 0, the value that resampling finds outside the canvas
        for tile, sample, (x, y) in zip(self._read(tiles), owner.tolist(), corner.tolist(), strict=True):
            torch.sub(tile, float(GREY), out=canvas[sample, :, y : y + side, x : x + side])
        # output -> canvas, both in -1..1, each axis for itself
        middles = (torch.arange(side) + 0.5) * 2 / side - 1
        offset, share = 2 * centre / canvas_side - 1, side / canvas_side / torch.stack([zoom_x, zoom_x.abs()], 1)
        x, y = (offset[:, axis, None] + share[:, axis, None] * middles for axis in (0, 1))
        grid = torch.stack((x[:, None, :].expand(-1, side, -1), y[:, :, None].expand(-1, -1, side)), 3).to(self.device)
        return grid_sample(canvas, grid, align_corners=False).add_(GREY).div_(255)

    def _read(self, tiles: Tensor) -> Tensor:
        """The pixels of some images, uint8 (T, 3, S, S), on the device."""
        if self._resident is not None:
            return self._resident[tiles.to(self.device)]
        return torch.from_numpy(self.images.read(tiles.numpy())).to(self.device)

    def _boxes(self, move: _Move) -> dict[str, Tensor]:
        """The labels of the tiles where the pixels went."""
        flat, tile = self._labels(move.tiles)
        sample = move.owner[tile]
        middle = move.points(flat[:, 1:3] * move.side, tile)
        size = flat[:, 3:5] * move.side * move.zoom[sample, None]
        seen, keep = _seen(middle - size / 2, middle + size / 2, size, move.side)
        return {"cls": flat[keep, :1], "bboxes": seen[keep], "batch_idx": sample[keep].float()}

    def _masks(self, move: _Move, polygons: list[list[Points]]) -> dict[str, Tensor]:
        """The outlines of the tiles where the pixels went: their boxes and masks, those of a sample by size."""
        flat, tile = self._labels(move.tiles)
        sample, side = move.owner[tile], move.side
        outlines = [points for index in move.tiles.tolist() for points in polygons[index]]
        ends = np.cumsum([len(points) for points in outlines], dtype=np.int64)
        joined = torch.from_numpy(np.concatenate([np.zeros((0, 2), np.float32), *outlines]))
        moved = move.points(joined, torch.repeat_interleave(tile, torch.from_numpy(np.diff(ends, prepend=0))))
        outlines = np.split(moved.numpy(), ends)[:-1]
        size = torch.from_numpy(np.array([np.ptp(points, axis=0) for points in outlines], np.float32).reshape(-1, 2))
        visible = torch.from_numpy(visible_boxes(outlines, side))
        seen, keep = _seen(visible[:, :2], visible[:, 2:], size, side)
        kept: list[Tensor] = []
        masks = torch.zeros(len(move.zoom), side // MASK_RATIO, side // MASK_RATIO, dtype=torch.int32)
        classes = torch.zeros_like(masks)
        for index in range(len(masks)):
            rows = (keep & (sample == index)).nonzero()[:, 0]
            mask, order = overlap_mask([outlines[row] for row in rows.tolist()], side)
            rows = rows[torch.from_numpy(order)]
            masks[index] = torch.from_numpy(mask)
            classes[index] = torch.cat([torch.zeros(1), flat[rows, 0]])[masks[index].long()].int()
            kept.append(rows)
        all_kept = torch.cat(kept)
        boxes = {"cls": flat[all_kept, :1], "bboxes": seen[all_kept], "batch_idx": sample[all_kept].float()}
        return {**boxes, "masks": masks, "sem_masks": classes}

    def _labels(self, tiles: Tensor) -> tuple[Tensor, Tensor]:
        """The boxes of tiles, (M, 5) as they lie in the images, and which of the tiles (M,) each is on."""
        labels = [self.images.labels[tile] for tile in tiles.tolist()]
        counts = torch.tensor([len(label) for label in labels])
        return torch.from_numpy(np.concatenate(labels)), torch.repeat_interleave(torch.arange(len(labels)), counts)


@dataclass(frozen=True)
class _Move:
    """Where a batch's pixels go: tiles (T,) lie with their `corner` (T, 2) on the canvas of their `owner` (T,); of each
    canvas (B,) what lies around `centre` is seen, zoomed and flipped, on an output of `side` pixels."""

    tiles: Tensor
    owner: Tensor
    corner: Tensor
    zoom: Tensor
    centre: Tensor
    flip: Tensor
    side: int

    def points(self, points: Tensor, tile: Tensor) -> Tensor:
        """Points (P, 2) in pixels of the tiles (P,) they are on -> in pixels of the output."""
        sample = self.owner[tile]
        moved = (points + self.corner[tile] - self.centre[sample]) * self.zoom[sample, None]
        moved[:, 0] *= self.flip[sample]
        return moved + self.side / 2


def _seen(low: Tensor, high: Tensor, size: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """The parts (M, 4) within the image of boxes of a `size` (M, 2) before they were cut, as cx, cy, w, h in shares, and
    whether enough is left of each (M,)."""
    low, high = low.clamp(0, side), high.clamp(0, side)
    left = high - low
    keep = (left > MIN_SIDE).all(1) & (left.prod(1) > MIN_VISIBLE * size.prod(1))
    return torch.cat([(low + high) / 2, left], 1) / side, keep


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
