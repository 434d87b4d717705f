"""An architecture: which slots of a skeleton hold which block. Frozen, canonical, with an id; plain data in and out."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from nas.blocks.catalog import CATALOG, KnobValue
from nas.space.skeleton import Row, Skeleton, Slot

KEEP = "keep"


@dataclass(frozen=True)
class Placement:
    """What one slot holds, in absolute numbers: nothing depends on a rounding rule any more.

    `block` is a catalog name or `keep` (the skeleton's own module, resized); `knobs` are sorted (name, value) pairs of all
    the block's knobs.
    """

    slot: str
    layer: int
    block: str
    channels: int
    depth: int
    heads: int | None = None
    knobs: tuple[tuple[str, KnobValue], ...] = ()

    def text(self, slot: Slot) -> str:
        """For people: `repvit w1.25 d2 h4 ratio=3`; what equals the skeleton's own or the block's default is left out."""
        spec = CATALOG.get(self.block)
        words = [self.block]
        if self.channels != slot.row.c2:
            words.append(f"w{self.channels / slot.row.c2:.3g}")
        if self.depth != slot.depth:
            words.append(f"d{self.depth}")
        if self.heads is not None:
            words.append(f"h{self.heads}")
        words += [f"{k}={v}" for k, v in self.knobs if spec is None or v != spec.knobs[k].default]
        return " ".join(words)


@dataclass(frozen=True)
class Architecture:
    """All placements that differ from the skeleton, in the order of its layers; none at all is the skeleton itself."""

    skeleton: str
    placements: tuple[Placement, ...] = ()

    @cached_property
    def id(self) -> str:
        """`a` and nine hex digits over the canonical form: equal for equal architectures, in any run, never a number."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return f"a{hashlib.sha256(text.encode()).hexdigest()[:9]}"

    @property
    def is_skeleton(self) -> bool:
        return not self.placements

    def describe(self, skeleton: Skeleton) -> dict[str, str]:
        """Changed slot -> text for people."""
        return {p.slot: p.text(skeleton.slot(p.slot)) for p in self.placements}

    def text(self, skeleton: Skeleton) -> str:
        """On one line, for people: `backbone.P4=repvit w0.5; ...`."""
        return "; ".join(f"{slot}={what}" for slot, what in self.describe(skeleton).items()) or "the skeleton"

    def to_dict(self) -> dict[str, Any]:
        placements = []
        for p in self.placements:
            entry: dict[str, Any] = {"slot": p.slot, "layer": p.layer, "block": p.block, "channels": p.channels}
            entry |= {"depth": p.depth}
            entry |= {"heads": p.heads} if p.heads is not None else {}
            entry |= {"knobs": dict(p.knobs)} if p.knobs else {}
            placements.append(entry)
        return {"skeleton": self.skeleton, "placements": placements}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Architecture:
        placements = (
            Placement(
                entry["slot"],
                entry["layer"],
                entry["block"],
                entry["channels"],
                entry["depth"],
                entry.get("heads"),
                tuple(sorted(entry.get("knobs", {}).items())),
            )
            for entry in data["placements"]
        )
        return cls(data["skeleton"], tuple(sorted(placements, key=lambda p: p.layer)))


def place(
    slot: Slot, block: str, width: float, depth: int | None, heads: int | None, knobs: Mapping[str, KnobValue]
) -> Placement | None:
    """The canonical placement of a choice; None where it is exactly what the skeleton has there.

    Channels are `width` times the skeleton's, rounded to the nearest multiple of 8 that the block can use: of the head
    count where heads divide the channels; of what the skeleton's own row allows for `keep`. Where the next layer takes no
    other number, the skeleton's channels stay (heads that do not divide them give way to the block's own).
    """
    width = 1.0 if slot.fixed else width
    depth = slot.depth if depth is None else depth
    row = slot.row
    if block == KEEP:
        channels = kept_channels(row, width)
        if row.module == "ELAN1":
            depth = slot.depth  # it has no repeats
        if channels == row.c2 and depth == slot.depth:
            return None
        return Placement(slot.name, slot.layer, KEEP, channels, depth)
    spec = CATALOG[block]
    heads = None if spec.default_heads is None else heads
    if slot.fixed and heads is not None and spec.heads_divide and row.c2 % heads:
        heads = None
    unit = heads if heads is not None and spec.heads_divide else 1
    channels = row.c2 if slot.fixed else round_channels(row.c2 * width, unit)
    if spec.default_heads is not None and heads is None:
        heads = spec.default_heads(channels)
    full = {name: knobs.get(name, knob.default) for name, knob in spec.knobs.items()}
    return Placement(slot.name, slot.layer, block, channels, depth, heads, tuple(sorted(full.items())))


def kept_channels(row: Row, width: float) -> int:
    """Output channels of the skeleton's own row at `width`: multiples of 64 in A2C2f and of 128 in an attention C3k2.

    An A2C2f that adds its input to its output (YOLO12 l and x, in the backbone) cannot change them.
    """
    attention = row.module == "C3k2" and len(row.args) > 3 and row.args[3]
    fixed = row.module == "A2C2f" and len(row.args) > 3 and row.args[1] and row.args[3]
    if width == 1 or fixed:
        return row.c2
    return round_channels(row.c2 * width, 64 if row.module == "A2C2f" else 128 if attention else 8)


def round_channels(channels: float, divisor: int) -> int:
    """The multiple of 8 and of `divisor` nearest to `channels` (halves up), at least one such multiple."""
    unit = math.lcm(8, divisor)
    return max(unit, math.floor(channels / unit + 0.5) * unit)


def model_yaml(skeleton: Skeleton, architecture: Architecture, nc: int | None = None) -> dict[str, Any]:
    """The architecture as an Ultralytics model YAML: resolved (no `scales`), rows replaced one for one.

    A block's row reads `[from, depth, RepViT, [channels, {heads: …, knob: …}]]`. `legacy` is written down because
    Ultralytics derives it from stock rows that may be gone.

    Args:
        nc: number of classes; the skeleton's own where None.
    """
    rows: list[list[Any]] = [
        [list(r.source) if isinstance(r.source, tuple) else r.source, r.repeats, r.module, list(r.args)] for r in skeleton.rows
    ]
    for p in architecture.placements:
        row = rows[p.layer]
        if p.block == KEEP:
            ratio = p.channels / row[3][0]
            row[3][0] = p.channels
            if row[2] in {"ELAN1", "RepNCSPELAN4"}:
                row[3][1:3] = [round_channels(c * ratio, 1) for c in row[3][1:3]]
            if row[2] == "RepNCSPELAN4":
                row[3][3:4] = [p.depth]
            else:
                row[1] = p.depth
        else:
            options = ({"heads": p.heads} if p.heads is not None else {}) | dict(p.knobs)
            rows[p.layer] = [row[0], p.depth, CATALOG[p.block].row, [p.channels, options]]
    extras = dict(skeleton.extras)
    extras["nc"] = skeleton.nc if nc is None else nc
    return {**extras, "legacy": skeleton.legacy, "backbone": rows[: skeleton.split], "head": rows[skeleton.split :]}
