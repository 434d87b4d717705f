"""Boxes must go where the pixels go."""

import numpy as np
import pytest
import torch

from nas.training.augment import Augmentation, Batches, _colour_matrices, generator_of
from nas.yolo.decode import Images

SIDE, CPU = 64, torch.device("cpu")


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


@pytest.mark.parametrize(
    "how",
    [
        Augmentation(fliplr=0.5),
        Augmentation(scale=0.5, translate=0.2, fliplr=0.5),
        Augmentation(mosaic=1.0),
        Augmentation(mosaic=0.5, scale=0.5, translate=0.1, fliplr=0.5),
    ],
    ids=["flip", "affine", "mosaic", "mixed"],
)
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


def test_colours() -> None:
    same = _colour_matrices(4, Augmentation(), generator_of(0))
    torch.testing.assert_close(same, torch.eye(3).expand(4, 3, 3), atol=1e-5, rtol=0)
    grey = torch.full((3, 1), 0.5)
    turned = _colour_matrices(4, Augmentation(hsv_h=0.3, hsv_s=0.9), generator_of(0)) @ grey
    torch.testing.assert_close(turned, grey.expand(4, 3, 1), atol=1e-3, rtol=0)  # grey has neither hue nor saturation
