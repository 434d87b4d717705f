"""Limits: one rule for what is feasible, whatever a price holds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nas.limits import FIGURES, Limits, infeasible

_FIGURE = st.floats(0.1, 1e6)
_LIMITS = st.builds(Limits, **{name: st.none() | _FIGURE for name in ("ms", "params", "gmacs", "size_mb")})
_PRICES = st.dictionaries(st.sampled_from([*FIGURES, "p90"]), _FIGURE)


@given(_LIMITS, _PRICES)
def test_what_is_met_what_is_broken_and_by_how_much_agree(limits, price):
    over = [name for name, limit in limits.known.items() if name in price and price[name] > limit]
    assert limits.broken(price) == (f"over-{FIGURES[over[0]].word}" if over else None)
    assert limits.met(price) == ("ms" in price and not over and limits.known.keys() <= price.keys())
    excess = limits.excess(price)
    assert [name for name, figure in FIGURES.items() if excess[figure.word] > 0] == over
    assert len(excess) == len(FIGURES) and min(excess.values()) >= -1
    assert bool(limits) == bool(limits.known)


def test_limits_in_words():
    assert str(Limits()) == "no limit"
    assert str(Limits(ms=2, params=3e6, gmacs=4, size_mb=10)) == "at most 2 ms, 3 M parameters, 4 GMACs, 10 MB"


def test_limits_that_only_together_are_out_of_reach():
    quick = {"ms": 1.0, "params": 4e6, "gmacs": 1.0, "size_mb": 16.0}
    small = {"ms": 3.0, "params": 2e6, "gmacs": 3.0, "size_mb": 8.0}
    error = infeasible(Limits(ms=2, params=3e6), "cpu:torch", 640, [("a", quick), ("b", small)])
    assert error.message == (
        "nothing is at most 2 ms, 3 M parameters on cpu:torch: of 2 probed the fastest takes 1 ms (a); "
        "the smallest has 2 M parameters (b)"
    )
    assert error.hint == "raise --max-params or --max-latency, lower --imgsz, or take a smaller skeleton"
    error = infeasible(Limits(ms=0.25), "cpu:torch", 640, [("a", quick)])
    assert error.hint == "raise --max-latency, lower --imgsz (to about 320), or take a smaller skeleton"
