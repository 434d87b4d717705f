"""Where an alternative starts: as drawn, with the teacher's own kernels, or with a stem that was solved for.

A block of ours begins with a 1 x 1 convolution where its widths differ, and the rest of it are residual branches. So its
stem alone is a first model of the teacher's slot, and the best one has a closed form: the least squares of what the
teacher has before its last activation. Its mean and deviation per channel are then the teacher's own. Which start an
alternative takes is decided by the error that each begins with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from nas.yolo.slices import take_equal
from nas.yolo.slot import before_activation, stem_of

RIDGE = 1e-4  # of the mean power of an input channel


def started(
    drawn: nn.Module,
    own: nn.Module,
    inputs: Sequence[Tensor],
    index: Tensor,
    error: Callable[[nn.Module], float],
) -> tuple[nn.Module, str]:
    """The start with the least error, and its name: `drawn`, `teacher` or `solved`.

    Args:
        drawn: the alternative with fresh weights.
        own: the teacher's layer in that slot, in eval mode.
        inputs: of the slot, a few batches.
        index: the teacher's channels that the alternative stands for.
        error: of an alternative, in training mode.
    """
    starts: dict[str, nn.Module] = {"drawn": drawn}
    if type(own) is type(drawn):
        starts["teacher"] = deepcopy(drawn)
        take_equal(starts["teacher"], own)
    if stem_of(drawn) is not None:
        targets = [before_activation(own, x, _channels(own, x)) for x in inputs]
        if all(target is not None for target in targets):
            starts["solved"] = deepcopy(drawn)
            solve_stem(starts["solved"], inputs, [target[:, index] for target in targets if target is not None])
    errors = {name: error(deepcopy(module)) for name, module in starts.items()}
    best = min(errors, key=lambda name: errors[name])
    return starts[best], best


def _channels(layer: nn.Module, x: Tensor) -> int:
    with torch.no_grad():
        return int(layer(x[:1]).shape[1])


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


def _pixels(maps: Tensor) -> Tensor:
    """(N, C, H, W) as float64 (N * H * W, C)."""
    return maps.detach().permute(0, 2, 3, 1).flatten(0, 2).double()
