"""A library on disk: what has learned to imitate one teacher, one file per alternative. No torch.

The folder is named by all that a block depends on (teacher, data, image size; VERSION stands for the recipe, which no search
changes), the file by layer and row. So a search of another space, limit or target finds what an earlier one has taught, also
of a library that is not complete.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from nas.errors import InputError
from nas.imitation.alternatives import Alternative

ROUNDS = (2, 4)  # epochs that an alternative learns for, as long as its place in the teacher costs
VERSION = 2  # of what is learned: raise it whenever the same arguments would give other blocks


@dataclass(frozen=True)
class Entry:
    """What is known of an alternative.

    Attributes:
        layer, row: the alternative.
        dropped: why there are no weights; empty where there are.
        error: squared error on held-out images over the variance of the teacher's channel, mean of the channels.
        rise: how much the task's loss per image rises where it stands in the teacher's place, all else being the teacher.
        low, high: 90% bootstrap interval of `rise` over the images.
        loss: the teacher's own loss per image.
        epochs: it has learned for.
        start: how it began, see `nas.imitation.start`.
        drawn, began: the error in training mode of its first weights, and of those that it began with.
    """

    layer: int
    row: list[Any]
    dropped: str = ""
    error: float = 0.0
    rise: float = 0.0
    low: float = 0.0
    high: float = 0.0
    loss: float = 0.0
    epochs: int = 0
    start: str = ""
    drawn: float = 0.0
    began: float = 0.0


class Library:
    """The blocks of one folder, which may not exist yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def of(cls, cache: Path, **depends: Any) -> Library:
        """The library of all that its blocks depend on, plain data, under the cache folder."""
        text = json.dumps([VERSION, depends], sort_keys=True)
        return cls(cache / "imitation" / hashlib.sha256(text.encode()).hexdigest()[:20])

    def path(self, alternative: Alternative) -> Path:
        return self.folder / f"{alternative.key}.safetensors"

    def get(self, alternative: Alternative) -> Entry | None:
        """What is known of an alternative; None where it has not learned yet, or its file is damaged."""
        try:
            with safe_open(self.path(alternative), framework="numpy") as file:
                return Entry(**json.loads(file.metadata()["facts"]))
        except (OSError, SafetensorError, ValueError, LookupError, TypeError):
            return None

    def usable(self, alternative: Alternative) -> bool:
        """Whether an architecture may hold it."""
        entry = self.get(alternative)
        return entry is not None and not entry.dropped

    def missing(self, alternatives: Iterable[Alternative]) -> list[Alternative]:
        """Those that have neither learned nor been dropped."""
        return [alternative for alternative in alternatives if self.get(alternative) is None]

    def rise(self, alternatives: Iterable[Alternative]) -> float | None:
        """The additive estimate of an architecture: the sum of its alternatives' rises; None where one has none."""
        entries = [self.get(alternative) for alternative in alternatives]
        if any(entry is None or entry.dropped for entry in entries):
            return None
        return sum(entry.rise for entry in entries if entry is not None)

    def needed(self, alternative: Alternative) -> Path:
        """The file of an alternative that an architecture holds. Raises InputError where there are no weights."""
        entry = self.get(alternative)
        what = f"layer {alternative.layer}: {alternative.module}"
        if entry is None:
            raise InputError(f"{what} has not learned from the teacher yet", "imitate it first")
        if entry.dropped:
            raise InputError(f"{what} was dropped: {entry.dropped}", "choose another block for this slot")
        return self.path(alternative)


def facts_of(entry: Entry) -> Mapping[str, Any]:
    """An entry as plain data."""
    return asdict(entry)
