"""Any architecture as a network with weights and without training: teacher layers and library blocks put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nas.imitation.alternatives import Alternative, rows_of
from nas.imitation.channels import Widths, read_widths
from nas.imitation.library import Library
from nas.training.checkpoint import read_state
from nas.yolo.build import build
from nas.yolo.slices import is_whole, reread, reread_head
from nas.yolo.slot import build_layer, output_channels
from nas.yolo.weights import transfer

_PASSING = ("nn.Upsample", "nn.MaxPool2d", "nn.Identity", "nn.ZeroPad2d")

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Assembled:
    """A model with all its weights, on the CPU. `unfit` are the layers that do not compute what the teacher's or the
    library's do, because the widths around them changed what they are made of."""

    model: Any
    unfit: tuple[int, ...]


class Assembler:
    """Puts networks together.

    Args:
        skeleton: the skeleton's resolved model YAML, with the teacher's number of classes.
        teacher: the trained skeleton, on the CPU.
        widths: which channels a slot of another width has.
        blocks: the tensors of an alternative; raises InputError where the library lacks it.
    """

    def __init__(
        self, skeleton: Mapping[str, Any], teacher: Any, widths: Widths, blocks: Callable[[Alternative], Tensors]
    ) -> None:
        self._skeleton, self._teacher, self._widths, self._blocks = skeleton, teacher.eval(), widths, blocks
        self._rows = rows_of(skeleton)
        self._channels = output_channels(teacher)

    def assemble(self, yaml: Mapping[str, Any]) -> Assembled:
        """The network of an architecture's resolved model YAML.

        Raises:
            InputError: the library lacks a block, or the YAML is not of this skeleton.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # nothing drawn stays, but where a block's stem has nothing to come from
            model = build({**yaml, "nc": self._skeleton["nc"]})
            transfer(model, self._teacher)  # the head has the width of the teacher's, wherever Ultralytics gives it that
        model.eval()
        indexes: list[Tensor] = []
        unfit = []
        for layer, (row, own) in enumerate(zip(rows_of(yaml), self._rows, strict=True)):
            sources = [row[0]] if isinstance(row[0], int) else row[0]
            inputs = [layer + source if source < 0 else source for source in sources]
            index, fits = self._fill(model, layer, row, own, [(indexes[i], self._channels[i]) for i in inputs if i >= 0])
            indexes.append(index)
            if not fits:
                unfit.append(layer)
        return Assembled(model, tuple(unfit))

    def _fill(
        self, model: Any, layer: int, row: list[Any], own: list[Any], inputs: list[tuple[Tensor, int]]
    ) -> tuple[Tensor, bool]:
        """Give a layer its weights; returns what its output channels stand for, and whether all is as it was."""
        new, width = model.model[layer], self._channels[layer]
        whole = all(is_whole(index, count) for index, count in inputs)
        if row[2] == "Concat":
            starts = [sum(count for _, count in inputs[:place]) for place in range(len(inputs))]
            return torch.cat([index + start for (index, _), start in zip(inputs, starts, strict=True)]), True
        if row[2] in _PASSING or not list(new.parameters()):  # CBFuse adds maps that no slot writes
            return inputs[-1][0], True
        if layer == len(self._rows) - 1:
            return torch.arange(0), reread_head(new, self._teacher.model[layer], [index for index, _ in inputs])
        if row == own:
            old, out = self._teacher.model[layer], torch.arange(width)
        else:
            alternative = Alternative(layer, tuple(row))
            old = build_layer(self._skeleton, row, sum(count for _, count in inputs) if inputs else 3).eval()
            old.load_state_dict(dict(self._blocks(alternative)))
            out = self._widths.index(layer, row[3][0])
        if whole:
            new.load_state_dict(old.state_dict())
            return out, True
        return out, reread(new, old, *inputs[0])


def assembler_of(skeleton: Mapping[str, Any], teacher: Any, folder: Path) -> Assembler:
    """An assembler of the blocks in a library's folder. Raises InputError where nothing has learned there yet."""
    library = Library(folder)
    cpu = torch.device("cpu")
    return Assembler(skeleton, teacher, read_widths(skeleton, folder), lambda a: read_state(library.needed(a), cpu)[0])
