"""Two objectives, mAP up and latency down: dominance, the front, its hypervolume, and the three architectures to pick.

Everything takes parallel arrays: `maps` (mAP50-95, in [0, 1]) and `latencies` (p50 in ms, above 0, all of one
target), and speaks of members by their index in them. Whatever is not finite or outside these ranges raises
ValueError: a trial without a result belongs outside the arrays, not in them as NaN.

Sources: dominance and hypervolume as in E. Zitzler and L. Thiele, "Multiobjective evolutionary algorithms: a
comparative case study and the strength Pareto approach", IEEE Trans. Evolutionary Computation 3(4), 1999; the knee as
in I. Das, "On characterizing the 'knee' of the Pareto curve based on Normal-Boundary Intersection", Structural
Optimization 18, 1999 (for two objectives the same point as in V. Satopaa et al., "Finding a 'Kneedle' in a haystack",
ICDCS Workshops 2011).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nas.errors import InputError, did_you_mean

PICKS = ("knee", "fastest", "best")
_TIE = 1e-12  # distances to the chord (in units of its box) closer than this are rounding, not a difference


def dominates(map_a: ArrayLike, latency_a: ArrayLike, map_b: ArrayLike, latency_b: ArrayLike) -> NDArray[np.bool_]:
    """Whether a is at least as good as b in both objectives and better in one (so equals do not). Broadcasts.

    Raises:
        ValueError: a value that is not finite, an mAP outside [0, 1] or a latency not above 0.
    """
    ma, la = _map(map_a), _latency(latency_a)
    mb, lb = _map(map_b), _latency(latency_b)
    return np.asarray((ma >= mb) & (la <= lb) & ((ma > mb) | (la < lb)))


def front_indices(maps: ArrayLike, latencies: ArrayLike) -> NDArray[np.intp]:
    """Indices of the points that no other dominates, from the fastest to the best mAP. Of equal points, the first.

    O(n log n): sorted by latency (then mAP, then index), a point is on the front exactly where it raises the running
    best mAP. Along the result both latency and mAP rise strictly. Empty input gives an empty front.

    Raises:
        ValueError: arrays of different lengths, or a value outside its range.
    """
    m, t = _checked(maps, latencies)
    order = np.lexsort((np.arange(m.size), -m, t))
    before = np.maximum.accumulate(np.concatenate(([-1.0], m[order])))[:-1]
    return order[m[order] > before]


def hypervolume(maps: ArrayLike, latencies: ArrayLike, *, reference_ms: float, fastest_ms: float) -> float:
    """The share of the box [fastest_ms, reference_ms] x [0, 1] (log latency x mAP) that the points dominate.

    The reference point is mAP 0 at `reference_ms`; the width is measured in log latency, so that twice as fast is
    worth the same everywhere. A point at or beyond the reference contributes nothing. A point faster than
    `fastest_ms` counts as far as it goes: it may lift the volume above what the box alone could hold (above 1 in the
    extreme), because cutting it off would make two searches equal of which one found more. Adding a point never
    lowers the volume; no points, no volume.

    Args:
        maps: mAP50-95 in [0, 1].
        latencies: ms.
        reference_ms: the slow end of the box (the limit; without one, twice the baseline).
        fastest_ms: the fast end of the box, where the width is 1.

    Raises:
        ValueError: arrays of different lengths, a value outside its range, or not 0 < fastest_ms < reference_ms.
    """
    if not (np.isfinite(reference_ms) and 0 < fastest_ms < reference_ms):
        raise ValueError(f"need 0 < fastest_ms < reference_ms, got {fastest_ms} and {reference_ms}")
    m, t = _checked(maps, latencies)
    m, t = m[t < reference_ms], t[t < reference_ms]
    members = front_indices(m, t)
    # Widths from the reference, falling along the front: each member adds the strip between itself and the next
    # slower one.
    width = np.log(reference_ms / t[members]) / np.log(reference_ms / fastest_ms)
    return float(np.sum(m[members] * (width - np.append(width[1:], 0.0))))


def fastest(maps: ArrayLike, latencies: ArrayLike) -> int:
    """Index of the fastest; among equally fast ones the best mAP. Raises ValueError on empty input."""
    return int(_nonempty_front(maps, latencies)[0])


def best(maps: ArrayLike, latencies: ArrayLike) -> int:
    """Index of the highest mAP; among equals the faster. Raises ValueError on empty input."""
    return int(_nonempty_front(maps, latencies)[-1])


def knee(maps: ArrayLike, latencies: ArrayLike) -> int:
    """Index of the front's knee: where giving up latency stops paying, and giving up mAP starts to cost.

    The member farthest above the chord between the front's ends, both axes (log latency, mAP) scaled to [0, 1] over
    the front (Das 1999). Scaled so, the distance is proportional to mAP minus log latency. Members below the chord do
    not count: a front without a bulge, as one of two points, gives its better mAP, and so does a tie. One point is
    its own knee.

    Raises:
        ValueError: empty input, arrays of different lengths, or a value outside its range.
    """
    members = _nonempty_front(maps, latencies)
    m, x = _map(maps)[members], np.log(_latency(latencies)[members])
    if x[-1] == x[0]:  # a single member, or latencies that differ by less than their logarithms can tell
        return int(members[-1])
    above = (m - m[0]) / (m[-1] - m[0]) - (x - x[0]) / (x[-1] - x[0])
    return int(members[np.flatnonzero(above >= above.max() - _TIE)[-1]])


def pick(maps: ArrayLike, latencies: ArrayLike, which: str) -> int:
    """Index of the member called `which`: knee, fastest or best.

    Raises:
        InputError: another word.
        ValueError: empty input, arrays of different lengths, or a value outside its range.
    """
    chooser = {"knee": knee, "fastest": fastest, "best": best}.get(which)
    if chooser is None:
        raise InputError(f"cannot pick '{which}' from a front", did_you_mean(which, PICKS))
    return chooser(maps, latencies)


def _map(values: ArrayLike) -> NDArray[np.float64]:
    m = np.asarray(values, dtype=np.float64)
    if not np.all((m >= 0) & (m <= 1)):  # also false for NaN
        raise ValueError("every mAP must lie in [0, 1]")
    return m


def _latency(values: ArrayLike) -> NDArray[np.float64]:
    t = np.asarray(values, dtype=np.float64)
    if not np.all(np.isfinite(t) & (t > 0)):
        raise ValueError("every latency must be finite and above 0 ms")
    return t


def _checked(maps: ArrayLike, latencies: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    m, t = _map(maps), _latency(latencies)
    if m.ndim != 1 or m.shape != t.shape:
        raise ValueError(f"maps and latencies must be parallel lists, got shapes {m.shape} and {t.shape}")
    return m, t


def _nonempty_front(maps: ArrayLike, latencies: ArrayLike) -> NDArray[np.intp]:
    members = front_indices(maps, latencies)
    if members.size == 0:
        raise ValueError("nothing to pick from: the front is empty")
    return members
