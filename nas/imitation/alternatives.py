"""What may stand in a slot beside the skeleton's own row, as plain data. No torch: the search process reads this too."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from nas.space.architecture import Architecture, Placement, model_yaml
from nas.space.search_space import SearchSpace


@dataclass(frozen=True)
class Alternative:
    """A row `[from, depth, RepViT, [channels, {…}]]` for a layer of a skeleton whose own row is another one."""

    layer: int
    row: tuple[Any, ...]

    @cached_property
    def key(self) -> str:
        """Names it in a library: equal for equal rows of equal layers, whatever space they come from."""
        text = json.dumps([self.layer, self.row], sort_keys=True)
        return f"{self.layer:02d}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    @property
    def module(self) -> str:
        return str(self.row[2])

    def plain(self) -> dict[str, Any]:
        return {"layer": self.layer, "row": list(self.row)}

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Alternative:
        return cls(plain["layer"], tuple(plain["row"]))


def rows_of(yaml: Mapping[str, Any]) -> list[list[Any]]:
    """All rows of a resolved model YAML, by layer."""
    return [*yaml["backbone"], *yaml["head"]]


def alternative_of(space: SearchSpace, placement: Placement) -> Alternative:
    """What a placement puts into its layer."""
    yaml = model_yaml(space.skeleton, Architecture(space.skeleton.name, (placement,)))
    return Alternative(placement.layer, tuple(rows_of(yaml)[placement.layer]))


def alternatives_of(space: SearchSpace) -> dict[str, dict[Placement | None, Alternative | None]]:
    """Per slot, in the order of the layers, its distinct options; the skeleton's own row (None) is no alternative."""
    slots = sorted(space.slots, key=lambda choices: choices.slot.layer)
    return {
        choices.slot.name: {option: None if option is None else alternative_of(space, option) for option in choices.options}
        for choices in slots
    }


def differences(yaml: Mapping[str, Any], skeleton: Mapping[str, Any]) -> list[Alternative]:
    """The alternatives that an architecture's model YAML holds, by layer."""
    pairs = enumerate(zip(rows_of(yaml), rows_of(skeleton), strict=True))
    return [Alternative(layer, tuple(row)) for layer, (row, own) in pairs if list(row) != list(own)]
