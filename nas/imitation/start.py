"""Where an alternative starts: as drawn, or with the teacher's own kernels, or with a stem that was solved for; its norms set.

A block of ours begins with a 1 x 1 convolution where its widths differ, and the rest of it are residual branches. So its
stem alone is a first model of the teacher's slot, and the best one has a closed form: the least squares of what the
teacher has before its last activation. Its mean and deviation per channel are then the teacher's own.

What stands behind the stem may spoil that: a branch that ends in a norm adds noise of unit variance, and RepViT has a norm
in the main path, which undoes the stem's statistics. So norm by norm it is tried whether less of it, or the teacher's mean
and deviation per channel, lower the error. Nothing is taken that does not: that is how the start is chosen, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nas.yolo.slices import take_equal
from nas.yolo.slot import before_activation, stem_of

RIDGE = 1e-4  # of the mean power of an input channel
LESS = 0.1  # of a norm's scale and shift: enough for a gradient to reach its branch
GATED = 2.0  # times the teacher's mean and deviation: a gate behind the norm begins half open

Error = Callable[[nn.Module], float]


@dataclass(frozen=True)
class Start:
    """How an alternative begins: `drawn`, `teacher` or `solved`, with `+norms` where norms were set; its error as it was drawn,
    and now."""

    name: str
    drawn: float
    error: float


def started(
    drawn: nn.Module, own: nn.Module, inputs: Sequence[Tensor], outputs: Sequence[Tensor], index: Tensor, error: Error
) -> tuple[nn.Module, Start]:
    """The alternative with the least error to begin with, and how it begins.

    Args:
        drawn: the alternative with fresh weights.
        own: the teacher's layer in that slot, in eval mode.
        inputs, outputs: of that layer, a few batches.
        index: the teacher's channels that the alternative stands for.
        error: of an alternative, in training mode.
    """
    starts: dict[str, nn.Module] = {"drawn": drawn}
    if type(own) is type(drawn):
        starts["teacher"] = deepcopy(drawn)
        take_equal(starts["teacher"], own)
    if stem_of(drawn) is not None:
        targets = [before_activation(own, x, y.shape[1]) for x, y in zip(inputs, outputs, strict=True)]
        if all(target is not None for target in targets):
            starts["solved"] = deepcopy(drawn)
            solve_stem(starts["solved"], inputs, [target[:, index] for target in targets if target is not None])
    errors = {name: error(deepcopy(module)) for name, module in starts.items()}
    best = min(errors, key=lambda name: errors[name])
    if best == "teacher":
        return starts[best], Start(best, errors["drawn"], errors[best])
    goal = torch.cat([y[:, index].float() for y in outputs])
    least = set_norms(starts[best], goal.mean((0, 2, 3)), goal.std((0, 2, 3)), error)
    return starts[best], Start(f"{best}+norms" if least < errors[best] else best, errors["drawn"], least)


@torch.no_grad()
def solve_stem(module: nn.Module, inputs: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    """Set a block's stem, up to its activation, to the least squares of the targets (each (N, c2, H, W)); its norm then
    holds their mean and deviation."""
    stem: Any = stem_of(module)
    x = torch.cat([_pixels(part) for part in inputs])
    z = torch.cat([_pixels(part) for part in targets])
    mean, goal = x.mean(0), z.mean(0)
    gram = (x - mean).T @ (x - mean) / len(x)
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    weight = torch.linalg.solve(gram, (x - mean).T @ (z - goal) / len(x)).T  # (c2, c1)
    made = x @ weight.T
    stem.filter.weight.copy_(weight[:, :, None, None])
    stem.norm.running_mean.copy_(made.mean(0))
    stem.norm.running_var.copy_(made.var(0))
    stem.norm.weight.copy_((made.var(0) + stem.norm.eps).sqrt())
    stem.norm.bias.copy_(goal)


@torch.no_grad()
def set_norms(module: nn.Module, mean: Tensor, deviation: Tensor, error: Error) -> float:
    """Set those batch norms of a block, but for its stem's, whose change lowers its error; returns the error that is left.

    Args:
        mean, deviation: of what the block should write, per channel.
    """
    stem = stem_of(module)
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d) and (stem is None or m is not stem.norm)]
    least = error(module)
    for norm in norms:
        if norm.num_features != len(mean):
            continue
        weight, bias = norm.weight.clone(), norm.bias.clone()
        found = (weight, bias)
        for choice in ((LESS * weight, LESS * bias), (deviation, mean), (GATED * deviation, GATED * mean)):
            norm.weight.copy_(choice[0])
            norm.bias.copy_(choice[1])
            if (now := error(module)) < least:
                least, found = now, choice
        norm.weight.copy_(found[0])
        norm.bias.copy_(found[1])
    return least


def _pixels(maps: Tensor) -> Tensor:
    """(N, C, H, W) as float64 (N * H * W, C)."""
    return maps.detach().permute(0, 2, 3, 1).flatten(0, 2).double()
