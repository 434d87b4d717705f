"""A user's own blocks: `@nas.block` says that a class is one, `nas.load_blocks` runs the file it stands in.

A block file is code, so it runs only where the user names it: `--blocks my_blocks.py` or a call of `load_blocks`.
"""

from __future__ import annotations

import inspect
import math
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, overload

from nas import user
from nas.blocks.catalog import BlockSpec, Knob
from nas.blocks.register import PACKAGE, HeadsUpTo, digest_of, register, source_in
from nas.errors import InputError, NasError

if TYPE_CHECKING:
    from torch import nn

    Block = TypeVar("Block", bound=type[nn.Module])

_MARK = "__nas_block__"
_loaded: dict[str, list[BlockSpec]] = {}  # module name -> its blocks
_KINDS: Mapping[object, type[bool] | type[int] | type[float]] = {
    kind: found for found in (bool, int, float) for kind in (found, found.__name__)
}


@overload
def block(cls: Block, /) -> Block: ...


@overload
def block(
    *,
    name: str | None = None,
    paper: str = "",
    heads: int | None = None,
    heads_divide: bool = True,
    knobs: Mapping[str, Knob] | None = None,
) -> Callable[[Block], Block]: ...


def block(
    cls: Block | None = None,
    /,
    *,
    name: str | None = None,
    paper: str = "",
    heads: int | None = None,
    heads_divide: bool = True,
    knobs: Mapping[str, Knob] | None = None,
) -> Block | Callable[[Block], Block]:
    """Mark a torch module as a block: `__init__(self, c1, c2, depth=1, *, heads=…, knob=…)`, (N, c1, H, W) to (N, c2, H, W).

    The class stays as it is. Its row in model YAMLs is the class name. Keyword-only arguments whose default is a bool, an
    int or a float are knobs that a search space may vary, without bounds where `knobs` gives none; a block has heads when
    its `__init__` takes `heads`. A method `fuse()` that gives, in place, a cheaper form with equal outputs is optional.

    Args:
        name: the word in search spaces; the class name in snake_case where None.
        paper: where the block comes from.
        heads: default head count; needed where the default in `__init__` is not a number.
        heads_divide: whether the head count must divide the output channels, which are then rounded to a multiple of it.
        knobs: what a knob is and its bounds, instead of what the default tells.

    Raises:
        InputError: the class cannot be called like that.
    """

    def mark(cls: Block) -> Block:
        setattr(cls, _MARK, _spec(cls, name, paper, heads, heads_divide, knobs or {}))
        return cls

    return mark if cls is None else mark(cls)


def load_blocks(*paths: str | Path) -> list[BlockSpec]:
    """Run block files and add their blocks to the catalog. A file that is loaded already is not run again.

    Checkpoints and model YAMLs with the blocks of these files then load in this process.

    Raises:
        InputError: no such file, it cannot be run, it holds no block, or a name is taken.
    """
    return list({spec.name: spec for path in paths for spec in _load(Path(path))}.values())


def _load(path: Path) -> list[BlockSpec]:
    digest, stem = digest_of(path), path.stem
    if path.suffix != ".py" or not stem.isidentifier():
        raise InputError(f"{path}: a block file must be called like a Python module", "for example my_blocks.py")
    if stem in _loaded:
        if any(spec.digest != digest for spec in _loaded[stem]):
            raise InputError(
                f"{path}: another {stem}.py is loaded already, {user.FILES[stem]}",
                "rename one of them, or if it is the same file and has changed, start a new process",
            )
        return _loaded[stem]
    user.FILES[stem] = path.absolute()
    try:
        specs = [replace(spec, digest=digest) for spec in _run(path)]
        register(specs)
    except NasError as error:
        _forget(stem)
        raise InputError(error.message if str(path) in error.message else f"{path}: {error.message}", error.hint) from error
    except BaseException:
        _forget(stem)
        raise
    _loaded[stem] = specs
    return specs


def _forget(stem: str) -> None:
    del user.FILES[stem]
    sys.modules.pop(f"{PACKAGE}.{stem}", None)


def _run(path: Path) -> list[BlockSpec]:
    """Run a block file; the blocks that its classes were marked as, in the order of the file."""
    name = f"{PACKAGE}.{path.stem}"
    try:
        module = import_module(name)
    except (Exception, SystemExit) as error:  # whatever the user's code raises is told with its line
        hint = "correct the file"
        if isinstance(error, NasError):
            what, hint = error.message, error.hint or hint
        elif isinstance(error, ModuleNotFoundError):
            what, hint = str(error), "a block file can import installed packages, but no files beside it"
        else:
            what = f"{type(error).__name__}: {error.msg if isinstance(error, SyntaxError) else error}".splitlines()[0]
        raise InputError(f"{path}{_line(path, error)}: {what}", hint) from error
    classes = dict.fromkeys(c for c in vars(module).values() if isinstance(c, type) and c.__module__ == name)
    specs = [vars(c)[_MARK] for c in classes if _MARK in vars(c)]
    if not specs:
        raise InputError(f"{path}: holds no block", "write @nas.block above the class that is one")
    return specs


def _line(path: Path, error: BaseException) -> str:
    """`:12`, the last line of the file on the way to the error; nothing where the file is not on it."""
    file = str(path.absolute())
    if isinstance(error, SyntaxError) and error.filename == file:
        return f":{error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f":{lines[-1]}" if lines else ""


def _spec(
    cls: type[nn.Module], name: str | None, paper: str, heads: int | None, heads_divide: bool, declared: Mapping[str, Knob]
) -> BlockSpec:
    from torch import nn  # noqa: PLC0415  (the user's file needs it; who only imports `nas` does not)

    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise InputError(f"@nas.block stands above {cls!r}, which is no torch.nn.Module", "put it above a block's class")
    row = cls.__name__
    parameters = dict(inspect.signature(cls).parameters)
    if list(parameters)[:3] != ["c1", "c2", "depth"]:
        raise InputError(
            f"the arguments of {row} are ({', '.join(parameters)})", "write def __init__(self, c1, c2, depth=1, *, …)"
        )
    options = {word: p for word, p in list(parameters.items())[3:] if p.kind is p.KEYWORD_ONLY}
    for word, p in list(parameters.items())[3:]:
        if p.kind is p.POSITIONAL_OR_KEYWORD:
            raise InputError(f"'{word}' of {row} is not keyword-only", "put a * behind depth: (self, c1, c2, depth=1, *, …)")
        if p.kind is p.KEYWORD_ONLY and p.default is p.empty and word != "heads":
            raise InputError(f"'{word}' of {row} has no default", f"write {word}=…")
    for word in declared:
        if word not in options:
            raise InputError(f"knob '{word}' is no keyword-only argument of {row}", f"add it: {word}=…")
    default_heads = _heads(row, options.pop("heads", None), heads, heads_divide)
    inferred = {word: declared.get(word) or _knob(p) for word, p in options.items()}
    return BlockSpec(
        name=re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", row).lower() if name is None else name,
        row=row,
        source=source_in(f"{cls.__module__.rpartition('.')[2]}.py", row),
        paper=paper,
        default_heads=default_heads,
        heads_divide=heads_divide and default_heads is not None,
        knobs={word: knob for word, knob in inferred.items() if knob is not None},
    )


def _heads(row: str, parameter: inspect.Parameter | None, given: int | None, divide: bool) -> HeadsUpTo | None:
    if parameter is None:
        if given is not None:
            raise InputError(f"{row} has heads={given}, but its __init__ takes no heads", "add heads=None behind the *")
        return None
    count = parameter.default if given is None else given
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise InputError(f"{row} does not say how many heads it has by default", "write @nas.block(heads=4)")
    return HeadsUpTo(count, divide)


def _knob(parameter: inspect.Parameter) -> Knob | None:
    """The knob that an argument is by its annotation, else by its default; None for a default that is no number."""
    kind = next((kind for kind in (bool, int, float) if isinstance(parameter.default, kind)), None)
    return None if kind is None else Knob(parameter.default, "", _KINDS.get(parameter.annotation, kind), low=-math.inf)
