"""The tiny language of `forbid`: comparisons of placements, joined by and, or, not. Parsed and interpreted, never run.

    backbone.P3.block == 'mobile_mqa' and imgsz > 960
    neck.bottomup.P4.depth >= 3 or backbone.P5.width in (0.5, 0.75)

Names are `imgsz` and `<slot>.block|width|depth|heads|channels|<knob>`; a slot whose name ends in `.2` is written `_2`.
`width` is the factor written in the space, not the ratio of the channels after rounding; where several factors round to
the same channels it is the first of them. A slot left as the skeleton has it has width 1.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from nas.blocks.catalog import CATALOG
from nas.errors import did_you_mean

Value = str | int | float | bool | None
Lookup = Callable[[str], Value]

MAX_LENGTH = 500

_COMPARE: Mapping[type[ast.cmpop], Callable[[Value, Value], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: lambda a, b: _ordered(a, b) and a < b,  # type: ignore[operator]
    ast.LtE: lambda a, b: _ordered(a, b) and a <= b,  # type: ignore[operator]
    ast.Gt: lambda a, b: _ordered(a, b) and a > b,  # type: ignore[operator]
    ast.GtE: lambda a, b: _ordered(a, b) and a >= b,  # type: ignore[operator]
}


class RuleError(ValueError):
    """A rule that cannot be read; the message says why."""


@dataclass(frozen=True)
class Rule:
    """One forbidden combination. `text` as written; `matches(lookup)` is true for what it forbids."""

    text: str
    tree: ast.expr
    names: frozenset[str]

    @classmethod
    def parse(cls, text: str, known: Collection[str]) -> Rule:
        """Raises RuleError for anything but names in `known`, numbers, strings, comparisons, and, or, not, in."""
        if len(text) > MAX_LENGTH:
            raise RuleError(f"longer than {MAX_LENGTH} characters")
        try:
            tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            reason = error.msg if isinstance(error, SyntaxError) else str(error)
            raise RuleError(f"not a comparison: {reason}") from None
        names: set[str] = set()
        _check(tree, known, names)
        _check_condition(tree)
        return cls(text, tree, frozenset(names))

    def matches(self, lookup: Lookup) -> bool:
        """Whether an architecture is forbidden; `lookup` gives the value of a name (None where it has none)."""
        return bool(_value(self.tree, lookup))


def _ordered(a: Value, b: Value) -> bool:
    """Numbers compare with numbers, words with words; an absent value (heads of RepViT) is neither above nor below."""
    return all(isinstance(v, int | float) for v in (a, b)) or all(isinstance(v, str) for v in (a, b))


def _dotted(node: ast.expr) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (base := _dotted(node.value)):
        return f"{base}.{node.attr}"
    return None


def _check(node: ast.expr, known: Collection[str], names: set[str]) -> None:
    if (name := _dotted(node)) is not None:
        if name not in known:
            raise RuleError(f"unknown name '{name}' ({did_you_mean(name, known)})")
        names.add(name)
        return
    match node:
        case ast.Constant(value=str() | int() | float()):
            children: list[ast.expr] = []
        case ast.Tuple(elts=children) | ast.List(elts=children) | ast.BoolOp(values=children):
            pass
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            children = [operand]
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            if not all(type(op) in _COMPARE or isinstance(op, ast.In | ast.NotIn) for op in ops):
                raise RuleError("only ==, !=, <, <=, >, >=, in and not in compare")
            children = [left, *comparators]
        case _:
            raise RuleError(f"'{ast.unparse(node)}' is not allowed in a rule")
    for child in children:
        _check(child, known, names)


def _check_condition(node: ast.expr) -> None:
    """A rule and each side of its and, or, not must be true or false by itself: `block == 'irmb' or 'repvit'` is neither."""
    match node:
        case ast.BoolOp(values=sides):
            pass
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            sides = [operand]
        case ast.Compare():
            return
        case ast.Attribute(attr=word) if _is_flag(word):
            return
        case _:
            raise RuleError(f"'{ast.unparse(node)}' compares nothing (write name == value, or name in (value, value))")
    for side in sides:
        _check_condition(side)


def _is_flag(word: str) -> bool:
    """Whether `word` is a knob that is true or false, of any block that is in the catalog now."""
    return any(word in spec.knobs and spec.knobs[word].kind is bool for spec in CATALOG.values())


def _value(node: ast.expr, lookup: Lookup) -> Value | tuple[Value, ...]:
    if (name := _dotted(node)) is not None:
        return lookup(name)
    match node:
        case ast.Constant(value=value):
            return value  # type: ignore[return-value]
        case ast.Tuple(elts=items) | ast.List(elts=items):
            return tuple(_value(item, lookup) for item in items)  # type: ignore[misc]
        case ast.BoolOp(op=ast.And(), values=values):
            return all(_value(v, lookup) for v in values)
        case ast.BoolOp(values=values):
            return any(_value(v, lookup) for v in values)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return not _value(operand, lookup)
        case ast.UnaryOp(operand=operand):
            number = _value(operand, lookup)
            return -number if isinstance(number, int | float) else None
        case ast.Compare(left=left, ops=ops, comparators=comparators):
            sides = [_value(side, lookup) for side in (left, *comparators)]
            return all(_compare(op, a, b) for op, a, b in zip(ops, sides, sides[1:], strict=False))
    raise RuleError(f"'{ast.unparse(node)}' is not allowed in a rule")


def _compare(op: ast.cmpop, a: Value | tuple[Value, ...], b: Value | tuple[Value, ...]) -> bool:
    if isinstance(op, ast.In | ast.NotIn):
        inside = a in b if isinstance(b, tuple) else a == b
        return inside if isinstance(op, ast.In) else not inside
    return bool(_COMPARE[type(op)](a, b))  # type: ignore[arg-type]
