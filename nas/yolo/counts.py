"""Parameters of a model, layer by layer: it is built for that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nas.yolo.build import build, parameters


@dataclass(frozen=True)
class Counts:
    """Parameters of a model as it trains: of each layer, of all of them, and of all once fused."""

    layers: tuple[int, ...]
    total: int
    fused: int


def count(model_yaml: Mapping[str, Any], nc: int) -> Counts:
    """The parameters of a resolved model YAML with `nc` classes. Raises InputError for what cannot be built."""
    model = build({**model_yaml, "nc": nc})
    layers = tuple(parameters(layer) for layer in model.model)
    return Counts(layers, parameters(model), parameters(model.eval().fuse(verbose=False)))
