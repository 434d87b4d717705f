"""Warm start: what an earlier run has trained, for the accuracy model of a new one. It never stands among the new trials.

It is read once, when the new run begins, and kept in its store: the old run may go.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nas.errors import InputError
from nas.files import write_whole
from nas.run import Run
from nas.runs.store import Store
from nas.space.architecture import Architecture
from nas.space.search_space import SearchSpace

FACT = "prior"
Prior = Sequence[tuple[Architecture, float]]


def read_prior(folder: Path, space: SearchSpace) -> list[tuple[Architecture, float]]:
    """The architectures of a run's results that a space holds, with their mAP there, on the highest rung that each reached.

    Raises:
        InputError: a run of another skeleton, or one without any such result.
    """
    run = Run(folder)
    if run.space.skeleton.rows != space.skeleton.rows:
        what = f"{folder} searched around {run.space.skeleton.name}, {space.source} is around {space.skeleton.name}"
        raise InputError(what, "give a run of the same skeleton, or leave out --from")
    top = max((len(entry.results) for entry in run.entries), default=0)
    trained = [entry for entry in run.entries if entry.results and len(entry.results) == top]
    found = [(e.architecture, e.map) for e in trained if e.architecture.is_skeleton or space.params(e.architecture) is not None]
    if not found:
        raise InputError(f"{folder} has trained none of the architectures of {space.source}", "leave out --from")
    return found


def keep_prior(store: Store, folder: Path, space: SearchSpace, prior: Prior) -> None:
    """Write what was read into the store of the new run and, for people, into its prior.csv. Raises OSError."""
    store.put_fact(FACT, [{"architecture": a.to_dict(), "map": score} for a, score in prior])
    rows = [(a.id, f"{score:.6g}", a.text(space.skeleton)) for a, score in prior]
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([("id", "map", "placement"), *rows])
    write_whole(folder / "prior.csv", buffer.getvalue())


def kept_prior(store: Store) -> list[tuple[Architecture, float]]:
    """What a run began with; empty for one that began with nothing."""
    kept: list[dict[str, Any]] = store.fact(FACT) or []
    return [(Architecture.from_dict(each["architecture"]), float(each["map"])) for each in kept]
