"""How a proxy is trained: the recipe, and what it makes of rungs.

A short run needs many small optimizer steps, so the batch is small, and a schedule that fits its length: the learning
rate, the warm-up, the averaging of weights and the closing of the mosaic are all shares of the run. A trial that climbs
rungs (3, 9, 27 epochs) runs once per rung: each leg, from one rung to the next, has the whole schedule, rise and fall, so
that every rung scores weights that have come to rest (warm restarts: Loshchilov and Hutter, ICLR 2017).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from nas.errors import InputError
from nas.training.augment import Augmentation


@dataclass(frozen=True)
class Recipe:
    """The defaults were measured on a small real set, 3 to 20 epochs from scratch.

    Attributes:
        batch: images per forward pass.
        accumulate: forward passes per optimizer step.
        lr: peak learning rate of AdamW.
        final_lr: share of `lr` at the last step of a leg (cosine).
        warmup: share of a leg's steps during which the learning rate rises linearly.
        weight_decay: of convolution and linear weights only.
        clip: largest gradient norm.
        average: horizon of the weight average as a share of the leg; 0 keeps the last weights.
        statistics: horizon of the batch norms' running statistics as a share of the leg. Ultralytics' momentum of 0.03
            is made for long runs: after a hundred steps its statistics still lag behind the weights, and those score a
            tenth of what they are worth.
        augmentation: how images are changed.
        close_mosaic: share of a leg's epochs, the last ones, that see whole images instead of mosaics.
    """

    batch: int = 8
    accumulate: int = 1
    lr: float = 0.004
    final_lr: float = 0.01
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip: float = 10.0
    average: float = 0.05
    statistics: float = 0.1
    augmentation: Augmentation = field(default_factory=lambda: Augmentation(fliplr=0.5))
    close_mosaic: float = 0.3

    def halved(self) -> Recipe:
        """The same training in half the memory: half the batch, twice as many passes to a step."""
        return replace(self, batch=max(1, self.batch // 2), accumulate=2 * self.accumulate)


@dataclass(frozen=True)
class Leg:
    """The epochs from one rung to the next: `first` included, `end` not."""

    first: int
    end: int

    @property
    def epochs(self) -> int:
        return self.end - self.first

    def augmentation(self, epoch: int, recipe: Recipe) -> Augmentation:
        """What the images of an epoch of this leg go through."""
        closing = epoch - self.first >= self.epochs * (1 - recipe.close_mosaic)
        return replace(recipe.augmentation, mosaic=0.0) if closing else recipe.augmentation


def legs_of(rungs: Sequence[int]) -> list[Leg]:
    """The legs of a climb. Raises InputError where the rungs do not rise from at least one epoch."""
    if not rungs or any(later <= earlier for earlier, later in pairwise((0, *rungs))):
        raise InputError(f"rungs of {', '.join(map(str, rungs)) or 'no'} epochs", "give epochs that rise, for example 3,9,27")
    return [Leg(first, end) for first, end in pairwise((0, *rungs))]


def rate(step: int, steps: int, recipe: Recipe) -> float:
    """Share of the peak learning rate at a step of a leg: a linear rise, then a cosine down to `final_lr`."""
    rise = max(1, round(recipe.warmup * steps))
    if step < rise:
        return (step + 1) / rise
    done = (step - rise) / max(1, steps - rise)
    return recipe.final_lr + (1 - recipe.final_lr) * (1 + math.cos(math.pi * min(1.0, done))) / 2
