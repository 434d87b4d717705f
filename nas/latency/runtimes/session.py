"""What every runtime offers: a model in inference form made ready, run once, and looked into row by row."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from nas.latency.target import Target

Array = npt.NDArray[np.float32]


class Session(ABC):
    """A model made ready on a target.

    Args:
        model: `nas.yolo.build.inference_form` of an architecture; it may be changed.
        target: what to run it with, its image size known.

    Raises:
        UnreachableError: the target's device, runtime or precision is not there.
    """

    @abstractmethod
    def __init__(self, model: nn.Module, target: Target) -> None: ...

    @abstractmethod
    def infer(self, images: Array) -> list[Array]:
        """Predictions for images (batch, 3, height, width) in [0, 1], for segmentation with the mask prototypes: what the
        timed run computes."""

    @abstractmethod
    def run(self) -> None:
        """One complete inference of a fixed input that is ready where the target wants it."""

    @abstractmethod
    def rows(self) -> dict[int, float] | None:
        """Milliseconds in each row of the model YAML that takes any, by the runtime's own profiler; None where it has none.

        Profiling costs time itself: the sum may be above the latency, and rows count in proportion.
        """


def fixed_image(target: Target) -> torch.Tensor:
    """The input that is timed: (batch, 3, height, width) in [0, 1]."""
    return torch.rand(target.batch, 3, target.height, target.width, generator=torch.Generator().manual_seed(0))
