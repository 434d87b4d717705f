"""What a search began with, kept so that a resumed one can say what has changed: the space as choices, the data file by file.

`inputs.json.gz` of a run folder holds both as texts by name.
"""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from nas.errors import InputError
from nas.files import write_whole
from nas.space.search_space import SearchSpace

FILE = "inputs.json.gz"
SHOWN = 3
ROWS = "rows of "
Texts = Mapping[str, str]


def described(space: SearchSpace) -> dict[str, str]:
    """A space as texts by name, equal for spaces that hold the same architectures under the same parameters."""
    skeleton = space.skeleton
    rows = json.dumps([[row.source, row.repeats, row.module, row.args] for row in skeleton.rows], default=str)
    found = {"skeleton": skeleton.name, ROWS + skeleton.name: rows}
    for choices in space.slots:
        words = {"block": choices.blocks, "width": choices.widths, "depth": choices.depths, "heads": choices.heads}
        knobs = {f"{block}.{knob}": values for block, known in choices.knobs.items() for knob, values in known.items()}
        for word, values in (words | knobs).items():
            found[f"{choices.slot.name} {word}"] = ", ".join(map(str, values))
    return found | {"forbid": "; ".join(rule.text for rule in space.forbid)}


def write_inputs(folder: Path, space: Texts, files: Sequence[str]) -> None:
    """Keep a space (`described`) and the files of a dataset (`Dataset.files`) in a run folder. Raises OSError."""
    text = json.dumps({"space": dict(space), "data": list(files)}, ensure_ascii=False)
    write_whole(folder / FILE, gzip.compress(text.encode(), mtime=0))


def read_inputs(folder: Path) -> tuple[dict[str, str], list[str]] | None:
    """What `write_inputs` has kept; None of a run that has nothing. Raises InputError for a damaged file."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        found = json.loads(gzip.decompress(path.read_bytes()))
        return dict(found["space"]), list(found["data"])
    except (OSError, EOFError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"{path}: damaged: {error}", "restore the file, or start a new run") from error


def space_changes(before: Texts, now: Texts) -> list[str]:
    """What differs between two described spaces, a line each."""
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    rows = [name for name in changed if name.startswith(ROWS)]
    short = [name for name in changed if name not in rows]
    return [f"{name}: {_words(now.get(name))}, was {_words(before.get(name))}" for name in short] or [
        f"{name} are others" for name in rows
    ]


def _words(text: str | None) -> str:
    return "not there" if text is None else text or "none"


def data_changes(before: Sequence[str], now: Sequence[str]) -> list[str]:
    """What differs between the files of two datasets, a line for each split and kind of change."""
    then, today = _by_place(before), _by_place(now)
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for place in sorted({**then, **today}):
        if then.get(place) == today.get(place):
            continue
        split, name = place
        if place not in then:
            kind = "new"
        elif place not in today:
            kind = "gone"
        else:
            kind = "changed" if then[place][0] != today[place][0] else "labelled otherwise"
        found[split, kind].append(name)
    lines = []
    for (split, kind), names in found.items():
        shown = ", ".join(names[:SHOWN]) + ", …" * (len(names) > SHOWN)
        lines.append(f"{len(names)} image{'s' * (len(names) > 1)} of {split} {kind}: {shown}")
    return lines


def _by_place(files: Sequence[str]) -> dict[tuple[str, str], tuple[str, str]]:
    """(split, name) -> (size, digest of the labels); names may hold blanks, and may be there twice."""
    found: dict[tuple[str, str], tuple[str, str]] = {}
    for line in files:
        split, _, rest = line.partition(" ")
        name, size, labels = [*rest.rsplit(" ", 2), "", ""][:3]
        while (split, name) in found:
            name += "'"
        found[split, name] = size, labels
    return found
