"""Batch statistics of an assembled network, measured anew: its layers see what the teacher's never saw."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def settle_norms(model: Any, images: Iterable[Tensor]) -> None:
    """Replace the running statistics of all batch norms by those of some batches, each counting alike; the model is left in
    eval mode. Without a batch nothing changes."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.momentum = None  # a plain mean of all batches
        norm.train()
    try:
        for number, batch in enumerate(images):
            if number == 0:
                for norm in norms:
                    norm.reset_running_stats()
            model(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        model.eval()
