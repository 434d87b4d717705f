"""Which candidates need no evaluation, by a cheap score that has been compared with evaluations: a rule with a bounded error.

The score foretells accuracy by a straight line through what was evaluated. Nobody knows how its errors are distributed; but if
the next candidate is like those before it, the chance that it lies farther above the line than all `n` of them is at most
1 / (n + 1) (split conformal prediction: Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005; exact where
the line is known beforehand). So a candidate whose line plus the largest error so far is still no better than a known
architecture that is certainly as fast is dominated, but for that chance.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LEAST = 19  # evaluations: one in twenty may be wrong

Floats = NDArray[np.float64]


def best_case(scores: Floats, accuracies: Floats, candidates: Floats) -> Floats | None:
    """The accuracy that each candidate does not exceed, but for a chance of 1 / (n + 1); None as long as n is below 19.

    Args:
        scores, accuracies: of what was evaluated, (n,); the higher the score, the lower the accuracy.
        candidates: their scores.
    """
    if len(scores) < LEAST:
        return None
    centred = scores - scores.mean()
    slope = min(0.0, float(centred @ accuracies) / max(float(centred @ centred), 1e-300))
    line = accuracies.mean() + slope * centred
    return np.asarray(accuracies.mean() + slope * (candidates - scores.mean()) + (accuracies - line).max())
