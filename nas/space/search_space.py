"""`SearchSpace`: what each slot may hold, and drawing, listing and naming the architectures that follow from it."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

from nas.blocks.catalog import CATALOG, KnobValue
from nas.space.architecture import KEEP, Architecture, Placement, place
from nas.space.rules import Lookup, Rule, Value
from nas.space.skeleton import Skeleton, Slot

Choice = str | int | float | bool
Choose = Callable[[str, Sequence[Choice]], Choice]
Params = dict[str, Choice]


@dataclass(frozen=True)
class SlotChoices:
    """The choices of one slot, as written. `depths` and `heads` may be empty: the skeleton's and the block's own."""

    slot: Slot
    blocks: tuple[str, ...] = (KEEP,)
    widths: tuple[float, ...] = (1.0,)
    depths: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()
    knobs: Mapping[str, Mapping[str, tuple[KnobValue, ...]]] = field(default_factory=dict)

    def draw(self, choose: Choose) -> Placement | None:
        """One placement, asking `choose(name, choices)` only for what matters under the choices made so far."""
        name = self.slot.name

        def pick(word: str, choices: Sequence[Choice]) -> Choice:
            return choices[0] if len(choices) == 1 else choose(f"{name}.{word}", choices)

        block = str(pick("block", self.blocks))
        width = float(pick("width", self.widths))
        depth = int(pick("depth", self.depths)) if self.depths else None
        heads = int(pick("heads", self.heads)) if self.heads and block != KEEP and CATALOG[block].has_heads else None
        knobs = {knob: pick(f"{block}.{knob}", values) for knob, values in self.knobs.get(block, {}).items()}
        chosen = (block, width, depth, heads, *knobs.values())
        if chosen not in self._placed:
            self._placed[chosen] = place(self.slot, block, width, depth, heads, knobs)  # type: ignore[arg-type]
        return self._placed[chosen]

    @cached_property
    def _placed(self) -> dict[tuple[Choice | None, ...], Placement | None]:
        """What was placed before: equal placements are one object, which very many architectures share."""
        return {}

    @cached_property
    def options(self) -> Mapping[Placement | None, Params]:
        """Every distinct placement with one set of parameters that draws it (the first; the others collapse into it)."""
        found: dict[Placement | None, Params] = {}
        for params, placement in _all_draws(self.draw):
            found.setdefault(placement, params)
        return found


def _all_draws(draw: Callable[[Choose], Placement | None]) -> Iterator[tuple[Params, Placement | None]]:
    """Every path through `draw`: depth first over the choices that it asks for."""
    pending: list[Params] = [{}]
    while pending:
        prefix = pending.pop()
        asked: list[tuple[str, Sequence[Choice]]] = []

        placement = draw(partial(_replay, prefix, asked))
        if asked:
            name, choices = asked[0]
            pending += [prefix | {name: choice} for choice in reversed(choices)]
        else:
            yield prefix, placement


def _replay(prefix: Params, asked: list[tuple[str, Sequence[Choice]]], name: str, choices: Sequence[Choice]) -> Choice:
    """Answer from `prefix`; beyond it note the question in `asked` and take the first choice."""
    if name not in prefix:
        asked.append((name, choices))
        return choices[0]
    return prefix[name]


@dataclass(frozen=True)
class SearchSpace:
    """All architectures of one skeleton that a YAML allows. The unmodified skeleton is always a member."""

    skeleton: Skeleton
    slots: tuple[SlotChoices, ...]
    forbid: tuple[Rule, ...] = ()
    notes: tuple[str, ...] = ()
    source: Path | None = None

    def draw(self, choose: Choose) -> Architecture:
        """Build one architecture by asking `choose(name, choices)`: a random draw, or an Optuna trial's suggestions."""
        return self._architecture(choices.draw(choose) for choices in self.slots)

    def sample(self, rng: random.Random, imgsz: int, attempts: int = 1000) -> Architecture | None:
        """A random architecture that no rule forbids; None where `attempts` draws found none."""
        for _ in range(attempts):
            drawn = self.draw(lambda _, choices: rng.choice(choices))
            if self.forbidding_rule(drawn, imgsz) is None:
                return drawn
        return None

    def uniform(self, rng: random.Random) -> Architecture:
        """A random architecture, each as likely as any other; rules not applied."""
        return self._architecture(rng.choice(list(choices.options)) for choices in self.slots)

    @property
    def baseline(self) -> Architecture:
        return Architecture(self.skeleton.name)

    @cached_property
    def size(self) -> int:
        """Number of distinct architectures before `forbid`."""
        return math.prod(len(choices.options) for choices in self.slots)

    def enumerate(self) -> Iterator[Architecture]:
        """Every distinct architecture, lazily; rules not applied."""
        for placements in itertools.product(*(choices.options for choices in self.slots)):
            yield self._architecture(placements)

    def smallest(self, imgsz: int) -> list[Architecture]:
        """Per block, the architecture that has it wherever it may stand, as cheap as its choices and the rules allow.

        A block for which the rules leave nothing alike is missing.
        """
        blocks = dict.fromkeys(block for choices in self.slots for block in choices.blocks)
        found = (self._smallest(block, imgsz) for block in blocks)
        return list(dict.fromkeys(architecture for architecture in found if architecture is not None))

    def _smallest(self, block: str, imgsz: int) -> Architecture | None:
        """Each slot's cheapest; while rules forbid that, the cheapest option of another slot that breaks fewer of them."""
        ordered = [sorted(choices.options, key=partial(_cost, choices.slot, block)) for choices in self.slots]
        best = self._architecture(options[0] for options in ordered)
        broken = sum(1 for _ in self._forbidding(best, imgsz))
        while broken:
            now = {p.slot: p for p in best.placements}
            near = (
                self._architecture({**now, choices.slot.name: option}.values())
                for choices, options in zip(self.slots, ordered, strict=True)
                for option in options
            )
            fewer, best = min(((sum(1 for _ in self._forbidding(a, imgsz)), a) for a in near), key=lambda counted: counted[0])
            if fewer == broken:
                return None
            broken = fewer
        return best

    def filled(self, block: str) -> Architecture:
        """`block` in every slot that may hold it, as near to the skeleton's own width and depth as its choices allow; rules
        not applied."""
        chosen = []
        for choices in self.slots:
            width, depth = choices.slot.row.c2, choices.slot.depth
            options = [p for p in choices.options if p is not None and p.block == block]
            if options:
                chosen.append(min(options, key=lambda p: (abs(p.channels - width), abs(p.depth - depth))))
        return self._architecture(chosen if block != KEEP else [])

    def neighbours(self, architecture: Architecture) -> Iterator[Architecture]:
        """Every architecture that differs in exactly one slot; rules not applied."""
        now = {p.slot: p for p in architecture.placements}
        for choices in self.slots:
            for option in choices.options:
                if option != now.get(choices.slot.name):
                    yield self._architecture({**now, choices.slot.name: option}.values())

    def describe(self, architecture: Architecture) -> dict[str, str]:
        """Changed slot -> text for people."""
        for p in architecture.placements:
            if p not in self._texts:
                self._texts[p] = p.text(self.skeleton.slot(p.slot))
        return {p.slot: self._texts[p] for p in architecture.placements}

    @cached_property
    def _texts(self) -> dict[Placement, str]:
        """Of placements that were described before: a search writes its table again and again."""
        return {}

    def params(self, architecture: Architecture) -> Params | None:
        """Parameters whose `draw` gives this architecture; None for a non-member (as the skeleton may be)."""
        now = {p.slot: p for p in architecture.placements}
        merged: Params = {}
        for choices in self.slots:
            option = now.pop(choices.slot.name, None)
            if option not in choices.options:
                return None
            merged |= choices.options[option]
        return None if now else merged

    def forbidding_rule(self, architecture: Architecture, imgsz: int) -> Rule | None:
        """The first rule that forbids the architecture at this image size, if any."""
        return next(self._forbidding(architecture, imgsz), None)

    def slots_of(self, rule: Rule) -> list[int]:
        """The slots that a rule speaks of, by their index in `slots`; those that no choice is left to cannot vary."""
        spoken = {self.skeleton.slot(_slot_name(name.rpartition(".")[0])).name for name in rule.names if name != "imgsz"}
        return [index for index, choices in enumerate(self.slots) if choices.slot.name in spoken]

    def breaks(self, rule: Rule, architecture: Architecture, imgsz: int) -> bool:
        """Whether a rule of this space forbids an architecture at this image size."""
        return rule.matches(self._lookup(architecture, imgsz))

    def _forbidding(self, architecture: Architecture, imgsz: int) -> Iterator[Rule]:
        lookup = self._lookup(architecture, imgsz)
        return (rule for rule in self.forbid if rule.matches(lookup))

    def _lookup(self, architecture: Architecture, imgsz: int) -> Lookup:
        placed = {p.slot: p for p in architecture.placements}
        choices = {c.slot.name: c for c in self.slots}

        def lookup(name: str) -> Value:
            if name == "imgsz":
                return imgsz
            slot_name, _, word = name.rpartition(".")
            slot = self.skeleton.slot(_slot_name(slot_name))
            return _property(choices.get(slot.name, SlotChoices(slot)), placed.get(slot.name), word)

        return lookup

    def _architecture(self, placements: Iterable[Placement | None]) -> Architecture:
        changed = [p for p in placements if p is not None]
        return Architecture(self.skeleton.name, tuple(sorted(changed, key=lambda p: p.layer)))


def rule_names(skeleton: Skeleton) -> frozenset[str]:
    """Every name that a rule of this skeleton may use."""
    words = {
        "block",
        "width",
        "depth",
        "heads",
        "channels",
        *(knob for spec in CATALOG.values() for knob in spec.knobs),
    }
    return frozenset({"imgsz", *(f"{_rule_name(slot.name)}.{word}" for slot in skeleton.slots for word in words)})


def _rule_name(slot: str) -> str:
    head, dot, tail = slot.rpartition(".")
    return f"{head}_{tail}" if dot and tail.isdigit() else slot


def _slot_name(rule_name: str) -> str:
    head, underscore, tail = rule_name.rpartition("_")
    return f"{head}.{tail}" if underscore and tail.isdigit() else rule_name


def _cost(slot: Slot, block: str, option: Placement | None) -> tuple[float, ...]:
    """Orders the options of a slot: those with `block` first, the cheapest of them foremost."""
    placed = option or Placement(slot.name, slot.layer, KEEP, slot.row.c2, slot.depth)
    knobs = (
        -value if knob == "kv_stride" else math.inf if knob == "window" and value == 0 else value
        for knob, value in placed.knobs
    )
    return placed.block != block, placed.channels, placed.depth, placed.heads or 0, *knobs


def _property(choices: SlotChoices, placement: Placement | None, word: str) -> Value:
    slot = choices.slot
    if placement is None:
        own: dict[str, Value] = {"block": KEEP, "width": 1.0, "depth": slot.depth, "channels": slot.row.c2}
        return own.get(word)
    if word == "width":
        params = choices.options.get(placement)
        if params is None:
            return placement.channels / slot.row.c2
        return float(params.get(f"{slot.name}.width", choices.widths[0]))
    values: dict[str, Value] = {
        "block": placement.block,
        "depth": placement.depth,
        "heads": placement.heads,
        "channels": placement.channels,
    }
    return values[word] if word in values else dict(placement.knobs).get(word)
