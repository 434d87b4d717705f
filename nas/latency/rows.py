"""The rows that architectures consist of, for very many architectures at once: what each row holds, and its channels.

An architecture keeps the skeleton's rows; placements change what the slots hold and, through their channels, what the
rows behind them take in. Different architectures have many rows in common, so that a cost is worked out once for each
distinct `RowKind` and gathered.
"""

from __future__ import annotations

import math
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
    known = architectures if isinstance(architectures, Held) else held(skeleton, architectures)
    table = RowTable(skeleton, known.placements)
    index = table.index(known.numbers)
    return table.kinds, index


class RowTable:
    """Numbers the rows of architectures whose layers hold some of the given placements: a row's number, once given, stays.

    A row is told by what its layer holds and what its sources put out; what each layer can put out is counted out beforehand,
    so that looking rows up is arithmetic on arrays.

    Attributes:
        kinds: what each number stands for; grows with the rows that occur.
    """

    def __init__(self, skeleton: Skeleton, placements: Sequence[Sequence[Placement | None]]) -> None:
        self.placements, self._skeleton, self.kinds = placements, skeleton, list[RowKind]()
        self._slots = {slot.layer: slot for slot in skeleton.slots}
        self._layers: list[_Layer] = []
        for layer, row in enumerate(skeleton.rows):
            sources = [layer + s if s < 0 else s for s in ([row.source] if isinstance(row.source, int) else row.source)]
            taken = [self._layers[s].channels if s >= 0 else np.array([row.c1]) for s in sources]
            shape = (len(placements[layer]), *map(len, taken))
            here, *places = np.unravel_index(np.arange(math.prod(shape)), shape)
            if layer in self._slots:
                made = np.array([placement.channels if placement else row.c2 for placement in placements[layer]])[here]
            elif row.module == "Concat":
                made = np.sum([own[place] for own, place in zip(taken, places, strict=True)], axis=0)
            else:
                made = np.full(len(here), row.c2) if own_channels(row.module) else taken[-1][places[-1]]
            channels, place = np.unique(made, return_inverse=True)
            self._layers.append(_Layer(sources, taken, shape, channels, place, np.full(len(here), -1)))

    def index(self, numbers: Ints) -> Ints:
        """Which rows architectures consist of, (architectures, rows), given what their layers hold (architectures, layers)."""
        index = np.empty(numbers.shape, dtype=np.int64, order="F")  # written layer by layer
        places: list[Ints] = []
        for layer, own in enumerate(self._layers):
            code = numbers[:, layer]
            for source, size in zip(own.sources, own.shape[1:], strict=True):
                code = code * size + (places[source] if source >= 0 else 0)
            places.append(own.place[code])
            found = own.number[code]
            if found.min(initial=0) < 0:
                for unknown in np.unique(code[found < 0]).tolist():
                    own.number[unknown] = len(self.kinds)
                    self.kinds.append(self._kind(layer, unknown))
                found = own.number[code]
            index[:, layer] = found
        return index

    def _kind(self, layer: int, code: int) -> RowKind:
        own, row = self._layers[layer], self._skeleton.rows[layer]
        number, *places = (int(place) for place in np.unravel_index(code, own.shape))
        taken = tuple(int(channels[place]) for channels, place in zip(own.taken, places, strict=True))
        made = int(own.channels[own.place[code]])
        stride = self._skeleton.rows[own.sources[0]].stride if layer else 1
        placement = self.placements[layer][number]
        if placement is None:
            depth = self._slots[layer].depth if layer in self._slots else row.repeats
            return RowKind(layer, row.module, taken, made, depth, stride)
        module = row.module if placement.block == KEEP else placement.block
        return RowKind(layer, module, taken, made, placement.depth, stride, placement.heads or 0, placement.knobs)


class _Layer(NamedTuple):
    """The rows that a layer may hold: `shape` of the numbers of placements and of each source's channels, `taken`; of each row
    in that order the place of its own among the `channels` that the layer may put out, and its number (-1: none yet)."""

    sources: list[int]
    taken: list[Ints]
    shape: tuple[int, ...]
    channels: Ints
    place: Ints
    number: Ints


def held(skeleton: Skeleton, architectures: Sequence[Architecture]) -> Held:
    """What architectures hold, only with the placements that occur in them. Raises InputError as `row_kinds` does."""
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
    where = np.zeros((len(architectures), len(skeleton.rows)), dtype=np.int64)
    where[owners, np.array([p.layer for p in objects], dtype=np.int64)[which]] = np.array(
        [numbers[p] for p in objects], dtype=np.int64
    )[which]
    return Held(placements, where)
