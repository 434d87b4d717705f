"""The front of a whole space where both objectives are sums over the slots: by dynamic programming, without listing it.

A prefix of slots has a front of partial sums, and no architecture of the whole front contains a part that another part of
the same slots dominates. So slot by slot the front so far meets the slot's options, and what is dominated goes. A space of
10^12 architectures takes as many steps as it has slots.

Both are to be minimised: a loss (or its rise over the skeleton's) and a latency in ms. This is exact but for `epsilon`, a
tolerance in latency by which the partial fronts are kept short.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class AdditiveFront:
    """The architectures of a front, the fastest first; both sums fall and rise strictly along it.

    Attributes:
        choices: int64 (members, slots): which option each slot holds.
        losses: the sum of the options' losses, (members,).
        latencies: that of their latencies, (members,).
    """

    choices: NDArray[np.intp]
    losses: Floats
    latencies: Floats

    def __len__(self) -> int:
        return len(self.losses)


def additive_front(
    losses: Sequence[Sequence[float]],
    latencies: Sequence[Sequence[float]],
    *,
    limit_ms: float = np.inf,
    epsilon_ms: float = 0.0,
) -> AdditiveFront:
    """The front of all combinations of one option per slot.

    Args:
        losses: per slot, of each option. An option that may not be chosen has infinity.
        latencies: per slot, of each option in ms, over any fixed part; may be negative where an option is faster.
        limit_ms: leave out what is slower.
        epsilon_ms: for every architecture under the limit there is a member with no more loss and less than this more
            latency (which may bring it over the limit). 0 is exact, and its partial fronts may grow with the product of all
            options.

    Raises:
        ValueError: no slots, a slot without options, tables of different shapes, or NaN in them.
    """
    tables = _tables(losses, latencies)
    if not np.isfinite(epsilon_ms) or epsilon_ms < 0:
        raise ValueError(f"epsilon_ms is {epsilon_ms}, not from 0 on")
    rest = np.append(np.cumsum([ms.min(initial=np.inf) for _, ms in tables][::-1])[::-1], 0.0)[1:]
    step = epsilon_ms / len(tables)
    loss, ms = np.zeros(1), np.zeros(1)
    origins: list[tuple[NDArray[np.intp], NDArray[np.intp]]] = []
    for (own_loss, own_ms), fastest_rest in zip(tables, rest, strict=True):
        all_loss, all_ms = (loss[:, None] + own_loss).ravel(), (ms[:, None] + own_ms).ravel()
        kept = _short(all_loss, all_ms, np.flatnonzero(np.isfinite(all_loss) & (all_ms + fastest_rest <= limit_ms)), step)
        loss, ms = all_loss[kept], all_ms[kept]
        origins.append((kept // len(own_loss), kept % len(own_loss)))
    choices = np.empty((len(loss), len(tables)), np.intp)
    members = np.arange(len(loss))
    for slot in range(len(tables) - 1, -1, -1):
        before, option = origins[slot]
        choices[:, slot] = option[members]
        members = before[members]
    return AdditiveFront(choices, loss, ms)


def _short(loss: Floats, ms: Floats, among: NDArray[np.intp], step: float) -> NDArray[np.intp]:
    """Indices of the front, by rising latency; of those in one step of latency only the one with the least loss."""
    order = among[np.lexsort((among, loss[among], ms[among]))]
    before = np.minimum.accumulate(np.concatenate(([np.inf], loss[order])))[:-1]
    front = order[loss[order] < before]
    if step > 0 and len(front):
        bins = np.floor((ms[front] - ms[front[0]]) / step)
        front = front[np.append(bins[1:] != bins[:-1], True)]  # the last of a bin has the least loss
    return front


def _tables(losses: Sequence[Sequence[float]], latencies: Sequence[Sequence[float]]) -> list[tuple[Floats, Floats]]:
    if not len(losses) or len(losses) != len(latencies):
        raise ValueError(f"{len(losses)} slots of losses and {len(latencies)} of latencies")
    tables = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in zip(losses, latencies, strict=True)]
    for slot, (loss, ms) in enumerate(tables):
        if loss.ndim != 1 or loss.shape != ms.shape or not len(loss):
            raise ValueError(f"slot {slot}: {loss.shape} losses and {ms.shape} latencies")
        if np.isnan(loss).any() or (loss == -np.inf).any() or not np.isfinite(ms).all():
            raise ValueError(f"slot {slot}: losses must be numbers or infinity, latencies finite")
    return tables
