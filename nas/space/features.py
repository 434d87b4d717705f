"""Architectures and table rows as numbers for the accuracy model: mixed columns, encoded once, in groups.

A column of numbers is scaled to [-1/2, 1/2] over its values, by its logarithm where it is positive, spans a factor of two
or more and is not left lopsided by it; a column of text becomes one-hot. An absent value (a knob of another block) lies at
0, the middle: that the block is another says the rest. `SpaceCodes` writes a search space's architectures as one option
number per slot, so that drawing, encoding and comparing 100,000 of them are array operations.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nas.space.architecture import KEEP, Architecture, Placement
from nas.space.held import Held
from nas.space.search_space import Params, SearchSpace, SlotChoices

Floats = NDArray[np.float64]
LOG_SPAN = 2.0  # from this ratio of largest to smallest on, a column is read on a logarithmic scale
LOPSIDED = 1.0  # skewness up to which values may lie on a logarithmic scale, even where they lie more evenly on their own


@dataclass(frozen=True)
class Features:
    """`points` (rows, columns) with the group, from 0 on, of each column; columns of one group are one property.

    `numeric` says of each group whether it is a number (one column in [-1/2, 1/2]) or a category (one-hot).
    """

    points: Floats
    groups: NDArray[np.intp]
    numeric: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, rows: NDArray[Any] | slice) -> Features:
        return Features(self.points[rows], self.groups, self.numeric)

    def with_number(self, column: Floats) -> Features:
        """With one more number, scaled already, as the last group."""
        points = np.column_stack((self.points, column))
        return Features(points, np.append(self.groups, len(self.numeric)), np.append(self.numeric, True))


def encode(columns: Sequence[Sequence[float | str | None]]) -> Features:
    """Columns of equal length as features: a column that holds text is a category, None is absent.

    Columns that never vary are left out.
    """
    rows = len(columns[0]) if columns else 0
    blocks: list[Floats] = []
    numeric: list[bool] = []
    for column in columns:
        if len(set(column)) < 2:
            continue
        if any(isinstance(value, str) for value in column):
            levels = sorted({str(value) for value in column if value is not None})
            index = {level: number for number, level in enumerate(levels)}
            block = np.zeros((rows, len(levels)))
            for row, value in enumerate(column):
                if value is not None:
                    block[row, index[str(value)]] = math.sqrt(0.5)  # two levels are 1 apart
        else:
            block = scale_number(np.array([math.nan if value is None else float(value) for value in column]))[:, None]
        blocks.append(block)
        numeric.append(not any(isinstance(value, str) for value in column))
    sizes = [block.shape[1] for block in blocks]
    points = np.hstack(blocks) if blocks else np.zeros((rows, 0))
    return Features(points, np.repeat(np.arange(len(sizes)), sizes), np.array(numeric, dtype=bool))


def scale_number(values: Floats) -> Floats:
    """To [-1/2, 1/2] over the values, by their logarithm where that fits (see above); NaN to 0."""
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    if low > 0 and high / low >= LOG_SPAN:
        logs = np.log(values)
        if _skewness(logs) <= max(LOPSIDED, _skewness(values)):
            values, low, high = logs, math.log(low), math.log(high)
    width = high - low
    return np.asarray(np.nan_to_num((values - low) / width - 0.5 if width > 0 else np.zeros_like(values)))


def _skewness(values: Floats) -> float:
    """How lopsided values are, to either side; NaN left out."""
    away = values - np.nanmean(values)
    return abs(float(np.nanmean(away**3))) / math.pow(float(np.nanmean(away**2)), 1.5)


class SpaceCodes:
    """A search space in numbers: an architecture is a row of option numbers, one per slot.

    Features of a slot: its block as a category, log channels, depth, heads and each knob as numbers.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self._options: list[list[Placement | None]] = [list(choices.options) for choices in space.slots]
        # What the numbers of a code stand for, slot by slot.
        baseline: list[Placement | None] = [None]  # where it is no option, the skeleton's own row is encoded all the same
        self.listed = [own if None in own else own + baseline for own in self._options]
        self._verdicts: dict[tuple[int, int, bytes], bool] = {}
        self._number = [{option: number for number, option in enumerate(own)} for own in self.listed]
        tables = [encode(_columns(choices, listed)) for choices, listed in zip(space.slots, self.listed, strict=True)]
        self._tables = [table.points for table in tables]
        offsets = np.cumsum([0, *(len(table.numeric) for table in tables)])
        self._groups = np.concatenate([table.groups + offset for table, offset in zip(tables, offsets[:-1], strict=True)])
        self._numeric = np.concatenate([table.numeric for table in tables])

    @cached_property
    def _chances(self) -> list[Floats]:
        """Of each option of each slot, when the block is drawn first and its option then: no block is rare for having few."""
        chances = []
        for own in self._options:
            blocks = [KEEP if option is None else option.block for option in own]
            chances.append(np.array([1 / len(set(blocks)) / blocks.count(block) for block in blocks]))
        return chances

    def draw(self, count: int, rng: np.random.Generator) -> NDArray[np.int32]:
        """Random codes (count, slots); the same one may occur twice, rules are not applied."""
        drawn = np.empty((count, len(self._chances)), dtype=np.int32)
        for slot, chance in enumerate(self._chances):
            reached = np.cumsum(chance)
            drawn[:, slot] = np.searchsorted(reached, rng.random(count) * reached[-1], side="right")
        return drawn

    def all(self) -> NDArray[np.int32]:
        """Every code of the space, (size, slots): for small spaces."""
        counts = [len(own) for own in self._options]
        return np.stack(np.unravel_index(np.arange(math.prod(counts)), counts), axis=1).astype(np.int32)

    def neighbours(self, code: NDArray[np.int32]) -> NDArray[np.int32]:
        """Every code of the space that differs from this one in exactly one slot."""
        slots, options, counts = self._changes
        near = np.repeat(code[None], len(slots), axis=0)
        near[np.arange(len(slots)), slots] = options
        near = np.asarray(near[options != code[slots]])
        return near if np.all(code < counts) else near[np.all(near < counts, axis=1)]

    @cached_property
    def _changes(self) -> tuple[NDArray[np.intp], NDArray[np.int32], NDArray[np.int32]]:
        """Every option of every slot, as the slot and its number there; and how many each slot has."""
        counts = np.array([len(own) for own in self._options], dtype=np.int32)
        return np.repeat(np.arange(len(counts)), counts), np.concatenate([np.arange(n, dtype=np.int32) for n in counts]), counts

    def code(self, architecture: Architecture) -> NDArray[np.int32]:
        """The code of an architecture of the space, or of its skeleton."""
        placed = {p.slot: p for p in architecture.placements}
        names = [choices.slot.name for choices in self.space.slots]
        return np.array([number[placed.get(name)] for number, name in zip(self._number, names, strict=True)], dtype=np.int32)

    def architecture(self, code: NDArray[np.int32]) -> Architecture:
        placements = [own[number] for own, number in zip(self.listed, code, strict=True)]
        return Architecture(self.space.skeleton.name, tuple(sorted((p for p in placements if p), key=lambda p: p.layer)))

    @cached_property
    def _layers(self) -> tuple[list[list[Placement | None]], list[NDArray[np.int64]]]:
        """Per layer what may stand there, after None for the skeleton's own row; per slot where there each option is."""
        placements: list[list[Placement | None]] = [[None] for _ in self.space.skeleton.rows]
        places = []
        for choices, listed in zip(self.space.slots, self.listed, strict=True):
            own = placements[choices.slot.layer]
            own += [option for option in listed if option]
            place = {option: number for number, option in enumerate(own)}
            places.append(np.array([place[option] for option in listed], dtype=np.int64))
        return placements, places

    def held(self, codes: NDArray[np.int32]) -> Held:
        """What codes (rows, slots) stand for, without an object for each."""
        placements, places = self._layers
        numbers = np.zeros((len(codes), len(placements)), dtype=np.int64, order="F")  # read and written layer by layer
        for slot, (choices, place) in enumerate(zip(self.space.slots, places, strict=True)):
            numbers[:, choices.slot.layer] = place[codes[:, slot]]
        return Held(placements, numbers)

    def distinct(self, codes: NDArray[np.int32], without: Collection[bytes] = ()) -> NDArray[np.int32]:
        """The codes (rows, slots) without repeats and without those of these bytes, sorted."""
        sizes = [len(listed) for listed in self.listed]
        left_out = np.frombuffer(b"".join(without), dtype=np.int32).reshape(-1, len(sizes))
        if math.prod(sizes) >= 2**63:  # too many to be told apart by one number
            codes = np.unique(codes, axis=0)
            fresh = np.array([code.tobytes() not in without for code in codes], dtype=bool)
            return np.asarray(codes[fresh])
        keys = np.unique(np.ravel_multi_index(tuple(codes.T), sizes))
        keys = keys[~np.isin(keys, np.ravel_multi_index(tuple(left_out.T), sizes))]
        return np.stack(np.unravel_index(keys, sizes), axis=1).astype(np.int32)

    def allowed(self, codes: NDArray[np.int32], imgsz: int) -> NDArray[np.bool_]:
        """Which codes (rows, slots) no rule of the space forbids. Rules look at few slots: each of their combinations once."""
        good = np.ones(len(codes), dtype=bool)
        for index, rule in enumerate(self.space.forbid):
            slots = self.space.slots_of(rule)
            own = np.ascontiguousarray(codes[:, slots])
            combinations, of_row = np.unique(own, axis=0, return_inverse=True) if slots else (own[:1], np.zeros(len(own), int))
            verdicts = np.zeros(len(combinations), dtype=bool)
            for row, combination in enumerate(combinations):
                key = (index, imgsz, combination.tobytes())
                if key not in self._verdicts:
                    listed = [self.listed[slot][number] for slot, number in zip(slots, combination, strict=True)]
                    placed = tuple(sorted((p for p in listed if p), key=lambda p: p.layer))
                    partial = Architecture(self.space.skeleton.name, placed)
                    self._verdicts[key] = self.space.breaks(rule, partial, imgsz)
                verdicts[row] = self._verdicts[key]
            good &= ~verdicts[of_row.reshape(-1)]
        return good

    def params(self, code: NDArray[np.int32]) -> Params:
        """The choices that draw a code of the space."""
        merged: Params = {}
        for choices, own, number in zip(self.space.slots, self._options, code, strict=True):
            merged |= choices.options[own[number]]
        return merged

    def features(self, codes: NDArray[np.int32]) -> Features:
        """Of codes (rows, slots). A table look-up per slot: 100,000 rows take a fraction of a second."""
        points = np.hstack([table[codes[:, slot]] for slot, table in enumerate(self._tables)])
        return Features(points, self._groups, self._numeric)


def _columns(choices: SlotChoices, options: Sequence[Placement | None]) -> list[list[float | str | None]]:
    """What the options of a slot differ in, property by property."""
    own = Placement(choices.slot.name, choices.slot.layer, KEEP, choices.slot.row.c2, choices.slot.depth)
    placements = [option or own for option in options]
    knobs: list[Mapping[str, Any]] = [dict(p.knobs) for p in placements]
    names = sorted({name for known in knobs for name in known})
    columns: list[list[float | str | None]] = [
        [p.block for p in placements],
        [float(p.channels) for p in placements],
        [float(p.depth) for p in placements],
        [None if p.heads is None else float(p.heads) for p in placements],
    ]
    return columns + [[None if known.get(name) is None else float(known[name]) for known in knobs] for name in names]
