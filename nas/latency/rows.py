"""The rows that architectures consist of, for very many architectures at once: what each row holds, and its channels.

An architecture keeps the skeleton's rows; placements change what the slots hold and, through their channels, what the
rows behind them take in. Different architectures have many rows in common, so that a cost is worked out once for each
distinct `RowKind` and gathered.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from nas.errors import InputError
from nas.space.architecture import KEEP, Architecture, Placement
from nas.space.held import Held
from nas.space.skeleton import Skeleton, own_channels

Ints = npt.NDArray[np.int64]
DENSE = 16  # up to so many possible numbers for each that occurs, a table of all is faster than sorting


class RowKind(NamedTuple):
    """One row as it may stand in an architecture. A tuple: thousands are made and told apart for each proposal.

    Args:
        layer: its index in the model YAML.
        module: the block's name in a slot that holds one, else the skeleton's module.
        inputs: channels of each source.
        channels: channels of its output.
        depth: number of blocks.
        stride: of its first source to the image.
        heads: 0 where it has none.
        knobs: of the block, as sorted (name, number) pairs.
    """

    layer: int
    module: str
    inputs: tuple[int, ...]
    channels: int
    depth: int
    stride: int
    heads: int = 0
    knobs: tuple[tuple[str, float], ...] = ()


def row_kinds(skeleton: Skeleton, architectures: Sequence[Architecture] | Held) -> tuple[list[RowKind], Ints]:
    """The distinct rows of all the architectures, and which of them each consists of, (architectures, rows).

    Raises:
        InputError: an architecture of another skeleton.
    """
    known = architectures if isinstance(architectures, Held) else _held(skeleton, architectures)
    placements, held = known.placements, known.numbers
    slots = {slot.layer: slot for slot in skeleton.slots}
    channels: list[Ints] = []
    kinds: list[RowKind] = []
    index = np.empty((len(architectures), len(skeleton.rows)), dtype=np.int64, order="F")  # written layer by layer
    for layer, row in enumerate(skeleton.rows):
        sources = [layer + s if s < 0 else s for s in ([row.source] if isinstance(row.source, int) else row.source)]
        inputs = [channels[s] if s >= 0 else np.full(len(architectures), row.c1) for s in sources]
        held_here = held[:, layer]
        if layer in slots:
            own = [placement.channels if placement else row.c2 for placement in placements[layer]]
            output = np.array(own)[held_here]
        elif row.module == "Concat":
            output = np.sum(inputs, axis=0)
        else:
            output = np.full(len(architectures), row.c2) if own_channels(row.module) else inputs[-1]
        channels.append(output)
        first, which = _distinct([held_here, *inputs])
        index[:, layer] = which + len(kinds)
        stride = skeleton.rows[sources[0]].stride if layer else 1
        every = zip(*(c[first].tolist() for c in inputs), strict=True)
        for taken, made, number in zip(every, output[first].tolist(), held_here[first].tolist(), strict=True):
            placement = placements[layer][number]
            depth = slots[layer].depth if layer in slots else row.repeats
            if placement is None:
                kinds.append(RowKind(layer, row.module, taken, made, depth, stride))
                continue
            module = row.module if placement.block == KEEP else placement.block
            kinds.append(RowKind(layer, module, taken, made, placement.depth, stride, placement.heads or 0, placement.knobs))
    return kinds, index


def _held(skeleton: Skeleton, architectures: Sequence[Architecture]) -> Held:
    """Of architectures, only with the placements that occur in them."""
    if stranger := next((a for a in architectures if a.skeleton != skeleton.name), None):
        raise InputError(f"an architecture of {stranger.skeleton} among those of {skeleton.name}", "give those of one skeleton")
    every = list(chain.from_iterable(a.placements for a in architectures))
    owners = np.repeat(np.arange(len(architectures)), [len(a.placements) for a in architectures])
    # architectures of one space share most placement objects, and comparing identities costs next to nothing
    _, first, which = np.unique(np.fromiter(map(id, every), np.int64, len(every)), return_index=True, return_inverse=True)
    placements: list[list[Placement | None]] = [[None] for _ in skeleton.rows]
    numbers: dict[Placement, int] = {}
    for placement in map(every.__getitem__, np.sort(first)):  # in an order that no address decides
        if placement not in numbers:
            numbers[placement] = len(placements[placement.layer])
            placements[placement.layer].append(placement)
    objects = [every[at] for at in first]
    held = np.zeros((len(architectures), len(skeleton.rows)), dtype=np.int64)
    held[owners, np.array([p.layer for p in objects], dtype=np.int64)[which]] = np.array(
        [numbers[p] for p in objects], dtype=np.int64
    )[which]
    return Held(placements, held)


def _distinct(columns: Sequence[Ints]) -> tuple[Ints, Ints]:
    """The first position of every distinct combination of the columns' values, and which of them stands at each position."""
    code = np.zeros(len(columns[0]), dtype=np.int64)
    for column in columns:
        low, high = int(column.min(initial=0)), int(column.max(initial=0))
        code = code * (high - low + 1) + column - low
        if code.max(initial=0) > 2**40:
            code = np.unique(code, return_inverse=True)[1]
    if (size := int(code.max(initial=0)) + 1) > DENSE * len(code):
        _, first, which = np.unique(code, return_index=True, return_inverse=True)
        return first, which
    # As np.unique, without sorting.
    first_of = np.full(size, -1)
    first_of[code[::-1]] = np.arange(len(code))[::-1]  # of equal ones the last to be written stays
    occurring = np.flatnonzero(first_of >= 0)
    rank = np.empty(size, dtype=np.int64)
    rank[occurring] = np.arange(len(occurring))
    return first_of[occurring], rank[code]
