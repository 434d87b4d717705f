"""The additive front against all combinations, one by one."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.search.additive import additive_front

# few distinct values, so that equal sums and dominated options are common
VALUES = st.integers(-3, 12).map(lambda n: n / 4)
TABLES = st.lists(
    st.lists(st.tuples(st.one_of(VALUES, st.just(np.inf)), VALUES), min_size=1, max_size=5), min_size=1, max_size=5
)


def everything(tables: list[list[tuple[float, float]]]) -> list[tuple[float, float]]:
    """Latency and loss of every architecture, from the fastest."""
    sums = (tuple(map(sum, zip(*options, strict=True))) for options in itertools.product(*tables))
    return sorted((ms, loss) for loss, ms in sums if loss < np.inf)


def front_of(sums: list[tuple[float, float]]) -> list[tuple[float, float]]:
    found: list[tuple[float, float]] = []
    for ms, loss in sums:
        if not found or loss < found[-1][1]:
            found.append((ms, loss))
    return found


def split(tables: list[list[tuple[float, float]]]) -> tuple[list[list[float]], list[list[float]]]:
    return [[loss for loss, _ in slot] for slot in tables], [[ms for _, ms in slot] for slot in tables]


@settings(max_examples=300, deadline=None)
@given(TABLES, st.one_of(st.just(np.inf), VALUES))
def test_it_is_the_front_of_all_combinations(tables, limit: float) -> None:
    found = additive_front(*split(tables), limit_ms=limit)
    assert list(zip(found.latencies, found.losses, strict=True)) == front_of([s for s in everything(tables) if s[0] <= limit])
    for member, choices in enumerate(found.choices):
        chosen = [slot[option] for slot, option in zip(tables, choices, strict=True)]
        assert sum(loss for loss, _ in chosen) == found.losses[member]
        assert sum(ms for _, ms in chosen) == found.latencies[member]


@settings(max_examples=200, deadline=None)
@given(TABLES, st.sampled_from([0.3, 1.0, 5.0]))
def test_a_tolerance_costs_latency_alone_and_less_than_itself(tables, epsilon: float) -> None:
    found = additive_front(*split(tables), epsilon_ms=epsilon)
    for ms, loss in everything(tables):
        assert any(m < ms + epsilon and v <= loss for m, v in zip(found.latencies, found.losses, strict=True))
    assert len(found) <= len(additive_front(*split(tables)))


def test_a_large_space_has_a_short_front_within_its_tolerance() -> None:
    """10^12 architectures: the additive optimum of any weighing is known slot by slot, and the front has it."""
    rng = np.random.default_rng(0)
    losses, latencies = rng.exponential(1.0, (8, 32)), rng.uniform(0.1, 1.0, (8, 32))
    found = additive_front(losses.tolist(), latencies.tolist(), epsilon_ms=0.01)
    assert len(found) < 2000 and (np.diff(found.losses) < 0).all() and (np.diff(found.latencies) > 0).all()
    for weight in (0.0, 0.3, 1.0, 3.0):
        best = (losses + weight * latencies).min(1).sum()
        assert (found.losses + weight * found.latencies).min() <= best + weight * 0.01 + 1e-9
    assert found.latencies[0] < latencies.min(1).sum() + 0.01


@pytest.mark.parametrize(
    ("losses", "latencies"),
    [
        ([], []),
        ([[1.0]], []),
        ([[1.0], []], [[1.0], []]),
        ([[1.0, 2.0]], [[1.0]]),
        ([[np.nan]], [[1.0]]),
        ([[1.0]], [[np.inf]]),
    ],
)
def test_what_is_no_table_is_refused(losses, latencies) -> None:
    with pytest.raises(ValueError, match=r"slots|slot 0|slot 1"):
        additive_front(losses, latencies)
    with pytest.raises(ValueError, match="epsilon_ms"):
        additive_front([[1.0]], [[1.0]], epsilon_ms=-1)
