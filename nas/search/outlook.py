"""What an accuracy model expects of more trainings, as numbers to show."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Outlook:
    """How well the model knows what it was not shown, and what it expects.

    Attributes:
        error: by how much it is off on average, leaving each result out in turn, as a share of the ceiling (of mAP: in mAP).
        gain: by which share the hypervolume is expected to rise.
    """

    error: float
    gain: float

    @property
    def rise(self) -> str:
        """The gain in words."""
        return f"+{self.gain:.1%} hypervolume" if self.gain < 1 else f"{1 + self.gain:.3g} times the hypervolume"
