"""What a teacher adds to a loss: least where the model says the same, and the same however a batch is divided."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nas.training.distil import Tutor

ANCHORS, NC, BINS = 30, 3, 16


def said(images: int, seed: int) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    scores = 2 * torch.randn(images, NC, ANCHORS, generator=random) - 2
    return {"scores": scores, "boxes": torch.randn(images, 4 * BINS, ANCHORS, generator=random)}


def leaf(predictions: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone().requires_grad_() for name, tensor in predictions.items()}


@pytest.mark.parametrize("end2end", [False, True])
def test_the_term_is_least_where_both_say_the_same(end2end: bool) -> None:
    tutor, goal = Tutor(nn.Identity()), said(4, 0)
    own, other = leaf(goal), leaf(said(4, 1))
    least, more = (
        tutor.loss({"one2many": each, "one2one": {}} if end2end else each, goal, 4, lambda value: value)
        for each in (own, other)
    )
    least.backward()
    more.backward()
    assert more > least
    assert all(each.grad.abs().max() < 1e-6 for each in own.values())
    assert all(each.grad.abs().max() > 1e-3 for each in other.values())
    with torch.no_grad():
        nearer = {name: each - 0.05 * each.grad for name, each in other.items()}
        assert tutor.loss(nearer, goal, 4, lambda value: value) < more


def test_parts_of_a_batch_add_up() -> None:
    """Each divides by the sum over all, and by images of all."""
    tutor, goal, own = Tutor(nn.Identity()), said(5, 0), said(5, 1)
    whole = tutor.loss(own, goal, 5, lambda value: value)
    sure = goal["scores"].sigmoid().amax(1).sum()
    parts = [{name: tensor[at] for name, tensor in each.items()} for at in (slice(3), slice(3, 5)) for each in (own, goal)]
    added = sum(tutor.loss(*parts[place : place + 2], 5, lambda _: sure) for place in (0, 2))
    assert float(added) == pytest.approx(float(whole), rel=1e-5)
