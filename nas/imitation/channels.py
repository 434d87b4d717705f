"""Which of the teacher's channels the channels of a narrower or wider slot stand for.

A narrower slot keeps the channels that matter most, so the choice for 0.5 is a part of that for 0.75. A wider slot has all
of them, and the most important ones again: who reads them takes the mean of the two. Every kernel that reads a slot
takes its columns by the same list, so slicing the teacher equals setting its other channels to zero.

Importance is the first-order change of the task's loss when a channel is set to zero, squared and averaged over batches:
Molchanov et al., "Importance Estimation for Neural Network Pruning" (CVPR 2019), equation 8, on activations.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nas.alive import beat, locked
from nas.imitation.alternatives import rows_of
from nas.training.checkpoint import read_state, write_state
from nas.yolo.criterion import Batch, Criterion
from nas.yolo.slices import chosen, splits_input
from nas.yolo.slot import output_channels, predictions_with_fixed_norms

IMPORTANCE = "importance.safetensors"


def importance_of(teacher: nn.Module, batches: Iterable[Batch]) -> dict[int, Tensor]:
    """Per layer that writes a map, float32 (channels,) on the CPU: how much the task's loss depends on each channel."""
    found: dict[int, Tensor] = {}

    def add(layer: int, values: Tensor, slope: Tensor) -> None:
        change = (values * slope).sum((2, 3)).float()  # per image and channel
        found[layer] = found.get(layer, torch.zeros(())) + change.square().sum(0).cpu()

    def watch(layer: int, output: Tensor) -> Tensor:
        """Have the gradient looked at as it passes: kept to the end, those of all layers take as much as the activations."""
        found.setdefault(layer, torch.zeros(output.shape[1]))  # of what the loss does not depend on nothing passes
        output = output if output.requires_grad else output.detach().requires_grad_()
        values = output.detach()  # a hook that held the output itself would keep it, and the whole graph
        output.register_hook(lambda slope: add(layer, values, slope))  # type: ignore[no-untyped-call]
        return output

    model: Any = teacher
    layers = [layer for layer, channels in enumerate(output_channels(teacher)) if channels]
    criterion = Criterion(teacher, epochs=1)
    hooks = [
        model.model[layer].register_forward_hook(lambda _, __, output, layer=layer: watch(layer, output)) for layer in layers
    ]
    try:
        for batch in batches:
            beat()
            with torch.enable_grad():
                criterion(predictions_with_fixed_norms(teacher, batch["img"]), batch).backward()  # type: ignore[no-untyped-call]
    finally:
        for hook in hooks:
            hook.remove()
    return found


def widths_of(skeleton: Mapping[str, Any], teacher: nn.Module, folder: Path, batches: Iterable[Batch]) -> Widths:
    """The widths that all blocks of a library's folder share: measured by whoever comes first, read by everyone else."""
    path = folder / IMPORTANCE
    folder.mkdir(parents=True, exist_ok=True)
    with locked(path):
        if not path.is_file():
            found = importance_of(teacher, batches)
            write_state(path, {str(layer): importance for layer, importance in found.items()}, {})
    return read_widths(skeleton, folder)


def has_widths(folder: Path) -> bool:
    """Whether somebody has measured them for a library already."""
    return (folder / IMPORTANCE).is_file()


def read_widths(skeleton: Mapping[str, Any], folder: Path) -> Widths:
    """The widths of a library. Raises InputError where nothing has learned yet, or the file is damaged."""
    tensors, _ = read_state(folder / IMPORTANCE, torch.device("cpu"))
    return Widths(skeleton, {int(layer): importance for layer, importance in tensors.items()})


class Widths:
    """The lists of channels of every slot of a skeleton.

    Args:
        skeleton: its resolved model YAML.
        importance: per slot layer, of each of the teacher's output channels.
    """

    def __init__(self, skeleton: Mapping[str, Any], importance: Mapping[int, Tensor]) -> None:
        self._importance = importance
        rows = rows_of(skeleton)
        self._halved = {
            layer + source if source < 0 else source
            for layer, (source, _, module, _) in enumerate(rows)
            if splits_input(module) and isinstance(source, int)
        }

    def index(self, layer: int, count: int) -> Tensor:
        """Which of the teacher's channels the `count` channels of a slot stand for: int64 (count,)."""
        return chosen(self._importance[layer], count, halved=layer in self._halved)
