"""A search space for the terminal: slot by slot, what stands there and what may."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nas.space.search_space import SearchSpace, SlotChoices

if TYPE_CHECKING:
    from rich.table import Table


def slots_table(space: SearchSpace) -> Table:
    """One row per slot of the skeleton; slots that the space does not vary are dim."""
    from rich.markup import escape  # noqa: PLC0415  (only those who print pay for it)
    from rich.table import Table  # noqa: PLC0415

    varied = {choices.slot.name: choices for choices in space.slots}
    skeleton = space.skeleton
    table = Table(title=f"{skeleton.name}: {len(skeleton.slots)} slots, {space.size:,} architectures", title_justify="left")
    for column in ("slot", "layer", "stands there", "channels", "block", "width", "depth", "heads", "knobs"):
        table.add_column(column, justify="right" if column == "layer" else "left")
    for slot in skeleton.slots:
        own = f"{slot.row.module} x{slot.depth}"
        cells = _cells(varied[slot.name]) if slot.name in varied else ("keep", "1", str(slot.depth), "", "")
        style = None if slot.name in varied else "dim"
        channels = f"{slot.row.c1} to {slot.row.c2}"
        table.add_row(*map(escape, (slot.name, str(slot.layer), own, channels, *cells)), style=style)
    for rule in space.forbid:
        table.caption = f"{table.caption or 'forbidden:'}\n  {escape(rule.text)}"
    return table


def _cells(choices: SlotChoices) -> tuple[str, str, str, str, str]:
    def listed(values: tuple[object, ...]) -> str:
        return ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)

    knobs = (
        f"{block}.{knob}: {listed(values)}"
        for block, named in choices.knobs.items()
        if block in choices.blocks
        for knob, values in named.items()
    )
    return (
        listed(choices.blocks),
        listed(choices.widths),
        listed(choices.depths or (choices.slot.depth,)),
        listed(choices.heads),
        "; ".join(knobs),
    )
