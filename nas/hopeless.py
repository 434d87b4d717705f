"""When going on would only waste the budget: trial after trial fails alike, or nothing tells architectures apart."""

from __future__ import annotations

from pathlib import Path

from nas.errors import StoppedError
from nas.execution.work import UNSTABLE
from nas.pricing import NOISY_HINT
from nas.runs.store import Store

SAME_FAILURES = 8


def all_fail_alike(store: Store, reason: str, folder: Path) -> StoppedError | None:
    """Why to stop after a failure with that reason, if the last eight trials that ended all failed with it.

    Args:
        folder: where the post-mortems lie.
    """
    ended = [e for e in store.entries if e.state in {"done", "failed"} or (e.reason or "").startswith("invalid")]
    if len(ended) < SAME_FAILURES or any(entry.reason != reason for entry in ended[-SAME_FAILURES:]):
        return None
    hint = NOISY_HINT if UNSTABLE in reason else f"see {folder}"
    return StoppedError(f"{SAME_FAILURES} trials in a row failed alike: {reason}", hint)


def nothing_is_told_apart(store: Store) -> StoppedError | None:
    """Why to stop once eight trials have passed the lowest rung, if all have mAP 0, or any other that is equal to the last
    digit: architectures that differ do not score so unless something is wrong."""
    if store.tally.ranked < SAME_FAILURES:
        return None
    scores = (float(entry.results[0]["map"]) for entry in store.entries if entry.results)
    first = next(scores)
    if any(score != first for score in scores):
        return None
    if first == 0:
        hint = "train longer or larger: raise --epochs or --imgsz; check that the labels belong to the images"
    else:
        hint = "check that --set lr0 is not so small that nothing changes, and that images and labels of the data differ"
    return StoppedError(f"the first {store.tally.ranked} trials all have mAP {first:g}: nothing can be ranked", hint)
