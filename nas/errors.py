"""Errors for the person who reads them: one line of what is wrong and where, one of what to do, and an exit code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class NasError(Exception):
    """A failure that `nas` expects and explains. The command line prints it without a traceback.

    Args:
        message: what is wrong and where, in one line.
        hint: what to do about it, in one line (optional).
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class InputError(NasError):
    """What the user gave cannot be used: a flag, a YAML, a dataset, a run folder. Exit code 2."""

    exit_code = 2


class StartError(InputError):
    """What proxies were to start from, a checkpoint or the images, cannot be used; nothing was trained."""


class InfeasibleError(NasError):
    """No architecture of the space meets the limits. Exit code 3."""

    exit_code = 3


class StoppedError(NasError):
    """The search stopped itself because going on would waste the budget. Exit code 4."""

    exit_code = 4


class UnstableError(NasError):
    """A latency that cannot be relied on: the machine was busy or slowed itself down. Exit code 4."""

    exit_code = 4


class UnreachableError(NasError):
    """A device, runtime or cluster that was asked for is not there. Exit code 5."""

    exit_code = 5


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """The nearest known word as a hint ("did you mean 'repvit'?"), or the whole list where nothing is near."""
    words = sorted(map(str, known))
    near = difflib.get_close_matches(word, words, n=1, cutoff=0.6) or difflib.get_close_matches(
        word.lower(), [w for w in words if w == w.lower()], n=1, cutoff=0.6
    )
    if near:
        return f"did you mean '{near[0]}'?"
    return f"known: {', '.join(words)}" if words else None
