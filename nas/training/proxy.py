"""Proxy training: the shortest training that still ranks architectures.

No data-loader processes, no validation before a rung's end, no files but the state of a training that is to go on.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from nas.alive import beat
from nas.errors import InputError, NasError
from nas.seeds import derive
from nas.training.augment import Batches, generator_of
from nas.training.batch_norm import together
from nas.training.checkpoint import StateError, read_state, write_state
from nas.training.distil import Tutor
from nas.training.peers import Peers
from nas.training.recipe import Leg, Recipe, legs_of, rate
from nas.yolo.criterion import Criterion
from nas.yolo.decode import Images
from nas.yolo.metrics import evaluate

ALONE = Peers()
STATE_SECONDS = 60.0


class DivergedError(NasError):
    """The loss or its gradient became infinite or not a number: no further step can repair the weights."""


@dataclass(frozen=True)
class Progress:
    """After each epoch: the epoch that ended (from 1), of how many, its mean loss per image, seconds since the start."""

    epoch: int
    epochs: int
    loss: float
    seconds: float

    def __str__(self) -> str:
        return f"epoch {self.epoch} of {self.epochs}: loss {self.loss:.4f} after {self.seconds:.1f} s"


@dataclass(frozen=True)
class Outcome:
    """What a proxy training found.

    Attributes:
        map: mAP50-95 on the held-out images, 0..1: of masks for a segmentation model, of boxes otherwise.
        map50: the same at IoU 0.50.
        box_map: mAP50-95 of boxes, whatever the model.
        loss_curve: mean training loss per image of each epoch.
        epochs: epochs trained, those of an earlier call included.
        resumed_at: epochs that an earlier call had trained.
        seconds: wall clock of this call.
        precision: arithmetic of the training, "float32" or "bfloat16".
    """

    map: float
    map50: float
    box_map: float
    loss_curve: tuple[float, ...]
    epochs: int
    resumed_at: int
    seconds: float
    precision: str


def train_proxy(
    model: nn.Module,
    train: Images,
    held_out: Images,
    *,
    nc: int,
    rungs: Sequence[int],
    recipe: Recipe,
    seed: int,
    device: torch.device,
    precision: torch.dtype,
    report: Callable[[Progress], None],
    until: int | None = None,
    state: Path | None = None,
    peers: Peers = ALONE,
    teacher: nn.Module | None = None,
) -> Outcome:
    """Train a detection or segmentation model up to a rung and score it once.

    Equal arguments give equal results, bit for bit, on one kind of processor with one number of threads; on a GPU up
    to the order of its atomic additions. That holds too for a training that is interrupted, or paused at a rung, and taken
    up again from its `state`.

    Args:
        model: the model with its initial weights; trained in place, its averaged weights are what is scored and stays.
        train: training images, for segmentation with polygons.
        held_out: images to score on; training never sees them.
        nc: number of classes.
        rungs: rising numbers of epochs; they shape the schedule, see `nas.training.recipe`.
        recipe: how to train.
        seed: of the order of images, the augmentation and whatever the model itself draws.
        device: where to train.
        precision: float32, or bfloat16 for automatic mixed precision; see `nas.training.precision`.
        report: called after every epoch; what it raises ends the training and reaches the caller.
        until: the rung to stop at; the last one where None.
        state: a file from which the training goes on, if it is there; written every minute and at every rung but the last,
            after which it is removed.
        peers: those who train this model together, each on a device of its own and called with equal arguments. Of them the
            first alone reports and writes; the state is the same as that of one who is alone.
        teacher: a trained model whose outputs the model is drawn to, see `nas.training.distil`.

    Raises:
        DivergedError: the loss or the gradient is no longer finite.
        InputError: no images, fewer than peers in a batch, rungs that do not rise, no such rung.
        StateError: `state` is of another training, or damaged.
        OSError: the state cannot be written.
    """
    began = time.perf_counter()
    last = legs_of(rungs)[-1].end
    goal = last if until is None else until
    if goal not in rungs:
        raise InputError(f"no rung of {goal} epochs", f"rungs are {', '.join(map(str, rungs))}")
    training = Training(model, train, recipe, rungs, seed, device, precision, peers, teacher)
    if state is not None and peers.told(state.is_file()):
        training.load(state)
    resumed_at, saved = training.epoch, time.perf_counter()
    with together(model, peers):
        while training.epoch < goal:
            loss = training.run_epoch()
            if not peers.first:
                continue
            report(Progress(training.epoch, goal, loss, time.perf_counter() - began))
            due = training.epoch == goal or time.perf_counter() - saved >= STATE_SECONDS
            if state is not None and due and training.epoch < last:
                training.save(state)
                saved = time.perf_counter()
    training.average.apply()
    part = peers.part(len(held_out))
    metrics = evaluate(model, held_out, nc, batch=4 * recipe.batch, device=device, part=part, joined=peers.joined)
    if state is not None and goal == last and peers.first:
        state.unlink(missing_ok=True)
    fitness, arithmetic = metrics.fitness, str(precision).removeprefix("torch.")
    seconds = time.perf_counter() - began
    curve = tuple(training.curve)
    return Outcome(fitness.map, fitness.map50, metrics.boxes.map, curve, training.epoch, resumed_at, seconds, arithmetic)


class Training:
    """A training between two epochs: everything that the next one depends on.

    Arguments as of `train_proxy`.
    """

    def __init__(
        self,
        model: nn.Module,
        train: Images,
        recipe: Recipe,
        rungs: Sequence[int],
        seed: int,
        device: torch.device,
        precision: torch.dtype,
        peers: Peers = ALONE,
        teacher: nn.Module | None = None,
    ) -> None:
        if not len(train):
            raise InputError("0 images to train", "a proxy needs at least one")
        self.epoch = 0
        self.curve: list[float] = []
        self._legs = legs_of(rungs)
        self._recipe, self._seed, self._device, self._precision = recipe, seed, device, precision
        torch.manual_seed(seed)
        self._model = model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self._batch, self._peers = min(recipe.batch, len(train)), peers
        if self._batch < peers.count:
            what = f"a batch of {self._batch} images cannot be divided among {peers.count} devices"
            raise InputError(what, f"--set batch={peers.count}, more images, or --gpus-per-trial {self._batch}")
        whole = partial(peers.whole, total=self._batch)
        self._criterion, self._batches = Criterion(model, rungs[-1], whole), Batches(train, device)
        # a smaller last batch would only disturb the batch statistics
        self._passes = len(train) // self._batch
        self._steps = -(-self._passes // recipe.accumulate)
        self._optimizer = _optimizer(model, recipe)
        self._weights = [p for group in self._optimizer.param_groups for p in group["params"]]
        self.average = Average(model)
        plain = {**asdict(recipe), "batch": self._batch}
        self._identity = [plain, list(rungs), seed, str(precision), len(train), train.imgsz, _fingerprint(model)]
        self._tutor: Tutor | None = None
        if teacher is not None:
            self._tutor = Tutor(teacher.to(device, memory_format=torch.channels_last))  # type: ignore[call-overload]
            self._identity.append("taught")

    def run_epoch(self) -> float:
        """Train one epoch; returns its mean loss per image. Raises DivergedError."""
        leg = next(leg for leg in self._legs if leg.first <= self.epoch < leg.end)
        how = leg.augmentation(self.epoch, self._recipe)
        self._settle(leg)
        order = torch.randperm(len(self._batches.images), generator=generator_of(self._seed, self.epoch))
        total = 0.0
        part = self._peers.part(self._batch)
        if not self._peers.first:  # what the model itself draws: other numbers for each, again the same in any session
            torch.manual_seed(derive(self._seed, self.epoch, f"peer {self._peers.rank}"))
        self._model.train()
        for index in range(self._passes):
            beat()
            rows = order[index * self._batch : (index + 1) * self._batch]
            total += self._pass(self._batches.make(rows, how, generator_of(self._seed, self.epoch, index + 1), part))
            if (index + 1) % self._recipe.accumulate == 0 or index + 1 == self._passes:
                self._step(leg, index // self._recipe.accumulate)
        self._criterion.end_epoch()
        self.epoch += 1
        self.curve.append(total / self._passes)
        return self.curve[-1]

    def _settle(self, leg: Leg) -> None:
        """Horizons are shares of the leg."""
        _follow_quickly(self._model, self._recipe.statistics * leg.epochs * self._passes)
        self.average.horizon = self._recipe.average * leg.epochs * self._steps

    def _pass(self, data: dict[str, Tensor]) -> float:
        """Forward and backward of one batch; returns its loss per image."""
        with torch.autocast(self._device.type, self._precision, enabled=self._precision != torch.float32):
            said = None if self._tutor is None else self._tutor.says(data["img"])
            predictions = self._model(data["img"])
        loss = self._criterion(predictions, data)
        aim = loss
        if self._tutor is not None and said is not None:
            aim = loss + self._tutor.loss(predictions, said, self._batch, self._peers.total)
        aim.backward()  # type: ignore[no-untyped-call]
        value = loss.item()
        if not math.isfinite(value):
            raise _diverged(self.epoch, f"the loss is {value}")
        return value / self._batch

    def _step(self, leg: Leg, index: int) -> None:
        """One step of the optimizer, the `index`-th of its epoch."""
        self._peers.add_gradients(self._weights)
        norm = nn.utils.clip_grad_norm_(self._weights, self._recipe.clip)
        if not torch.isfinite(norm):
            raise _diverged(self.epoch, f"the norm of the gradient is {norm.item()}")
        done = (self.epoch - leg.first) * self._steps + index
        for group in self._optimizer.param_groups:
            group["lr"] = self._recipe.lr * rate(done, leg.epochs * self._steps, self._recipe)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.average.update()

    def save(self, path: Path) -> None:
        """Write everything that `load` needs. Raises OSError."""
        tensors: dict[str, Tensor] = {f"model.{name}": t for name, t in self._model.state_dict().items()}
        tensors |= {f"average.{index}": t for index, t in enumerate(self.average.means)}
        for index, weight in enumerate(self._weights):
            for name, value in self._optimizer.state[weight].items():
                tensors[f"adam.{index}.{name}"] = value
        tensors["random"] = torch.get_rng_state()
        if self._device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(self._device)
        facts = {"identity": self._identity, "epoch": self.epoch, "curve": self.curve, "averaged": self.average.steps}
        write_state(path, tensors, facts)

    def load(self, path: Path) -> None:
        """Go on where a training with equal arguments was saved. Raises StateError for the state of another one."""
        tensors, facts = read_state(path, self._device)
        if facts["identity"] != json.loads(json.dumps(self._identity)):
            raise StateError(f"{path}: the state of another training", "remove it: the trial starts anew")
        self._model.load_state_dict({name: tensors[f"model.{name}"] for name in self._model.state_dict()})
        self.average.restore([tensors[f"average.{index}"] for index in range(len(self.average.means))], facts["averaged"])
        for index, weight in enumerate(self._weights):
            prefix = f"adam.{index}."
            saved = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
            # the fused optimizer walks through memory: its averages must lie there in the order of their weight
            self._optimizer.state[weight] = {
                name: torch.empty_like(weight).copy_(tensor).detach() if tensor.shape == weight.shape else tensor
                for name, tensor in saved.items()
            }
        torch.set_rng_state(tensors["random"].cpu())
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random.cuda"].cpu(), self._device)
        self.epoch, self.curve = facts["epoch"], list(facts["curve"])
        for _ in range(self.epoch):
            self._criterion.end_epoch()


class Average:
    """A running average of a model's weights and batch statistics.

    `horizon` is the number of steps over which the average forgets (decay 1 - 1 / horizon); below 1 it is the latest
    weights. `means` are the averages, in the order of the model's floating tensors, `steps` how many went into them.
    """

    def __init__(self, model: nn.Module, horizon: float = 0.0) -> None:
        self.horizon = horizon
        self._live = [t for t in model.state_dict().values() if t.is_floating_point()]
        self.means = [t.clone() for t in self._live]
        self.steps = 0

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step. Early on the horizon is short, so that the first weights are forgotten."""
        self.steps += 1
        share = 1 / max(1.0, min(self.horizon, self.steps / 4))
        torch._foreach_lerp_(self.means, self._live, share)

    @torch.no_grad()
    def apply(self) -> None:
        """Put the average into the model."""
        torch._foreach_copy_(self._live, self.means)

    @torch.no_grad()
    def restore(self, means: Sequence[Tensor], steps: int) -> None:
        """Take up averages that were saved."""
        torch._foreach_copy_(self.means, list(means))
        self.steps = steps


def _diverged(epoch: int, what: str) -> DivergedError:
    return DivergedError("the training diverged", f"in epoch {epoch + 1}: {what}; try a lower learning rate")


def _fingerprint(model: nn.Module) -> str:
    """Names the tensors of a model and their shapes."""
    shapes = [(name, list(tensor.shape)) for name, tensor in model.state_dict().items()]
    return hashlib.sha256(json.dumps(shapes).encode()).hexdigest()[:16]


def _follow_quickly(model: nn.Module, horizon: float) -> None:
    """Give the batch norms a momentum whose horizon, in passes, fits the run; never slower than Ultralytics' own."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = min(max(1 / max(horizon, 1.0), 0.03), 0.5)


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW that decays the weights of convolutions and linear layers, and nothing else."""
    linear = (nn.Linear, nn.modules.conv._ConvNd)
    decayed = {id(module.weight) for module in model.modules() if isinstance(module, linear)}
    groups: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
    for name, parameter in model.named_parameters():
        # the head's `dfl` holds the fixed numbers 0..15 as a convolution: never trained
        parameter.requires_grad_(".dfl." not in name)
        if parameter.requires_grad:
            groups[id(parameter) in decayed].append(parameter)
    plain, decay = groups
    return torch.optim.AdamW(
        [{"params": plain, "weight_decay": 0.0}, {"params": decay, "weight_decay": recipe.weight_decay}],
        lr=recipe.lr,
        fused=next(model.parameters()).device.type in {"cpu", "cuda"},
    )
