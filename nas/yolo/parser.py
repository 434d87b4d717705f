"""Ultralytics' `parse_model`, taught our block rows without a change in its files.

A row of ours is parsed as a stock stage of the same channels and repeats, which is then replaced: so channels, repeats,
scales and the save list stay Ultralytics' own. The stand-in is C3k2 where the skeleton's head is not the legacy one
(Ultralytics concludes that from the rows it sees) and C2f where it is.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from torch import nn
from ultralytics.nn import tasks

from nas.blocks.catalog import ROWS, BlockSpec
from nas.errors import InputError, did_you_mean
from nas.yolo.stage import Stage

_stock = tasks.parse_model


def register() -> None:
    """Make every model builder of Ultralytics in this process understand our rows. Idempotent."""
    tasks.parse_model = parse_model


def parse_model(d: dict[str, Any], ch: int, verbose: bool = True) -> tuple[nn.Sequential, list[int]]:
    """Build the layers of a model YAML, ours or stock; arguments and result as Ultralytics' own.

    Raises:
        InputError: a row of ours with unknown or unusable arguments.
    """
    rows = [*d["backbone"], *d["head"]]
    ours = {layer: row for layer, row in enumerate(rows) if row[2] in ROWS}
    if not ours:
        return _stock(d, ch, verbose)  # type: ignore[no-any-return]
    stand_in = "C2f" if d.get("legacy", True) else "C3k2"
    known = deepcopy(d)
    known_rows = [*known["backbone"], *known["head"]]
    for layer in ours:
        known_rows[layer][2:] = [stand_in, known_rows[layer][3][:1]]
    layers, save = _stock(known, ch, verbose)
    for layer, (_, _, name, args) in ours.items():
        stock = layers[layer]
        options = _options(layer, ROWS[name], args)
        stage = Stage(name, stock.cv1.conv.in_channels, stock.cv2.conv.out_channels, len(stock.m), **options)
        stage.i, stage.f, stage.type = stock.i, stock.f, name
        stage.np = sum(p.numel() for p in stage.parameters())
        layers[layer] = stage
    return layers, save


def _options(layer: int, spec: BlockSpec, args: list[Any]) -> dict[str, Any]:
    """The options of a row `[channels, {heads: …, knob: …}]`, checked."""
    options = args[1] if len(args) == 2 else {}
    if len(args) not in {1, 2} or not isinstance(options, dict):
        raise InputError(f"layer {layer}: arguments of {spec.row} are {args}", "write [channels] or [channels, {knob: value}]")
    known = [*spec.knobs, *(["heads"] if spec.has_heads else [])]
    for knob, value in options.items():
        if knob not in known:
            raise InputError(f"layer {layer}: unknown knob '{knob}' of {spec.row}", did_you_mean(str(knob), known))
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        fault = (None if whole else "must be a whole number from 1 on") if knob == "heads" else spec.knobs[knob].fault(value)
        if fault:
            raise InputError(f"layer {layer}: {knob} of {spec.row} is {value!r}: {fault}", "correct the model YAML")
    return options
