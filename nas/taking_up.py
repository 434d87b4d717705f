"""A run is taken up again: its trials under the limits and the table of now, which may have changed since."""

from __future__ import annotations

from collections.abc import Iterator

from nas.limits import Limits
from nas.pricing import Prices
from nas.runs.store import Entry, Store


def taken_up(store: Store, pricing: Prices, limits: Limits) -> Iterator[tuple[Entry, str | None]]:
    """The trials that were queued or running and wait again, with the limit that each of them breaks now, if any.

    What waits or has ended gets the price that is known for it now. The baseline is trained in any case.
    """
    waiting = [entry.number for entry in store.reopen()]
    _reprice(store, pricing, limits)
    for entry in map(store.__getitem__, waiting):
        bound = entry.price is not None and not entry.architecture.is_skeleton
        yield entry, pricing.broken(entry.price or {}) if bound else None


def open_again(store: Store, pricing: Prices) -> set[int]:
    """The trials that were rejected over a limit that is higher by now: they may be proposed again."""
    slow = [e for e in store.entries if e.state == "rejected" and e.price]
    now = pricing.renewed([(e.architecture, e.price or {}) for e in slow])
    return {e.number for e, price in zip(slow, now, strict=True) if pricing.broken(price) is None}


def _reprice(store: Store, pricing: Prices, limits: Limits) -> None:
    priced = [e for e in store.entries if e.state in {"queued", "paused", "done"} and e.price]
    now = pricing.renewed([(e.architecture, e.price or {}) for e in priced])
    for entry, price in zip(priced, now, strict=True):
        if price != entry.price:
            store.reprice(entry.number, price, limits.excess(price))
