"""Boxes and masks must go where the pixels go."""

import cv2
import numpy as np
import pytest
import torch
from ultralytics.data.augment import Format
from ultralytics.utils.instance import Instances

from nas.training.augment import Augmentation, Batches, _colour_matrices, generator_of
from nas.yolo.decode import Images

SIDE, LARGE, CPU = 64, 192, torch.device("cpu")


@pytest.fixture(scope="module")
def coloured() -> Images:
    """Eight images of two rectangles; each rectangle has a colour of its own, and its class says which."""
    random = np.random.default_rng(3)
    pixels = np.full((8, 3, SIDE, SIDE), 90, np.uint8)
    labels = []
    for i, image in enumerate(pixels):
        boxes = []
        for j in range(2):
            w, h = random.integers(12, 24, 2)
            x, y = 32 * j + random.integers(1, 31 - w), random.integers(1, 63 - h)
            image[:, y : y + h, x : x + w] = _colour(2 * i + j)[:, None, None]
            boxes.append([2 * i + j, (x + w / 2) / SIDE, (y + h / 2) / SIDE, w / SIDE, h / SIDE])
        labels.append(np.array(boxes, np.float32))
    return Images(pixels, labels)


def _colour(kind: int) -> np.ndarray:
    return np.array([150 + 6 * kind, 250 - 12 * kind, 20 + 70 * (kind % 4)])


def _near(image: np.ndarray, kind: int) -> np.ndarray:
    return np.abs(image - _colour(kind)[:, None, None] / 255).max(0) < 2 / 255


@pytest.fixture(scope="module")
def outlined() -> Images:
    """Eight images of a large square and a triangle that hides a part of it, with outlines; colours and classes as above."""
    random = np.random.default_rng(4)
    pixels = np.full((8, 3, LARGE, LARGE), 90, np.uint8)
    labels, polygons = [], []
    for i, image in enumerate(pixels):
        angle = random.uniform(0, 2 * np.pi)
        square = _regular(4, random.uniform(80, 112, 2), random.uniform(60, 72), angle)
        triangle = _regular(3, square[0] + random.uniform(-12, 12, 2), random.uniform(36, 45), -angle)
        outlines = [triangle, square] if i % 2 else [square, triangle]  # in the file's order, which tells nothing
        for kind, outline in ((2 * i, square), (2 * i + 1, triangle)):
            drawn = np.ascontiguousarray(image.transpose(1, 2, 0))
            cv2.fillPoly(drawn, [outline.astype(int)], [int(c) for c in _colour(kind)])
            image[:] = drawn.transpose(2, 0, 1)
        kinds = [2 * i + 1, 2 * i] if i % 2 else [2 * i, 2 * i + 1]
        low, high = (np.array([bound(o, axis=0) for o in outlines]) / LARGE for bound in (np.min, np.max))
        labels.append(np.column_stack([kinds, (low + high) / 2, high - low]).astype(np.float32))
        polygons.append(outlines)
    return Images(pixels, labels, polygons=polygons)


def _regular(corners: int, centre: np.ndarray, radius: float, angle: float) -> np.ndarray:
    turns = angle + np.arange(corners) * 2 * np.pi / corners
    points = centre + radius * np.stack([np.cos(turns), np.sin(turns)], 1)
    return np.clip(points, 0, LARGE - 1).astype(np.float32)


WAYS = pytest.mark.parametrize(
    "how",
    [
        Augmentation(fliplr=0.5),
        Augmentation(scale=0.5, translate=0.2, fliplr=0.5),
        Augmentation(mosaic=1.0),
        Augmentation(mosaic=0.5, scale=0.5, translate=0.1, fliplr=0.5),
    ],
    ids=["flip", "affine", "mosaic", "mixed"],
)


@WAYS
def test_masks_are_found_again_in_the_pixels(outlined: Images, how: Augmentation) -> None:
    batches, checked, low = Batches(outlined, CPU), 0, LARGE // 4
    for step in range(4):
        batch = batches.make(torch.arange(8), how, generator_of(1, 0, step))
        assert batch["masks"].shape == batch["sem_masks"].shape == (8, low, low)
        assert batch["batch_idx"].tolist() == sorted(batch["batch_idx"].tolist())  # as the losses need them
        for sample in range(8):
            image, mask = batch["img"][sample].numpy(), batch["masks"][sample].numpy()
            mine = batch["batch_idx"] == sample
            kinds, boxes = batch["cls"][mine, 0].int().tolist(), batch["bboxes"][mine].numpy() * low
            assert mask.max() <= len(kinds)
            for number, (kind, (cx, cy, w, h)) in enumerate(zip(kinds, boxes, strict=True), 1):
                here = mask == number
                rows, columns = np.nonzero(here)
                assert (batch["sem_masks"][sample].numpy()[here] == kind).all()
                cut = kind ^ 1 in kinds and kinds.index(kind | 1) < kinds.index(kind & ~1)
                if cut or max(kinds.count(kind), kinds.count(kind ^ 1)) > 1 or len(rows) < 40:
                    continue  # a square smaller than its triangle, an object twice in a mosaic, or a sliver
                share = _near(image, kind).reshape(low, 4, low, 4).mean((1, 3))
                box = np.zeros_like(here)
                box[max(0, int(cy - h / 2)) : int(cy + h / 2) + 1, max(0, int(cx - w / 2)) : int(cx + w / 2) + 1] = True
                assert not share[box & ~here].max(initial=0) > 0.9, "the object reaches beyond its mask"
                assert share[here].mean() > 0.8, "the mask holds something else than its object"
                if kind % 2:  # a triangle: nothing hides it, so its box is that of its mask
                    got = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
                    assert np.abs(got - [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]).max() < 1.5
                checked += 1
    assert checked > 32


def test_masks_equal_those_of_ultralytics(outlined: Images) -> None:
    batch = Batches(outlined, CPU).make(torch.arange(8), Augmentation(), generator_of(0))
    seen = 0
    for sample in range(8):
        labels, polygons = outlined.labels[sample], np.empty(2, object)
        polygons[:] = outlined.polygons[sample]
        instances = Instances(labels[:, 1:], np.zeros((2, 1, 2), np.float32), bbox_format="xywh", normalized=True)
        instances.segments = polygons
        image = np.zeros((LARGE, LARGE, 3), np.uint8)
        instances.denormalize = lambda w, h: None  # outlines are in pixels already
        theirs = Format(return_mask=True, normalize=False)({"img": image, "cls": labels[:, :1], "instances": instances})
        mine = batch["batch_idx"] == sample
        torch.testing.assert_close(batch["masks"][sample], theirs["masks"][0], check_dtype=False)
        covered = batch["masks"][sample] > 0  # what the loss reads
        torch.testing.assert_close(batch["sem_masks"][sample][covered], theirs["sem_masks"][covered], check_dtype=False)
        torch.testing.assert_close(batch["cls"][mine], theirs["cls"], check_dtype=False)
        torch.testing.assert_close(batch["bboxes"][mine], theirs["bboxes"], atol=1e-6, rtol=0)
        seen += int(mine.sum())
    assert seen == 16


@WAYS
def test_boxes_are_found_again_in_the_pixels(coloured: Images, how: Augmentation) -> None:
    batches, checked = Batches(coloured, CPU), 0
    for step in range(8):
        batch = batches.make(torch.arange(8), how, generator_of(0, 0, step))
        for sample in range(8):
            image = batch["img"][sample].numpy()
            mine = batch["batch_idx"] == sample
            kinds = batch["cls"][mine, 0].int().tolist()
            boxes = batch["bboxes"][mine].numpy() * SIDE
            covered = np.zeros((16, SIDE, SIDE), bool)
            for kind, (cx, cy, w, h) in zip(kinds, boxes, strict=True):
                x1, x2, y1, y2 = cx - w / 2, cx + w / 2, cy - h / 2, cy + h / 2
                assert min(x1, y1) >= -1e-3 and max(x2, y2) <= SIDE + 1e-3
                hit = _near(image, kind)
                inner = hit[int(np.ceil(y1 + 1)) : int(y2 - 1), int(np.ceil(x1 + 1)) : int(x2 - 1)]
                assert inner.all(), "the box holds something else than its object"
                row, column = min(int(cy), SIDE - 1), min(int(cx), SIDE - 1)
                for y, x in ((row, x1 - 2), (row, x2 + 1), (y1 - 2, column), (y2 + 1, column)):
                    if 0 <= x < SIDE and 0 <= y < SIDE:
                        assert not hit[int(y), int(x)], "the object reaches beyond its box"
                covered[kind, max(0, int(y1 - 1)) : int(y2 + 2), max(0, int(x1 - 1)) : int(x2 + 2)] = True
                checked += 1
            for kind in range(16):  # nothing visible may lose its label, but for slivers
                assert (_near(image, kind) & ~covered[kind]).sum() <= 0.12 * 24 * 24 * (1 + how.scale) ** 2
    assert checked > 64


def test_no_augmentation_is_the_image_itself(coloured: Images) -> None:
    batch = Batches(coloured, CPU).make(torch.tensor([5, 2]), Augmentation(), generator_of(0))
    np.testing.assert_allclose(batch["img"].numpy(), coloured.pixels[[5, 2]] / 255, atol=1e-5)
    np.testing.assert_allclose(
        batch["bboxes"].numpy(), np.concatenate([coloured.labels[5], coloured.labels[2]])[:, 1:], atol=1e-6
    )
    assert batch["batch_idx"].tolist() == [0, 0, 1, 1]
    assert batch["img"].is_contiguous(memory_format=torch.channels_last)


def test_draws_depend_on_the_generator_alone(coloured: Images) -> None:
    how, batches = Augmentation(0.5, 0.3, 0.1, 0.5, 0.02, 0.5, 0.3), Batches(coloured, CPU)
    one, same, other = (batches.make(torch.arange(8), how, generator_of(7, 1, step)) for step in (1, 1, 2))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["img"], other["img"])


def test_images_without_boxes(coloured: Images) -> None:
    empty = Images(coloured.pixels, [np.zeros((0, 5), np.float32)] * 8)
    batch = Batches(empty, CPU).make(torch.arange(4), Augmentation(mosaic=0.5, scale=0.2), generator_of(0))
    assert batch["bboxes"].shape == (0, 4) and batch["cls"].shape == (0, 1) and batch["batch_idx"].shape == (0,)
    none = Images(coloured.pixels, empty.labels, polygons=[[]] * 8)
    batch = Batches(none, CPU).make(torch.arange(4), Augmentation(mosaic=0.5, scale=0.2), generator_of(0))
    assert batch["bboxes"].shape == (0, 4) and batch["masks"].sum() == batch["sem_masks"].sum() == 0


def test_colours() -> None:
    same = _colour_matrices(4, Augmentation(), generator_of(0))
    torch.testing.assert_close(same, torch.eye(3).expand(4, 3, 3), atol=1e-5, rtol=0)
    grey = torch.full((3, 1), 0.5)
    turned = _colour_matrices(4, Augmentation(hsv_h=0.3, hsv_s=0.9), generator_of(0)) @ grey
    torch.testing.assert_close(turned, grey.expand(4, 3, 1), atol=1e-3, rtol=0)  # grey has neither hue nor saturation
