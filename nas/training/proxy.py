"""Proxy training: the shortest training that still ranks architectures.

No files, no data-loader processes, no validation before the end. What a short run needs is many small optimizer steps,
so the batch is small, and a schedule that fits its length: the learning rate, the warm-up, the averaging of weights and
the closing of the mosaic are all shares of the run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from nas.errors import InputError, NasError
from nas.training.augment import Augmentation, Batches, generator_of
from nas.yolo.criterion import Criterion
from nas.yolo.decode import Images
from nas.yolo.metrics import evaluate


class DivergedError(NasError):
    """The loss or its gradient became infinite or not a number: no further step can repair the weights."""


@dataclass(frozen=True)
class Recipe:
    """How a proxy is trained. The defaults were measured on a small real set, 3 to 20 epochs from scratch.

    Attributes:
        batch: images per step.
        lr: peak learning rate of AdamW.
        final_lr: share of `lr` at the last step (cosine).
        warmup: share of the steps during which the learning rate rises linearly.
        weight_decay: of convolution and linear weights only.
        clip: largest gradient norm.
        average: horizon of the weight average as a share of the run; 0 keeps the last weights.
        statistics: horizon of the batch norms' running statistics as a share of the run. Ultralytics' momentum of 0.03
            is made for long runs: after a hundred steps its statistics still lag behind the weights, and those score a
            tenth of what they are worth.
        augmentation: how images are changed.
        close_mosaic: share of the epochs, the last ones, that see whole images instead of mosaics.
    """

    batch: int = 8
    lr: float = 0.004
    final_lr: float = 0.01
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip: float = 10.0
    average: float = 0.05
    statistics: float = 0.1
    augmentation: Augmentation = field(default_factory=lambda: Augmentation(fliplr=0.5))
    close_mosaic: float = 0.3


@dataclass(frozen=True)
class Progress:
    """After each epoch: the epoch that ended (from 1), of how many, its mean loss per image, seconds since the start."""

    epoch: int
    epochs: int
    loss: float
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """What a proxy training found.

    Attributes:
        map: mAP50-95 on the held-out images, 0..1; of a segmentation model, of its masks.
        map50: mAP50 on them, 0..1, of the same.
        box_map: mAP50-95 of the boxes.
        loss_curve: mean training loss per image of each epoch.
        epochs: epochs trained.
        seconds: wall clock of the whole call.
        precision: arithmetic of the training, "float32" or "bfloat16".
    """

    map: float
    map50: float
    box_map: float
    loss_curve: tuple[float, ...]
    epochs: int
    seconds: float
    precision: str


def train_proxy(
    model: nn.Module,
    train: Images,
    held_out: Images,
    *,
    nc: int,
    epochs: int,
    recipe: Recipe,
    seed: int,
    device: torch.device,
    report: Callable[[Progress], None],
) -> Outcome:
    """Train a detection or segmentation model and score it once.

    Equal arguments give equal results, bit for bit, on one kind of processor with one number of threads; on a GPU up
    to the order of its atomic additions.

    Args:
        model: the model with its initial weights; trained in place, its averaged weights are what is scored and stays.
        train: training images, for segmentation with polygons.
        held_out: images to score on; training never sees them.
        nc: number of classes.
        epochs: passes over `train`, at least 1.
        recipe: how to train.
        seed: of the order of images, the augmentation and whatever the model itself draws.
        device: where to train.
        report: called after every epoch; what it raises ends the training and reaches the caller.

    Raises:
        DivergedError: the loss or the gradient is no longer finite.
        InputError: no images or no epochs to train.
    """
    if not len(train) or epochs < 1:
        raise InputError(f"{len(train)} images and {epochs} epochs to train", "a proxy needs at least one of each")
    began = time.perf_counter()
    torch.manual_seed(seed)
    dtype = training_dtype(device)
    model = model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    criterion, batches = Criterion(model, epochs), Batches(train, device)
    batch = min(recipe.batch, len(train))
    steps = len(train) // batch  # a smaller last batch would only disturb the batch statistics
    _follow_quickly(model, recipe.statistics * epochs * steps)
    optimizer = _optimizer(model, recipe)
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, epochs * steps, recipe))
    average = Average(model, recipe.average * epochs * steps)

    curve: list[float] = []
    for epoch in range(epochs):
        closing = epoch >= epochs * (1 - recipe.close_mosaic)
        how = _closed(recipe.augmentation) if closing else recipe.augmentation
        order = torch.randperm(len(train), generator=generator_of(seed, epoch))
        total = 0.0
        for step in range(steps):
            data = batches.make(order[step * batch : (step + 1) * batch], how, generator_of(seed, epoch, step + 1))
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                predictions = model(data["img"])
            loss = criterion(predictions, data)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            norm = nn.utils.clip_grad_norm_(weights, recipe.clip)
            if not torch.isfinite(loss + norm):
                raise DivergedError(
                    "the training diverged",
                    f"in epoch {epoch + 1}: loss {loss.item()}, gradient norm {norm.item()}; try a lower learning rate",
                )
            optimizer.step()
            schedule.step()
            average.update()
            total += loss.item() / batch
        criterion.end_epoch()
        curve.append(total / steps)
        report(Progress(epoch + 1, epochs, curve[-1], time.perf_counter() - began))

    average.apply()
    metrics = evaluate(model, held_out, nc, batch=4 * batch, device=device)
    seconds = time.perf_counter() - began
    fitness, arithmetic = metrics.fitness, str(dtype).removeprefix("torch.")
    return Outcome(fitness.map, fitness.map50, metrics.boxes.map, tuple(curve), epochs, seconds, arithmetic)


def training_dtype(device: torch.device) -> torch.dtype:
    """The arithmetic of a device: bfloat16 where the hardware has it, float32 elsewhere.

    Asked of the hardware, not timed: a choice made by timing could differ between two runs on one busy machine, and so
    would their results. Processors that only emulate bfloat16 are ten times slower with it.
    """
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        features = torch.cpu.get_capabilities()
        native = bool(features.get("avx512_bf16") or features.get("amx_bf16"))
    else:
        native = False
    return torch.bfloat16 if native else torch.float32


class Average:
    """A running average of a model's weights and batch statistics, with a horizon that fits short runs.

    Args:
        model: the model to follow.
        horizon: steps over which the average forgets (decay 1 - 1 / horizon); below 1 it is the latest weights.
    """

    def __init__(self, model: nn.Module, horizon: float) -> None:
        self._live = [t for t in model.state_dict().values() if t.is_floating_point()]
        self._mean = [t.clone() for t in self._live]
        self._horizon = horizon
        self._step = 0

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step. Early on the horizon is short, so that the first weights are forgotten."""
        self._step += 1
        share = 1 / max(1.0, min(self._horizon, self._step / 4))
        torch._foreach_lerp_(self._mean, self._live, share)

    @torch.no_grad()
    def apply(self) -> None:
        """Put the average into the model."""
        torch._foreach_copy_(self._live, self._mean)


def _follow_quickly(model: nn.Module, horizon: float) -> None:
    """Give the batch norms a momentum whose horizon, in steps, fits the run; never slower than Ultralytics' own."""
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


def _rate(step: int, steps: int, recipe: Recipe) -> float:
    """Share of the peak learning rate at a step: a linear rise, then a cosine down to `final_lr`."""
    rise = max(1, round(recipe.warmup * steps))
    if step < rise:
        return (step + 1) / rise
    done = (step - rise) / max(1, steps - rise)
    return recipe.final_lr + (1 - recipe.final_lr) * (1 + math.cos(math.pi * min(1.0, done))) / 2


def _closed(how: Augmentation) -> Augmentation:
    """The same augmentation without mosaics."""
    return Augmentation(0.0, how.scale, how.translate, how.fliplr, how.hsv_h, how.hsv_s, how.hsv_v)
