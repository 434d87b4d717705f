"""What an attempt died of: its class, for the post-mortem in the trial's folder, and for what is done about it."""

from __future__ import annotations

import math

from nas.execution.executor import Failed, Lost, Result
from nas.execution.watch import HUNG
from nas.runs.trials import PostMortem

# how reasons begin or what they hold -> what that is called
CLASSES = {"the training diverged": "diverged", "out of memory": "out of memory", "No space left on device": "disk full"}


def sound(event: Result | Failed | Lost) -> Result | Failed | Lost:
    """The event, unless it is a result whose mAP is no number in [0, 1]: that is a failure."""
    if not isinstance(event, Result) or "fault" in event.data:
        return event
    score = event.data.get("map")
    if isinstance(score, int | float) and math.isfinite(score) and 0 <= score <= 1:
        return event
    return Failed(event.key, f"its mAP is {score}, no number from 0 to 1", event.seconds)


def class_of(event: Failed | Lost) -> str:
    """In a word or two."""
    if isinstance(event, Lost):
        return "hung" if event.reason.startswith(HUNG) else "lost"
    return next((name for sign, name in CLASSES.items() if sign in event.reason), "failed")


def disk_full(event: Failed | Lost) -> bool:
    """Whether there was no room left to write to: nothing that is tried again does better."""
    return class_of(event) == "disk full"


def post_mortem(event: Failed | Lost, attempt: int, then: str, *, final: bool) -> PostMortem:
    """What is kept of an attempt, the `attempt`-th of its trial."""
    return PostMortem(attempt, class_of(event), event.reason, event.seconds, then, final, event.detail)
