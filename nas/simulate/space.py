"""A table as a search space: every row is an architecture, its features are the choices, its latency is known."""

from __future__ import annotations

import random
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial

from nas.errors import InfeasibleError
from nas.execution.executor import Event
from nas.limits import Limits
from nas.pricing import Price, Priced, Unpriced
from nas.proposals import ArchitectureOf
from nas.search.belief import Frame
from nas.search.front_sampler import Candidates, Earlier, TableCandidates
from nas.simulate.table import Table
from nas.space.architecture import Architecture, Placement
from nas.space.protocol import Forbids

ROW = "row"  # the one slot of a table's architectures


class TableSpace:
    """`nas.space.protocol.Space`. The first row is the baseline: it has no placement, every other row has one."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self._rows: list[Architecture | None] = [None] * len(table)
        self._texts: dict[float | str | None, str] = {}

    def row(self, architecture: Architecture) -> int:
        """The row that an architecture is."""
        return architecture.placements[0].layer if architecture.placements else 0

    def architecture(self, row: int) -> Architecture:
        """What stands for a row: one object each, however often it is asked for."""
        found = self._rows[row]
        if found is None:
            placement = Placement(ROW, row, self.table.names[row], 0, 0)
            found = self._rows[row] = Architecture(self.table.path.stem, (placement,) if row else ())
        return found

    def describe(self, architecture: Architecture) -> dict[str, str]:
        """Its features, for people."""
        row = self.row(architecture)
        return {name: self._texts.setdefault(column[row], _text(column[row])) for name, column in self.table.columns.items()}

    @property
    def baseline(self) -> Architecture:
        return self.architecture(0)

    @property
    def size(self) -> int:
        return len(self.table)

    def draw(self, choose: Callable[[str, Sequence[Any]], Any]) -> Architecture:
        return self.architecture(self.table.nearest({name: choose(name, own) for name, own in self.table.levels.items()}))

    def params(self, architecture: Architecture) -> Mapping[str, Any]:
        return self.table.params(self.row(architecture))

    def sample(self, rng: random.Random, imgsz: int) -> Architecture | None:  # noqa: ARG002  (of a table, all have one size)
        return self.architecture(rng.randrange(len(self.table)))

    def enumerate(self) -> Iterator[Architecture]:
        return map(self.architecture, range(len(self.table)))

    def neighbours(self, architecture: Architecture) -> Iterator[Architecture]:  # noqa: ARG002
        return iter(())  # which rows are alike is the sampler's to find out

    def forbidding_rule(self, architecture: Architecture, imgsz: int) -> Forbids | None:  # noqa: ARG002
        return None


class TableLatencies:
    """`nas.pricing.Prices`: the latency of every row is known at once."""

    measures, busy, under_way, error = False, False, False, None
    elapsed = typical_seconds = 0.0

    def __init__(self, space: TableSpace, limits: Limits, target: str) -> None:
        self._space, self._limits, self._target = space, limits, target
        self.stopping = False

    def price(self, architecture: Architecture) -> Price:
        """What a row costs."""
        return {"ms": float(self._space.table.latency[self._space.row(architecture)]), "source": "table"}

    def ask(self, number: int, architecture: Architecture, *, measured: bool = False) -> Price | None:  # noqa: ARG002
        return self.price(architecture)

    def broken(self, price: Price) -> str | None:
        return self._limits.broken(price)

    def model(self, architecture: Architecture) -> Mapping[str, Any]:
        return {ROW: self._space.row(architecture)}

    def renewed(self, priced: Sequence[tuple[Architecture, Price]]) -> list[Price]:
        return [price for _, price in priced]

    def probe(self, wait: Callable[[], None]) -> None:  # noqa: ARG002
        """Raises InfeasibleError where no row meets the limits."""
        row = int(np.argmin(self._space.table.latency))
        fastest = self._space.table.latency[row]
        if not self._limits.met({"ms": fastest}):
            what = f"nothing is {self._limits} in {self._target}: the fastest row takes {fastest:.4g} ms"
            raise InfeasibleError(f"{what} ({self._space.table.names[row]})", "raise --max-latency")

    def again(self, number: int, architecture: Architecture) -> None: ...
    def remember(self, architecture: Architecture) -> None: ...
    def repeat(self) -> None: ...
    def stop(self, but: Container[int]) -> None: ...
    def save(self) -> None: ...
    def calibrate(self) -> None: ...

    def owns(self, event: Event) -> bool:  # noqa: ARG002  (nothing is measured)
        return False

    def take(self, event: Event) -> Priced | Unpriced | None:  # noqa: ARG002
        return None


class TableKnowledge:
    """`nas.proposals.Knowledge` of a table."""

    def __init__(self, space: TableSpace, limit_ms: float | None) -> None:
        self._space = space
        latency = space.table.latency
        self._frame = Frame(float(latency.min()), float(latency.max()), limit_ms)

    def candidates(self, architecture: ArchitectureOf) -> Candidates:
        def row(trial: FrozenTrial) -> int | None:
            found = architecture(trial)
            return None if found is None else self._space.row(found)

        table = self._space.table
        return TableCandidates(table.features, table.latency, row, table.params)

    def frame(self) -> Frame:
        return self._frame

    def earlier(self, prior: Sequence[tuple[Architecture, float]]) -> Earlier | None:
        rows = np.array([[self._space.row(architecture)] for architecture, _ in prior], dtype=np.int32)
        return Earlier(rows, np.array([score for _, score in prior]))


def _text(value: float | str | None) -> str:
    return "" if value is None else value if isinstance(value, str) else f"{value:g}"
