"""Reading a search space YAML: every fault at once, each with its line, what is wrong and the nearest right word."""

from __future__ import annotations

import fnmatch
import itertools
import math
from collections.abc import Collection
from dataclasses import replace
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

from nas.blocks.catalog import CATALOG, KnobValue
from nas.blocks.register import digest_of
from nas.errors import InputError, did_you_mean
from nas.space.architecture import KEEP, place, round_channels
from nas.space.rules import Rule, RuleError
from nas.space.search_space import SearchSpace, SlotChoices, rule_names
from nas.space.skeleton import Skeleton, Slot, read_searchable, read_skeleton
from nas.space.source import Document, Faults, read_yaml, shipped

_KEYS = ("skeleton", "slots", "forbid", "blocks")
_SLOT_KEYS = ("block", "width", "depth", "heads")
MAX_WIDTH, MAX_DEPTH, MAX_HEADS = 16, 64, 128
MAX_OPTIONS = 100_000


def find_space(name: str) -> Path:
    """A search space by path, or by the name of a shipped one (`demo`, `yolo11n-blocks`). Raises InputError."""
    known = {path.stem: path for path in sorted(shipped("search_spaces").glob("*.yaml"))}
    path = Path(name)
    if path.is_file():
        return path
    if path.name != name:  # a typing error in a path must not give another space
        raise InputError(f"no search space '{name}'", f"correct the path, or name a shipped one: {', '.join(known)}")
    if name in known or name in {p.name for p in known.values()}:
        return known[path.stem]
    raise InputError(f"no search space '{name}'", did_you_mean(path.stem, known) or "give a YAML file")


def read_space(path: Path) -> SearchSpace:
    """Read and check a search space.

    Raises:
        InputError: one line per fault, `file:line: what (what to do)`.
    """
    document = read_yaml(path)
    faults = Faults(path)
    for key in document.data:
        if key not in _KEYS:
            faults.add(document.line(key), f"unknown key '{key}'", did_you_mean(str(key), _KEYS))
    skeleton = _skeleton(document, faults)
    if skeleton is None:
        faults.raise_if_any()
        raise InputError(f"{path}:1: no 'skeleton'", "name a model YAML, for example skeleton: yolo11n.yaml")
    if _lacks_files(document, faults):
        faults.raise_if_any()  # their blocks are unknown words, of which nothing useful can be said
    slots = _slots(document, skeleton, faults)
    forbid = _forbid(document, skeleton, faults)
    faults.raise_if_any()
    return SearchSpace(skeleton, slots, forbid, tuple(_rounding_notes(slots)), path)


def _skeleton(document: Document, faults: Faults) -> Skeleton | None:
    name = document.data.get("skeleton")
    if not isinstance(name, str):
        faults.add(document.line("skeleton"), "no 'skeleton'", "name a model YAML, for example skeleton: yolo11n.yaml")
        return None
    try:
        skeleton = read_searchable(name, document.path.parent)
    except InputError as error:
        faults.add(document.line("skeleton"), error.message, error.hint)
        return None
    if not skeleton.slots:
        faults.add(
            document.line("skeleton"),
            f"{name} has no slot that a block could take",
            "give a YOLO of version 5 or later",
        )
    return skeleton


def _lacks_files(document: Document, faults: Faults) -> bool:
    """`blocks` lists files of users' blocks, relative to the YAML. That does not run them: they must be loaded already."""
    listed = document.data.get("blocks", [])
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        faults.add(document.line("blocks"), "'blocks' is not a list of files", "for example blocks: [my_blocks.py]")
        return True
    known, before = {spec.digest for spec in CATALOG.values()}, len(faults.found)
    for index, name in enumerate(listed):
        path, line = document.path.parent / name, document.line("blocks", index)
        try:
            if digest_of(path) not in known:
                what = f"needs the block file '{name}', whose code runs only if the command line names it too"
                faults.add(line, what, f"add --blocks {quote(str(path))}")
        except InputError as error:
            faults.add(line, f"block file {error.message}", "the path is relative to this YAML")
    return len(faults.found) > before


def _slots(document: Document, skeleton: Skeleton, faults: Faults) -> tuple[SlotChoices, ...]:
    entries = document.data.get("slots")
    if not isinstance(entries, dict) or not entries:
        faults.add(document.line("slots"), "no 'slots'", f"name at least one of {', '.join(s.name for s in skeleton.slots)}")
        return ()
    choices: dict[str, SlotChoices] = {}
    knobs_named: list[tuple[Any, str, list[str]]] = []
    for key, entry in entries.items():
        line = document.line("slots", key)
        matching = _matching(key, skeleton)
        if not matching:
            known = [slot.name for slot in skeleton.slots]
            faults.add(line, f"no slot '{key}' in {skeleton.name}", did_you_mean(str(key), known))
        if not isinstance(entry, dict):
            faults.add(line, f"slot '{key}' holds no choices", "for example {block: [keep, repvit]}")
            continue
        fields = _fields(document, key, entry, faults)
        knobs = fields.pop("knobs", {})
        knobs_named += [(key, block, [slot.name for slot in matching]) for block in knobs]
        for slot in matching:
            before = choices.get(slot.name, SlotChoices(slot))
            merged = {block: {**before.knobs.get(block, {}), **named} for block, named in knobs.items()}
            choices[slot.name] = replace(before, **fields, knobs={**before.knobs, **merged})
    for name, choice in choices.items():
        count = _count(choice)
        if count > MAX_OPTIONS:
            faults.add(
                document.line("slots"),
                f"slot '{name}' has {count:,} combinations",
                f"at most {MAX_OPTIONS:,} are allowed",
            )
    for key, block, names in knobs_named:
        if names and not any(block in choices[name].blocks for name in names):
            line = document.line("slots", key, block)
            faults.add(line, f"knobs of '{block}', which slot '{key}' may not hold", f"add {block} to its block list")
    return tuple(choices[slot.name] for slot in skeleton.slots if slot.name in choices)


def _count(choice: SlotChoices) -> int:
    shared = len(choice.widths) * max(1, len(choice.depths))
    per_block = (
        math.prod((max(1, len(choice.heads)), *(len(values) for values in choice.knobs.get(block, {}).values())))
        for block in choice.blocks
    )
    return shared * sum(per_block)


def _matching(key: object, skeleton: Skeleton) -> list[Slot]:
    if isinstance(key, int) and not isinstance(key, bool):
        return [slot for slot in skeleton.slots if slot.layer == key]
    return [slot for slot in skeleton.slots if fnmatch.fnmatchcase(slot.name, str(key))]


def _fields(document: Document, key: Any, entry: dict[Any, Any], faults: Faults) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    knobs: dict[str, dict[str, tuple[KnobValue, ...]]] = {}
    for word, value in entry.items():
        at = ("slots", key, word)
        if word == "block":
            fields["blocks"] = _items(document, at, value, faults, _block_fault)
        elif word == "width":
            fields["widths"] = tuple(float(w) for w in _items(document, at, value, faults, _width_fault))
        elif word == "depth":
            fields["depths"] = _items(document, at, value, faults, partial(_whole_fault, MAX_DEPTH))
        elif word == "heads":
            fields["heads"] = _items(document, at, value, faults, partial(_whole_fault, MAX_HEADS))
        elif word in CATALOG:
            knobs[str(word)] = _knobs(document, at, str(word), value, faults)
        else:
            faults.add(document.line(*at), f"unknown key '{word}'", did_you_mean(str(word), [*_SLOT_KEYS, *CATALOG]))
    if knobs:
        fields["knobs"] = knobs
    return {name: value for name, value in fields.items() if value}


def _knobs(document: Document, at: Any, block: str, value: Any, faults: Faults) -> dict[str, tuple[KnobValue, ...]]:
    known = CATALOG[block].knobs
    if not isinstance(value, dict):
        example = f"for example {{{next(iter(known))}: […]}}" if known else "it has none: leave the line out"
        faults.add(document.line(*at), f"'{block}' holds no knobs", example)
        return {}
    found: dict[str, tuple[KnobValue, ...]] = {}
    for knob, values in value.items():
        if knob not in known:
            hint = "heads stand beside block, for all blocks alike" if knob == "heads" else did_you_mean(str(knob), known)
            faults.add(document.line(*at, knob), f"unknown knob '{knob}' of {block}", hint)
        else:
            found[knob] = _items(document, (*at, knob), values, faults, known[knob].fault)
            if known[knob].kind is float:
                found[knob] = tuple(float(v) for v in found[knob])
    return found


def _items(document: Document, at: Any, value: Any, faults: Faults, fault_of: Any) -> tuple[Any, ...]:
    """A choice as a tuple: one value stands for itself, a list for its members; every member checked."""
    values = value if isinstance(value, list) else [value]
    where = f"'{at[-1]}' of '{at[1]}'"
    if not values:
        faults.add(document.line(*at), f"{where} is empty", "give at least one choice, or leave the line out")
    good: list[Any] = []
    for index, item in enumerate(values):
        line = document.line(*at, index)
        if reason := fault_of(item):
            faults.add(line, f"{where}: {item!r} {reason}")
        elif item in good:
            faults.add(line, f"{where}: {item!r} stands there twice", "remove one")
        else:
            good.append(item)
    return tuple(good)


def _block_fault(value: object) -> str | None:
    known = (KEEP, *CATALOG)
    return None if value in known else f"is not a block; {did_you_mean(str(value), known)}"


def _width_fault(value: object) -> str | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return None if number and 0 < value <= MAX_WIDTH else f"must be a number above 0 and up to {MAX_WIDTH}"  # type: ignore[operator]


def _whole_fault(most: int, value: object) -> str | None:
    number = isinstance(value, int) and not isinstance(value, bool)
    return None if number and 1 <= value <= most else f"must be a whole number from 1 to {most}"  # type: ignore[operator]


def _forbid(document: Document, skeleton: Skeleton, faults: Faults) -> tuple[Rule, ...]:
    written = document.data.get("forbid", [])
    if not isinstance(written, list):
        faults.add(document.line("forbid"), "'forbid' is not a list", "write one rule per line, each behind '- '")
        return ()
    known: Collection[str] = rule_names(skeleton)
    rules: list[Rule] = []
    for index, text in enumerate(written):
        try:
            if not isinstance(text, str):
                raise RuleError("not a text")
            rules.append(Rule.parse(text, known))
        except RuleError as error:
            faults.add(document.line("forbid", index), f"rule '{text}': {error}")
    return tuple(rules)


def _rounding_notes(slots: tuple[SlotChoices, ...]) -> list[str]:
    """Where heads, the skeleton's own row or the next layer change the channels: legal, by the stated rule, but worth
    saying."""
    notes = []
    for choices in slots:
        slot = choices.slot
        for block, width in itertools.product(choices.blocks, choices.widths):
            wanted = round_channels(slot.row.c2 * width, 1)
            divided = block != KEEP and CATALOG[block].heads_divide
            for heads in (choices.heads if divided else ()) or (None,):
                placement = place(slot, block, width, None, heads, {})
                got = slot.row.c2 if placement is None else placement.channels
                if got != wanted:
                    of = "" if heads is None else f" with {heads} heads"
                    notes.append(f"{slot.name}: {block}{of} gets {got} channels, not {wanted}")
    return notes


def whole_skeleton(name: str) -> SearchSpace:
    """The space of a bare model YAML: every slot, each with nothing but its own row. Raises InputError."""
    skeleton = read_skeleton(name)
    return SearchSpace(skeleton, tuple(SlotChoices(slot) for slot in skeleton.slots))
