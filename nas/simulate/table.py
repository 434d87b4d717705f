"""A table of finished architectures: a CSV with one row each, its features, accuracies and latencies.

Columns that are not named are told by their names: features are all but the first (which names the row), `acc*`, `lat*` and
`seconds`. A column is numbers where every cell that is not empty is one, else text.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from nas.errors import InputError, did_you_mean
from nas.space.features import Features, encode

Floats = NDArray[np.float64]
Column = list[float | str | None]

COPY = "copy"  # tells rows apart whose features are the same
SECONDS = "seconds"
HINT = "give a CSV file with one architecture per row"
_AT = re.compile(r"acc_at_(\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class Table:
    """Rows as arrays.

    Attributes:
        names: of the rows, from the first column.
        columns: the features as they are written.
        accuracy: at the end of a training, in [0, `ceiling`].
        ceiling: 1, or 100 for accuracies in points.
        latency: ms.
        seconds: that a training takes, where a column says so.
        lower: accuracies after less training, by the number in their columns' names (`acc_at_10`), rising.
        length: the number in the accuracy column's own name, if it has one.
        levels: what tells the rows apart: every column that is needed for it with its values, in order (None is absent).
        codes: (rows, columns): which value each row has.
    """

    path: Path
    names: Sequence[str]
    columns: Mapping[str, Column]
    accuracy: Floats
    ceiling: float
    latency: Floats
    seconds: Floats | None
    lower: Mapping[float, Floats]
    length: float | None
    levels: Mapping[str, Column]
    codes: NDArray[np.intp]

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def features(self) -> Features:
        """Of all rows, for the accuracy model."""
        return encode(list(self.columns.values()))

    def params(self, row: int) -> dict[str, float | str | None]:
        """The values that draw a row."""
        return {name: own[code] for (name, own), code in zip(self.levels.items(), self.codes[row], strict=True)}

    def nearest(self, params: Mapping[str, Any]) -> int:
        """The row with these values, or else the one with the fewest other texts and the nearest numbers, where a text counts
        as much as the whole range of a number."""
        code = tuple(places[params[name]] for name, places in self._places.items())
        found = self._rows.get(code)
        return int(self._tree.query(self._point(np.array(code)), p=1)[1]) if found is None else found

    @cached_property
    def _places(self) -> dict[str, dict[float | str | None, int]]:
        return {name: {level: number for number, level in enumerate(own)} for name, own in self.levels.items()}

    @cached_property
    def _rows(self) -> dict[tuple[int, ...], int]:
        return {tuple(code): row for row, code in enumerate(self.codes.tolist())}

    @cached_property
    def _tree(self) -> KDTree:
        return KDTree(np.array([self._point(code) for code in self.codes]))

    def _point(self, code: NDArray[np.intp]) -> Floats:
        """A number in [0, 1]; a text as one-hot, so that two of them are 1 apart by the sum of differences."""
        parts = [
            0.5 * (np.arange(len(own)) == number) if is_text(own) else np.array([number / max(1, len(own) - 1)])
            for own, number in zip(self.levels.values(), code, strict=True)
        ]
        return np.concatenate(parts)


def is_text(column: Sequence[float | str | None]) -> bool:
    """Whether a column, or its levels, are categories."""
    return any(isinstance(value, str) for value in column)


def read_table(path: Path, accuracy: str, latency: str, features: Sequence[str] | None = None) -> Table:
    """Read a table.

    Args:
        accuracy: the column to maximise: points, or in [0, 1].
        latency: the column to minimise: ms.
        features: columns; see above where None.

    Raises:
        InputError: a file that is no such table, a column that it lacks, or a cell that is no number where one is needed.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            names = list(reader.fieldnames or [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read: {error}", HINT) from error
    if len(rows) < 2:
        raise InputError(f"{path}: holds fewer than two rows", HINT)
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise InputError(f"{path}:{number}: has {'more' if None in row else 'fewer'} cells than the head", HINT)
    if features is None:
        features = [n for n in names[1:] if not n.startswith(("acc", "lat")) and n not in {accuracy, latency, SECONDS}]
    for name in (accuracy, latency, *features):
        if name not in names:
            raise InputError(f"{path}: has no column '{name}'", did_you_mean(name, names))
    if not features:
        raise InputError(f"{path}: has no features", "name them: --features A,B")
    accuracies, latencies = _numbers(path, rows, accuracy), _numbers(path, rows, latency)
    if np.any(latencies <= 0):
        raise InputError(f"{path}: a latency in column '{latency}' is not above 0", "latencies are milliseconds")
    if np.any(accuracies < 0) or np.any(accuracies > 100):
        raise InputError(f"{path}: an accuracy in column '{accuracy}' is outside 0 to 100", "give points, or shares of 1")
    ceiling = 100.0 if accuracies.max() > 1 else 1.0
    lengths = {name: float(match[1]) for name in names if (match := _AT.fullmatch(name))}
    own = lengths.pop(accuracy, None)
    lower = {at: _numbers(path, rows, name) for name, at in sorted(lengths.items(), key=lambda n: n[1]) if at < (own or at + 1)}
    seconds = _numbers(path, rows, SECONDS) if SECONDS in names else None
    if seconds is not None and np.any(seconds <= 0):
        raise InputError(f"{path}: a training in column '{SECONDS}' takes no time", "every row needs a number above 0 there")
    columns = {name: _column([row[name] for row in rows]) for name in features}
    levels, codes = _codes(columns, len(rows))
    labels = [row[names[0]] for row in rows]
    return Table(path, labels, columns, accuracies, ceiling, latencies, seconds, lower, own, levels, codes)


def _numbers(path: Path, rows: Sequence[Mapping[str, str]], name: str) -> Floats:
    values = np.empty(len(rows))
    for number, row in enumerate(rows):
        try:
            values[number] = float(row[name])
        except ValueError:
            values[number] = np.nan
        if not np.isfinite(values[number]):
            what = f"'{row[name]}' in column '{name}' is no number"
            raise InputError(f"{path}:{number + 2}: {what}", "every row needs a finite number there")
    return values


def _column(cells: Sequence[str]) -> Column:
    """Numbers where every cell that is not empty is one, else text."""
    try:
        numbers: Column = [float(cell) if cell else None for cell in cells]
    except ValueError:
        return [cell or None for cell in cells]
    return numbers if all(n is None or np.isfinite(float(n)) for n in numbers) else [cell or None for cell in cells]


def _codes(columns: Mapping[str, Column], rows: int) -> tuple[dict[str, list[Any]], NDArray[np.intp]]:
    """Levels of each column, and every row in numbers of levels. Columns without which rows differ as well are left out; where
    rows do not differ in any, `copy` counts them."""
    levels: dict[str, list[Any]] = {}
    codes: dict[str, NDArray[np.intp]] = {}
    for name, column in columns.items():
        present: set[Any] = {value for value in column if value is not None}
        own = [None] * (None in column) + sorted(present)
        if len(own) > 1:
            index = {level: number for number, level in enumerate(own)}
            levels[name], codes[name] = own, np.array([index[value] for value in column])

    def kinds(names: Sequence[str]) -> int:
        return len(np.unique(np.column_stack([codes[name] for name in names]), axis=0)) if names else 1

    names = list(codes)
    if kinds(names) < rows:
        met: dict[tuple[int, ...], int] = {}
        copies = []
        for code in zip(*(codes[name].tolist() for name in names), strict=True) if names else [()] * rows:
            copies.append(met.setdefault(code, 0))
            met[code] += 1
        levels[COPY], codes[COPY] = list(map(float, range(max(copies) + 1))), np.array(copies)
    for name in reversed(names):
        rest = [other for other in codes if other != name]
        if kinds(rest) == rows:
            del codes[name], levels[name]
    return levels, np.column_stack(list(codes.values()))
