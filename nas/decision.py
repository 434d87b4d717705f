"""Whether a search imitates, where nobody has said it: found out once, before its first trial."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from nas.pricing import Pricing
from nas.review.progress import Status
from nas.runs.ledger import Ledger
from nas.teaching import Teaching
from nas.under_way import HEARTBEAT_SECONDS


def imitates(teaching: Teaching, pricing: Pricing, ledger: Ledger, show: Callable[[Callable[[], Status]], None]) -> bool:
    """Whether the budget pays for a teacher, see `Teaching.pays`; latency comes first here too.

    Args:
        show: called with what tells how the search stands, at least twice a second.

    Raises:
        InfeasibleError: no probed architecture meets the limits; nothing was trained.
        StartError, StoppedError: see `Teaching.run`.
    """
    saved = time.monotonic()

    def look(phase: str) -> None:
        nonlocal saved
        show(partial(_status, phase, ledger))
        if time.monotonic() - saved >= HEARTBEAT_SECONDS:  # kill -9 takes no leave
            saved = time.monotonic()
            pricing.save()
            ledger.save()

    ledger.begin()
    try:
        pricing.probe(partial(look, "probe"))
        return teaching.pays(look)
    finally:
        pricing.save()
        ledger.save()


def _status(phase: str, ledger: Ledger) -> Status:
    """How a search stands that has no trial yet."""
    share = min(1.0, ledger.used(()) / ledger.budget.amount)
    return Status(phase, {}, {}, ledger.budget.text, share, ledger.wall_seconds, None, None)
