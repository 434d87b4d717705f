"""The limits on an architecture, and whether its price is within them: the one place that decides feasibility."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from nas.errors import InfeasibleError


class Figure(NamedTuple):
    """A figure of a price that may have a limit: how it is called, its flag, how it is written, how a record of it is named,
    and whether a smaller image lowers it."""

    word: str
    flag: str
    write: Callable[[float], str]
    least: str
    by_image: bool


def _digits(number: float) -> str:
    """To four digits: 2.5, 12.34, 1,200."""
    return f"{number:.4g}" if number < 1000 else f"{number:,.0f}"


# What is known before anything is timed comes first: which limit is said to be broken must not depend on what was timed.
FIGURES: Mapping[str, Figure] = {
    "params": Figure(
        "params", "--max-params", lambda n: f"{_digits(n / 1e6)} M parameters", "the smallest has", by_image=False
    ),
    "gmacs": Figure("macs", "--max-macs", lambda n: f"{_digits(n)} GMACs", "the cheapest takes", by_image=True),
    "size_mb": Figure("size", "--max-size", lambda n: f"{_digits(n)} MB", "the smallest file has", by_image=False),
    "ms": Figure("latency", "--max-latency", lambda n: f"{_digits(n)} ms", "the fastest takes", by_image=True),
}


@dataclass(frozen=True)
class Limits:
    """The most that each figure of a price may be, None where it does not matter.

    Attributes:
        ms: latency on the target.
        params: parameters of the fused model.
        gmacs: multiply-adds of one image, in 1e9.
        size_mb: weights as the target's precision stores them, in 1e6 bytes.
    """

    ms: float | None = None
    params: float | None = None
    gmacs: float | None = None
    size_mb: float | None = None

    @property
    def known(self) -> dict[str, float]:
        """Figure -> limit, of those that have one, in the order of FIGURES."""
        return {name: limit for name in FIGURES if (limit := getattr(self, name)) is not None}

    def __bool__(self) -> bool:
        return bool(self.known)

    def broken(self, price: Mapping[str, Any]) -> str | None:
        """The first limit that a price breaks, as the reason of a rejection ("over-params"). What the price does not hold, as
        the latency of what was not worth timing, breaks none."""
        over = (name for name, limit in self.known.items() if name in price and price[name] > limit)
        return next((f"over-{FIGURES[name].word}" for name in over), None)

    def met(self, price: Mapping[str, Any]) -> bool:
        """Whether a price holds a latency and every figure that has a limit, all of them within it."""
        return "ms" in price and self.known.keys() <= price.keys() and self.broken(price) is None

    def excess(self, price: Mapping[str, Any]) -> dict[str, float]:
        """How far a price is over each limit, as a share of it: above 0 where it is broken, -1 where there is none.

        Always one entry for every figure, in one unit, as samplers want their constraints.
        """
        known = self.known
        return {
            figure.word: price[name] / known[name] - 1 if name in known and name in price else -1.0
            for name, figure in FIGURES.items()
        }

    def __str__(self) -> str:
        """`at most 2 ms, 3 M parameters`; "no limit" where there is none."""
        texts = [FIGURES[field.name].write(self.known[field.name]) for field in fields(self) if field.name in self.known]
        return f"at most {', '.join(texts)}" if texts else "no limit"


def infeasible(limits: Limits, target: str, imgsz: int, found: Sequence[tuple[str, Mapping[str, Any]]]) -> InfeasibleError:
    """That nothing is within the limits: what comes nearest to each that is broken, and what would help.

    Args:
        found: what was priced: its placements in words, and its price; at least one with a latency.
    """

    def least(name: str) -> tuple[str, float]:
        what, price = min(((w, p) for w, p in found if name in p), key=lambda pair: float(pair[1][name]))
        return what, float(price[name])

    best = {name: least(name) for name in (*limits.known, "ms") if any(name in price for _, price in found)}
    # Each limit alone may be within reach, and all together not.
    unreached = {n: limit for n, limit in limits.known.items() if n in best and best[n][1] > limit} or limits.known
    names = dict.fromkeys(["ms", *unreached])
    nearest = [f"{FIGURES[n].least} {FIGURES[n].write(best[n][1])} ({best[n][0]})" for n in names if n in best]
    flags = " or ".join(FIGURES[name].flag for name in unreached)
    helps = [f"raise {flags}"]
    shares = [limit / best[name][1] for name, limit in unreached.items() if name in best and FIGURES[name].by_image]
    if shares:
        near = math.floor(imgsz * math.sqrt(min(1.0, *shares)) / 32) * 32
        helps.append("lower --imgsz" + (f" (to about {near})" if 32 <= near < imgsz else ""))
    hint = ", ".join([*helps, "or take a smaller skeleton"])
    return InfeasibleError(f"nothing is {limits} on {target}: of {len(found)} probed {'; '.join(nearest)}", hint)
