"""Parameters for the terminal: of a model layer by layer, of a search space slot by slot and block by block."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from nas.space.architecture import KEEP, Architecture, model_yaml
from nas.space.search_space import SearchSpace

if TYPE_CHECKING:
    from rich.table import Table


class Counts(Protocol):
    """Parameters of each layer, of all, and of all once fused."""

    @property
    def layers(self) -> tuple[int, ...]: ...
    @property
    def total(self) -> int: ...
    @property
    def fused(self) -> int: ...


Count = Callable[[Mapping[str, Any], int], Counts]
"""Counts a resolved model YAML with so many classes."""


def params_table(space: SearchSpace, count: Count) -> Table:
    """A row per slot; a column per block, placed wherever the space lets it stand, near the skeleton's width and depth.

    The last rows are the whole model with that block everywhere: with the skeleton's classes, with one, and fused.
    A space without choices is a model: then there is a row per layer.
    """
    from rich.markup import escape  # noqa: PLC0415  (only those who print pay for it)
    from rich.table import Table  # noqa: PLC0415

    blocks = list(dict.fromkeys([KEEP, *(block for choices in space.slots for block in choices.blocks)]))
    filled = {block: space.filled(block) for block in blocks}
    table = Table(title=f"{space.skeleton.name}: parameters", title_justify="left")
    for column in ("layer", "slot", "module", "channels"):
        table.add_column(column)
    for block in blocks:
        table.add_column(block if len(blocks) > 1 else "parameters", justify="right")
    counted = {block: _counts(space, architecture, count) for block, architecture in filled.items()}
    slots = {slot.layer: slot.name for slot in space.skeleton.slots}
    shown = [choices.slot.layer for choices in space.slots] if len(blocks) > 1 else range(len(space.skeleton.rows))
    for layer in shown:
        row = space.skeleton.rows[layer]
        cells = [f"{counted[KEEP][0].layers[layer]:,}"]
        for block in blocks[1:]:
            holds = any(placement.layer == layer for placement in filled[block].placements)
            cells.append(f"{counted[block][0].layers[layer]:,}" if holds else "")
        table.add_row(*map(escape, (str(layer), slots.get(layer, ""), row.module, f"{row.c1} to {row.c2}", *cells)))
    table.add_section()
    nc = space.skeleton.nc
    for words, cells in (
        (f"whole model, {nc} classes", [f"{counted[block][0].total:,}" for block in blocks]),
        (f"  fused, {nc} classes", [f"{counted[block][0].fused:,}" for block in blocks]),
        ("whole model, 1 class", [f"{counted[block][1].total:,}" for block in blocks]),
        ("  fused, 1 class", [f"{counted[block][1].fused:,}" for block in blocks]),
    ):
        table.add_row("", words, "", "", *cells)
    return table


def _counts(space: SearchSpace, architecture: Architecture, count: Count) -> tuple[Counts, Counts]:
    """With the skeleton's own number of classes, and with one."""
    model = model_yaml(space.skeleton, architecture)
    return count(model, space.skeleton.nc), count(model, 1)
