"""Learning to imitate: alternatives of some slots, side by side, from one forward pass of the teacher per batch.

Alternatives do not touch each other: each has a gradient and a clipping of its own, and AdamW works number by number. So
what one becomes depends on the seed, its slot and itself, not on which others learn beside it.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nas.alive import beat
from nas.imitation.alternatives import Alternative
from nas.imitation.library import ROUNDS
from nas.imitation.start import Start
from nas.seeds import derive
from nas.training.augment import Augmentation, Batches, generator_of
from nas.training.checkpoint import StateError, read_state, write_state
from nas.training.proxy import Average, _follow_quickly
from nas.training.recipe import Recipe, rate
from nas.yolo.slot import tap

STATE_SECONDS = 60.0
FLOOR = 0.01  # of a slot's mean variance, added to that of each channel: a silent channel must not outweigh the others


@dataclass(frozen=True)
class Lessons:
    """How imitation goes.

    Attributes:
        rounds: epochs of each round. Into a round only those go whose place in the teacher costs, into the first one also those
            that begin further off than the mean.
        enough: share of the teacher's loss. Where the upper end of an alternative's rise is below it, it has learned enough.
        training: batch, learning rate, schedule and the like; a round is a leg of it.
        first: batches by which statistics, importances and starts are settled.
        judged: held-out images that a rise is measured on, at most.
    """

    rounds: tuple[int, ...] = ROUNDS
    enough: float = 0.01
    training: Recipe = field(
        default_factory=lambda: Recipe(batch=16, lr=0.004, weight_decay=0.0, clip=1.0, augmentation=Augmentation(fliplr=0.5))
    )
    first: int = 4
    judged: int = 128

    def plain(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Lessons:
        """As `plain` says, the rest as it is by default."""
        plain = {**cls().plain(), **plain}
        training = {**plain["training"], "augmentation": Augmentation(**plain["training"]["augmentation"])}
        return cls(**{**plain, "rounds": tuple(plain["rounds"]), "training": Recipe(**training)})


@dataclass
class Student:
    """An alternative that learns.

    Attributes:
        module: its layer, on the device.
        index: which of the teacher's channels its output stands for.
        scale: 1 / (variance + floor) of these, (1, channels, 1, 1).
        start: how it began.
        rounds: how many it has been through.
        dropped: why it learns no more for good; empty while it does.
    """

    alternative: Alternative
    module: nn.Module
    index: Tensor
    scale: Tensor
    start: Start
    rounds: int = 0
    dropped: str = ""

    def error(self, x: Any, y: Tensor) -> Tensor:
        """Mean over the channels of the squared error over the variance, a number."""
        target = y[:, self.index]
        loss: Tensor = ((self.module(x).float() - target.float()).square() * self.scale).mean()
        return loss


@dataclass(frozen=True)
class Lesson:
    """After each epoch: how many of how many have ended in this round, the mean error of those who learn, how many they are."""

    epoch: int
    epochs: int
    error: float
    students: int


class Round:
    """One round of some students: an optimizer, a weight average and the epochs that are done.

    Args:
        teacher: on the device, frozen, in eval mode.
        students: changed in place; one whose error or gradient is not finite is dropped.
        batches: of the images to learn from.
        recipe: of the round, a leg of `epochs`.
        number: of the round, from 0: its batches are drawn anew.
    """

    def __init__(
        self,
        teacher: Any,
        students: Sequence[Student],
        batches: Batches,
        recipe: Recipe,
        epochs: int,
        number: int,
        seed: int,
        precision: torch.dtype,
    ) -> None:
        self.epoch = 0
        self._teacher, self._students, self._batches, self._recipe = teacher, list(students), batches, recipe
        self._epochs, self._seed, self._precision = epochs, derive(seed, number, "imitation order"), precision
        self._number = number
        self._batch = min(recipe.batch, len(batches.images))
        self._passes = len(batches.images) // self._batch
        self._steps = -(-self._passes // recipe.accumulate)
        self._modules = nn.ModuleDict({student.alternative.key: student.module for student in students}).train()
        _follow_quickly(self._modules, recipe.statistics * epochs * self._passes)
        self._average = Average(self._modules, recipe.average * epochs * self._steps)
        parameters = [p for p in self._modules.parameters() if p.requires_grad]
        fused = batches.device.type in {"cpu", "cuda"}
        self._optimizer = torch.optim.AdamW(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=fused)

    @property
    def learning(self) -> list[Student]:
        return [student for student in self._students if not student.dropped]

    def run(self, report: Callable[[Lesson], None], state: Path | None) -> None:
        """Go through the epochs that are left, then put the averaged weights in place."""
        saved = time.monotonic()
        while self.epoch < self._epochs and self.learning:
            error = self._run_epoch()
            report(Lesson(self.epoch, self._epochs, error, len(self.learning)))
            if state is not None and self.epoch < self._epochs and time.monotonic() - saved >= STATE_SECONDS:
                self.save(state)
                saved = time.monotonic()
        self._average.apply()
        self._modules.eval()
        for student in self._students:
            student.rounds += 1

    def _run_epoch(self) -> float:
        order = torch.randperm(len(self._batches.images), generator=generator_of(self._seed, self.epoch))
        layers = {student.alternative.layer for student in self._students}
        total = torch.zeros((), device=self._batches.device)
        for place in range(self._passes):
            beat()
            rows = order[place * self._batch : (place + 1) * self._batch]
            images = self._batches.make(rows, self._recipe.augmentation, generator_of(self._seed, self.epoch, place + 1))["img"]
            total += self._pass(images, layers)
            if (place + 1) % self._recipe.accumulate == 0 or place + 1 == self._passes:
                self._step(self.epoch * self._steps + place // self._recipe.accumulate)
        self.epoch += 1
        return float(total) / self._passes

    def _pass(self, images: Tensor, layers: set[int]) -> Tensor:
        """Teacher once, then each student forward and back on its own: the memory of one at a time."""
        learning = self.learning
        arithmetic = torch.autocast(images.device.type, self._precision, enabled=self._precision != torch.float32)
        with torch.no_grad(), arithmetic:
            seen = tap(self._teacher, images, layers)
        errors = []
        for student in learning:
            with torch.enable_grad(), arithmetic:
                error = student.error(*seen[student.alternative.layer])
            error.backward()  # type: ignore[no-untyped-call]
            errors.append(error.detach())
        return torch.stack(errors).mean() if errors else torch.zeros((), device=images.device)

    @torch.no_grad()
    def _step(self, step: int) -> None:
        norms = []
        for student in self.learning:
            gradients = [p.grad for p in student.module.parameters() if p.grad is not None]
            norm = torch.stack(torch._foreach_norm(gradients)).norm()
            torch._foreach_mul_(gradients, (self._recipe.clip / (norm + 1e-6)).clamp(max=1.0))
            norms.append(norm)
        finite = torch.stack(norms).isfinite().tolist() if norms else []
        for student, fine in zip(self.learning, finite, strict=True):
            if not fine:
                student.dropped = f"diverged in epoch {self.epoch + 1} of round {self._number + 1}: its gradient is not finite"
                student.module.zero_grad()
        for group in self._optimizer.param_groups:
            group["lr"] = self._recipe.lr * rate(step, self._epochs * self._steps, self._recipe)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._average.update()

    def save(self, path: Path) -> None:
        """Write all that `load` needs. Raises OSError."""
        tensors: dict[str, Tensor] = {f"module.{name}": t for name, t in self._modules.state_dict().items()}
        tensors |= {f"average.{place}": t for place, t in enumerate(self._average.means)}
        for place, weight in enumerate(self._optimizer.param_groups[0]["params"]):
            tensors |= {f"adam.{place}.{name}": value for name, value in self._optimizer.state[weight].items()}
        facts = {"identity": self._identity(), "epoch": self.epoch, "averaged": self._average.steps}
        facts["dropped"] = [student.dropped for student in self._students]
        write_state(path, tensors, facts)

    def load(self, path: Path) -> None:
        """Go on where the same round was saved. Raises StateError for the state of another one."""
        tensors, facts = read_state(path, self._batches.device)
        if facts["identity"] != json.loads(json.dumps(self._identity())):
            raise StateError(f"{path}: the state of another round", "remove it: the round starts anew")
        self._modules.load_state_dict({name: tensors[f"module.{name}"] for name in self._modules.state_dict()})
        self._average.restore([tensors[f"average.{place}"] for place in range(len(self._average.means))], facts["averaged"])
        for place, weight in enumerate(self._optimizer.param_groups[0]["params"]):
            prefix = f"adam.{place}."
            found = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            if found:
                self._optimizer.state[weight] = {
                    name: torch.empty_like(weight).copy_(t).detach() if t.shape == weight.shape else t
                    for name, t in found.items()
                }
        self.epoch = facts["epoch"]
        for student, dropped in zip(self._students, facts["dropped"], strict=True):
            student.dropped = dropped

    def _identity(self) -> list[Any]:
        """What a state must share with this round."""
        keys = [student.alternative.key for student in self._students]
        return [keys, self._number, self._epochs, self._seed, asdict(self._recipe), str(self._precision)]


@torch.no_grad()
def errors_of(teacher: Any, students: Sequence[Student], batches: Batches) -> list[float]:
    """The mean error of each student on some images, all in eval mode; infinite where it is not a number."""
    layers = {student.alternative.layer for student in students}
    totals = torch.zeros(len(students), device=batches.device)
    count = len(batches.images)
    for rows in torch.split(torch.arange(count), 16):
        beat()
        seen = tap(teacher, batches.make(rows, Augmentation(), generator_of(0))["img"], layers)
        totals += len(rows) * torch.stack([student.error(*seen[student.alternative.layer]) for student in students])
    means = (totals / count).tolist()
    return [mean if math.isfinite(mean) else math.inf for mean in means]
