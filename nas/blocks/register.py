"""Adding a user's blocks to the catalog, and keeping them as plain data in a run folder. No torch; no code of theirs runs.

A run folder holds a copy of each block file and beside them, in `blocks.json`, what the catalog knows of the blocks: so a
run can be looked at and exported without running anything that came with it.
"""

from __future__ import annotations

import ast
import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from nas.blocks.catalog import CATALOG, ROWS, BlockSpec, Knob
from nas.errors import InputError
from nas.space.skeleton import models_folder, read_skeleton

PACKAGE = "nas.user"
MAX_BYTES = 1_000_000
_KINDS: Mapping[str, type[bool] | type[int] | type[float]] = {"bool": bool, "int": int, "float": float}
# Words that mean something else where a block or a knob is named: in a slot, or in a rule.
_WORDS = frozenset({"keep", "block", "width", "depth", "heads", "channels", "imgsz"})
_NAME, _IDENTIFIER = re.compile(r"[a-z][a-z0-9_]*"), re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class HeadsUpTo:
    """The default head count of a user's block: `count`; where heads must divide the channels, at most `count`."""

    count: int
    divide: bool

    def __call__(self, channels: int) -> int:
        if not self.divide:
            return self.count
        return next(heads for heads in range(self.count, 0, -1) if channels % heads == 0)


def file_of(spec: BlockSpec) -> str:
    """The name of the file that a user's block stands in."""
    return f"{spec.source.partition(':')[0].removeprefix(f'{PACKAGE}.')}.py"


def digest_of(path: Path) -> str:
    """SHA-256 of a block file. Raises InputError where it cannot be read, or is no text that somebody wrote."""
    try:
        if path.exists() and not (path.is_file() and path.stat().st_size <= MAX_BYTES):  # a device may never end
            raise ValueError(f"no file of at most {MAX_BYTES // 1000} kB")
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except (OSError, ValueError) as error:  # a path with a null byte is a ValueError
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{path}: {reason}", "name a Python file with your blocks") from error


def source_in(file: str, row: str) -> str:
    """Where the class `row` of a block file is found: "module:class"."""
    return f"{PACKAGE}.{file.removesuffix('.py')}:{row}"


def register(specs: Iterable[BlockSpec]) -> None:
    """Add blocks to the catalog: all of them or, where one cannot be added, none. One that is there already is left.

    Raises:
        InputError: a name that is no name or is taken.
    """
    names, rows = dict(CATALOG), dict(ROWS)
    for spec in specs:
        if names.get(spec.name) != spec or rows.get(spec.row) != spec:
            _check_names(spec, names, rows)
            names[spec.name] = rows[spec.row] = spec
    CATALOG.update(names)
    ROWS.update(rows)
    read_skeleton.cache_clear()  # it knows the rows


def _check_names(spec: BlockSpec, names: Mapping[str, BlockSpec], rows: Mapping[str, BlockSpec]) -> None:
    if not _NAME.fullmatch(spec.name):
        raise InputError(f"'{spec.name}' is not a block name", "use small letters, digits and _: @nas.block(name='my_block')")
    if spec.name in _WORDS:
        raise InputError(f"a block cannot be called '{spec.name}': search spaces use that word", "choose another name")
    if spec.name in names:
        raise InputError(
            f"there is a block '{spec.name}' already, {_origin(names[spec.name])}",
            "choose another: @nas.block(name=…); what was loaded stays for the life of the process",
        )
    if not _IDENTIFIER.fullmatch(spec.row):
        raise InputError(f"'{spec.row}' is not a class name", "use letters, digits and _")
    if spec.row in rows:
        raise InputError(f"there is a block class '{spec.row}' already, {_origin(rows[spec.row])}", "rename the class")
    if spec.row in ultralytics_names():
        raise InputError(f"'{spec.row}' is a name of Ultralytics: its own models would be built wrongly", "rename the class")
    for knob, entry in spec.knobs.items():
        if knob in _WORDS or not _IDENTIFIER.fullmatch(knob):
            raise InputError(f"a knob of {spec.row} cannot be called '{knob}': rules use that word", "rename it")
        if fault := entry.fault(entry.default):
            raise InputError(f"knob '{knob}' of {spec.row}: its default {entry.default!r} {fault}", "correct nas.Knob(…)")


def _origin(spec: BlockSpec) -> str:
    return f"from {file_of(spec)}" if spec.digest else "of nas itself"


@lru_cache(maxsize=1)
def ultralytics_names() -> frozenset[str]:
    """What a row of a model YAML can mean already: the names in Ultralytics' `nn/tasks.py`, read without importing it."""
    source = (models_folder().parents[1] / "nn" / "tasks.py").read_text(encoding="utf-8")
    names: set[str] = set()
    for statement in ast.parse(source).body:
        match statement:
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                names |= {(alias.asname or alias.name).partition(".")[0] for alias in aliases}
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.Assign(targets=[ast.Name(id=name)]):
                names.add(name)
    return frozenset(names)


def as_data(spec: BlockSpec) -> dict[str, Any]:
    """A user's block as JSON carries it; `from_data` is the inverse."""
    knobs = {
        name: {
            "default": knob.default,
            "doc": knob.doc,
            "kind": knob.kind.__name__,
            "low": knob.low if math.isfinite(knob.low) else None,
            "high": knob.high if math.isfinite(knob.high) else None,
            "odd": knob.odd,
        }
        for name, knob in spec.knobs.items()
    }
    heads = spec.default_heads.count if isinstance(spec.default_heads, HeadsUpTo) else None
    return {
        "name": spec.name,
        "row": spec.row,
        "file": file_of(spec),
        "digest": spec.digest,
        "paper": spec.paper,
        "heads": heads,
        "heads_divide": spec.heads_divide,
        "knobs": knobs,
    }


def from_data(data: Any) -> BlockSpec:
    """Raises ValueError, TypeError or KeyError for anything that `as_data` does not write."""
    heads = data["heads"]
    divide, file = _typed(data, "heads_divide", bool), _typed(data, "file", str)
    if not (file.endswith(".py") and file.removesuffix(".py").isidentifier()):
        raise ValueError(f"'file' is {file!r}")
    if heads is not None and (isinstance(heads, bool) or not isinstance(heads, int) or heads < 1):
        raise ValueError(f"heads is {heads!r}")
    return BlockSpec(
        name=_typed(data, "name", str),
        row=_typed(data, "row", str),
        source=source_in(file, data["row"]),
        paper=_typed(data, "paper", str),
        default_heads=None if heads is None else HeadsUpTo(heads, divide),
        heads_divide=divide,
        knobs={name: _knob(entry) for name, entry in dict(data["knobs"]).items()},
        digest=_typed(data, "digest", str),
    )


def _knob(data: Any) -> Knob:
    bounds = {word: data[word] for word in ("low", "high") if data[word] is not None}
    if not all(isinstance(bound, int | float) for bound in bounds.values()):
        raise ValueError(f"bounds are {bounds}")
    limits = {"low": -math.inf, "high": math.inf} | bounds
    kind = _KINDS[_typed(data, "kind", str)]
    return Knob(data["default"], _typed(data, "doc", str), kind, limits["low"], limits["high"], _typed(data, "odd", bool))


def _typed(data: Any, key: str, kind: type[Any]) -> Any:
    value = data[key]
    if not isinstance(value, kind):
        raise ValueError(f"'{key}' is {value!r}")
    return value
