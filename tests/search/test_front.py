"""The front's functions against their definitions, written out the slow way."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.errors import InputError
from nas.search.front import best, dominates, fastest, front_indices, hypervolume, knee, pick

# A coarse grid beside real numbers, so that ties in one or both objectives are common.
_MAP = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.floats(0, 1))
_LATENCY = st.one_of(st.sampled_from([0.5, 1.0, 2.0, 4.0, 8.0]), st.floats(0.1, 20))
_POINTS = st.lists(st.tuples(_MAP, _LATENCY), max_size=25)
_BOX = {"reference_ms": 8.0, "fastest_ms": 0.5}


def _split(points):
    return [m for m, _ in points], [t for _, t in points]


@given(_POINTS)
def test_front_is_what_nothing_dominates(points):
    def better(a, b):
        return a[0] >= b[0] and a[1] <= b[1] and a != b

    expected = {i for i, p in enumerate(points) if not any(better(q, p) for q in points) and p not in points[:i]}
    found = front_indices(*_split(points))
    assert set(found) == expected
    assert all(np.diff([points[i][1] for i in found]) > 0)
    assert all(np.diff([points[i][0] for i in found]) > 0)
    for a in points[:5]:
        maps, latencies = _split(points)
        assert list(dominates(a[0], a[1], maps, latencies)) == [better(a, b) for b in points]


@given(_POINTS)
def test_hypervolume_is_the_area_of_the_union(points):
    # Every distinct latency and mAP cuts the plane into cells; a cell counts if some point covers it.
    inside = [(m, t) for m, t in points if t < 8.0]
    ts, ms = sorted({t for _, t in inside} | {8.0}), sorted({m for m, _ in inside} | {0.0})
    area = sum(
        math.log(t1 / t0) * (m1 - m0)
        for t0, t1 in pairwise(ts)
        for m0, m1 in pairwise(ms)
        if any(t <= t0 and m >= m1 for m, t in inside)
    )
    assert hypervolume(*_split(points), **_BOX) == pytest.approx(area / math.log(16), abs=1e-9)


@given(_POINTS, _MAP, _LATENCY, st.randoms())
@settings(max_examples=60)
def test_order_and_additions(points, m, t, rng):
    volume = hypervolume(*_split(points), **_BOX)
    assert hypervolume(*_split([*points, (m, t)]), **_BOX) >= volume - 1e-12
    shuffled = rng.sample(points, len(points))
    assert hypervolume(*_split(shuffled), **_BOX) == pytest.approx(volume, abs=1e-12)
    if points:
        for choose in (fastest, best, knee):
            assert points[choose(*_split(points))] == shuffled[choose(*_split(shuffled))]
        assert points[fastest(*_split(points))][1] == min(t for _, t in points)
        assert points[best(*_split(points))] == max(points, key=lambda p: (p[0], -p[1]))


def test_hypervolume_by_hand():
    assert hypervolume([], [], **_BOX) == 0
    assert hypervolume([1.0], [0.5], **_BOX) == pytest.approx(1)  # the whole box
    assert hypervolume([0.5], [2.0], **_BOX) == pytest.approx(0.5 * 0.5)  # 2 ms is halfway from 8 to 0.5 in log
    assert hypervolume([0.5, 1.0], [2.0, 4.0], **_BOX) == pytest.approx(0.25 * 1.0 + 0.25 * 0.5)
    assert hypervolume([1.0, 1.0], [8.0, 9.0], **_BOX) == 0  # at and beyond the reference
    assert hypervolume([1.0], [0.25], **_BOX) == pytest.approx(1.25)  # faster than the box is wide: counts as it goes


def test_picks_by_hand():
    # The chord runs from (1 ms, 0) to (16 ms, 1); scaled to it, the members stand at log latency 0, 1/4, 1/2, 1.
    maps, latencies = [0.0, 0.5, 0.9, 1.0, 0.2], [1.0, 2.0, 4.0, 16.0, 5.0]
    assert knee(maps, latencies) == 2  # 0.4 above the chord, index 1 only 0.25
    assert (fastest(maps, latencies), best(maps, latencies)) == (0, 3)
    assert knee([0.3], [1.0]) == 0
    assert knee([0.3, 0.4], [1.0, 2.0]) == 1
    assert knee([0.1, 0.2, 0.9], [1.0, 3.0, 4.0]) == 2  # hangs below its chord: no bulge
    assert pick(maps, latencies, "knee") == 2
    with pytest.raises(InputError, match="knees") as caught:
        pick(maps, latencies, "knees")
    assert "'knee'" in str(caught.value)


@pytest.mark.parametrize(
    ("maps", "latencies"),
    [
        ([math.nan], [1.0]),
        ([math.inf], [1.0]),
        ([-0.1], [1.0]),
        ([37.3], [1.0]),
        ([0.5], [0.0]),
        ([0.5], [-1.0]),
        ([0.5], [math.inf]),
        ([0.5], [math.nan]),
        ([0.5, 0.6], [1.0]),
        ([[0.5]], [[1.0]]),
    ],
)
def test_bad_input_is_refused(maps, latencies):
    for function in (front_indices, knee, fastest, best, lambda m, t: hypervolume(m, t, **_BOX)):
        with pytest.raises(ValueError, match=r"mAP|latency|parallel"):
            function(maps, latencies)


def test_an_empty_front_has_no_picks_and_a_box_has_a_width():
    with pytest.raises(ValueError, match="empty"):
        knee([], [])
    for reference, fast in ((1.0, 1.0), (1.0, 2.0), (1.0, 0.0), (math.inf, 1.0), (1.0, math.nan)):
        with pytest.raises(ValueError, match="fastest_ms"):
            hypervolume([0.5], [0.5], reference_ms=reference, fastest_ms=fast)
