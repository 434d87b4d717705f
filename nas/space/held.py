"""What very many architectures of one skeleton hold, as numbers: 100,000 of them without an object for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nas.space.architecture import Placement


@dataclass(frozen=True)
class Held:
    """Architectures as what they hold.

    Args:
        placements: per layer those that may stand there, after None for the skeleton's own row.
        numbers: which of them stands in each layer, (architectures, layers).
    """

    placements: Sequence[Sequence[Placement | None]]
    numbers: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.numbers)
