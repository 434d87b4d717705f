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

from nas.blocks.catalog import ROWS
from nas.errors import InputError, did_you_mean
from nas.space.skeleton import activation_fault
from nas.yolo.stage import Stage

_stock = tasks.parse_model


def register() -> None:
    """Make every model builder of Ultralytics in this process understand our rows. Idempotent."""
    tasks.parse_model = parse_model


def parse_model(d: dict[str, Any], ch: int, verbose: bool = True) -> tuple[nn.Sequential, list[int]]:
    """Build the layers of a model YAML, ours or stock; arguments and result as Ultralytics' own.

    A YAML of ours, known by a row of ours or by its `legacy` key, is kept from two of Ultralytics' habits: `activation`
    is handed to eval(), so only known ones pass; and where it has no `scales`, the scale letter that Ultralytics reads
    from the file's name (`yolo11m_x.yaml`) would still change rows.

    Raises:
        InputError: a row of ours with unknown or unusable arguments, a row that nobody knows, or an unknown activation.
    """
    rows = [*d["backbone"], *d["head"]]
    for layer, row in enumerate(rows):
        if not (row[2] in ROWS or row[2].startswith(("nn.", "torchvision.ops.")) or hasattr(tasks, row[2])):
            hint = "a user's block? name its file: nas.load_blocks('my_blocks.py'), or --blocks my_blocks.py"
            raise InputError(f"layer {layer}: unknown module '{row[2]}'", hint)
    ours = {layer: row for layer, row in enumerate(rows) if row[2] in ROWS}
    if not ours and "legacy" not in d:
        return _stock(d, ch, verbose)  # type: ignore[no-any-return]
    if fault := activation_fault(d.get("activation")):
        raise InputError(fault, "for example nn.SiLU()")
    options = {layer: _options(layer, row) for layer, row in ours.items()}
    stand_in = "C2f" if d.get("legacy", True) else "C3k2"
    known = deepcopy(d)
    if not d.get("scales"):
        known["scale"] = ""
    known_rows = [*known["backbone"], *known["head"]]
    for layer in ours:
        known_rows[layer][2:] = [stand_in, known_rows[layer][3][:1]]
    layers, save = _stock(known, ch, verbose)
    for layer, (_, _, name, _) in ours.items():
        stock = layers[layer]
        try:
            stage = Stage(name, stock.cv1.conv.in_channels, stock.cv2.conv.out_channels, len(stock.m), **options[layer])
        except MemoryError:
            raise  # says nothing of the block
        except Exception as error:
            if ROWS[name].digest:  # a user's block may raise what it likes
                raise InputError(f"layer {layer}: {name} raises {type(error).__name__}: {error}", "see its file") from error
            if isinstance(error, ValueError):
                raise InputError(f"layer {layer}: {error}", "correct the model YAML") from error
            raise
        stage.i, stage.f, stage.type = stock.i, stock.f, name
        stage.np = sum(p.numel() for p in stage.parameters())
        layers[layer] = stage
    return layers, save


def _options(layer: int, row: list[Any]) -> dict[str, Any]:
    """The options of a row `[from, repeats, name, [channels, {heads: …, knob: …}]]`, checked but for whether heads divide."""
    _, repeats, name, args = row
    spec = ROWS[name]
    options = args[1] if len(args) == 2 else {}
    if len(args) not in {1, 2} or not _whole(args[0]) or not isinstance(options, dict):
        raise InputError(f"layer {layer}: arguments of {name} are {args}", "write [channels] or [channels, {knob: value}]")
    if not _whole(repeats):
        raise InputError(f"layer {layer}: repeats of {name} are {repeats!r}", "write a whole number from 1 on")
    known = [*spec.knobs, *(["heads"] if spec.has_heads else [])]
    for knob, value in options.items():
        if knob not in known:
            raise InputError(f"layer {layer}: unknown knob '{knob}' of {name}", did_you_mean(str(knob), known))
        fault = spec.knobs[knob].fault(value) if knob != "heads" else _whole_fault(value)
        if fault:
            raise InputError(f"layer {layer}: {name}: {knob} {fault}, not {value!r}", "correct the model YAML")
    return options


def _whole_fault(value: object) -> str | None:
    return None if _whole(value) else "must be a whole number from 1 on"


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
