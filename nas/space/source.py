"""Reading a YAML file safely: size limit, no aliases, no tags, no duplicate keys, and the line of every value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import SafeConstructor

from nas.errors import InputError, did_you_mean

MAX_BYTES = 1_000_000
MAX_DEPTH = 50
Where = tuple[str | int, ...]

_CONTAINER_TAGS = {"tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"}


@dataclass(frozen=True)
class Document:
    """Plain data of a YAML file with the line (from 1) on which every mapping key and list item stands."""

    path: Path
    data: dict[Any, Any]
    lines: Mapping[Where, int]

    def line(self, *where: str | int) -> int:
        """The line of `where`, or of its nearest ancestor that has one."""
        return next((self.lines[where[:end]] for end in range(len(where), 0, -1) if where[:end] in self.lines), 1)


@dataclass
class Faults:
    """Collects every fault of one file, so that a user mends them in one go."""

    path: Path
    found: list[tuple[int, str]] = field(default_factory=list)

    def add(self, line: int, message: str, hint: str | None = None) -> None:
        self.found.append((line, f"{message} ({hint})" if hint else message))

    def raise_if_any(self) -> None:
        """Raises InputError with one line per fault, in the order of the file."""
        if self.found:
            raise InputError("\n".join(f"{self.path}:{line}: {text}" for line, text in sorted(self.found)))


def shipped(folder: str) -> Path:
    """A folder of YAMLs that come with nas: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent.parent
    installed = package / folder
    return installed if installed.is_dir() else package.parent / folder


def read_yaml(path: Path) -> Document:
    """Read a YAML mapping from `path`.

    Raises:
        InputError: missing or unreadable file, broken YAML, aliases, tags, duplicate keys, over 1 MB, not a mapping.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path}: over {MAX_BYTES // 1000} kB", "give a YAML file written by hand")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file", _nearby(path)) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text in UTF-8"
        raise InputError(f"{path}: {reason}", "give the path of a YAML file") from error
    lines: dict[Where, int] = {}
    try:
        depth = 0
        # An alias is refused before anything is expanded: the "billion laughs" attack is made of them.
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise InputError(f"{path}: nested more than {MAX_DEPTH} deep", "give a YAML file written by hand")
            if isinstance(event, yaml.AliasEvent):
                line = event.start_mark.line + 1 if event.start_mark else 1
                raise InputError(f"{path}:{line}: alias '*{event.anchor}'", "write the value out")
        data = _plain(yaml.compose(text, Loader=yaml.SafeLoader), (), lines, path)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise InputError(f"{path}:{line}: {error.problem or error.context}", "mend the YAML on that line") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not YAML: {str(error).splitlines()[0]}", "give a YAML file") from error
    if not isinstance(data, dict):
        raise InputError(f"{path}: holds no 'key: value' lines", "compare it with a file that works")
    return Document(path, data, lines)


def _nearby(path: Path) -> str | None:
    names = [p.name for p in path.parent.iterdir() if p.suffix in {".yaml", ".yml"}] if path.parent.is_dir() else []
    return did_you_mean(path.name, names)


def _plain(node: yaml.Node | None, at: Where, lines: dict[Where, int], path: Path) -> Any:
    """The node tree as plain data, `lines` filled on the way."""
    if node is None or isinstance(node, yaml.ScalarNode):
        return None if node is None else _scalar(node, path)
    if node.tag not in _CONTAINER_TAGS:
        raise InputError(f"{path}:{node.start_mark.line + 1}: tag '{node.tag}' is not allowed", "remove it")
    if isinstance(node, yaml.SequenceNode):
        lines.update({(*at, index): item.start_mark.line + 1 for index, item in enumerate(node.value)})
        return [_plain(item, (*at, index), lines, path) for index, item in enumerate(node.value)]
    result: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise InputError(f"{path}:{line}: a key must be a word or a number", "mend the YAML on that line")
        key = _scalar(key_node, path)
        if key in result:
            raise InputError(f"{path}:{line}: duplicate key '{key}'", f"it stands on line {lines[(*at, key)]} already")
        lines[(*at, key)] = line
        result[key] = _plain(value_node, (*at, key), lines, path)
    return result


def _scalar(node: yaml.ScalarNode, path: Path) -> Any:
    try:
        return SafeConstructor().construct_object(node)
    except ValueError as error:  # 2024-99-99 looks like a date
        raise InputError(f"{path}:{node.start_mark.line + 1}: '{node.value}': {error}", "put a text in quotes") from error
