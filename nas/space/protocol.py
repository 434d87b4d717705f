"""What the engine asks of a search space: of one that was read from a YAML, or of a table of finished architectures."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from nas.space.architecture import Architecture


class Forbids(Protocol):
    """A rule, which says in its own words what it forbids."""

    @property
    def text(self) -> str: ...


class Space(Protocol):
    """What a search chooses from; `nas.space.search_space.SearchSpace` says what each method is."""

    @property
    def baseline(self) -> Architecture: ...
    @property
    def size(self) -> int: ...
    def draw(self, choose: Callable[[str, Sequence[Any]], Any], /) -> Architecture: ...
    def params(self, architecture: Architecture, /) -> Mapping[str, Any] | None: ...
    def sample(self, rng: random.Random, imgsz: int, /) -> Architecture | None: ...
    def enumerate(self) -> Iterator[Architecture]: ...
    def neighbours(self, architecture: Architecture, /) -> Iterator[Architecture]: ...
    def forbidding_rule(self, architecture: Architecture, imgsz: int, /) -> Forbids | None: ...
