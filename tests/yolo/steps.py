"""One step of a training, whatever the task."""

from __future__ import annotations

import torch


def train_step(model: torch.nn.Module) -> None:
    """Forward and backward of a non-square batch; every parameter before the head that can learn has a gradient."""
    model.train()
    side = int(max(32, *model.stride))
    predictions = model(torch.rand(2, 3, 2 * side, 3 * side))
    pending, total = [predictions], torch.zeros(())
    while pending:
        item = pending.pop()
        if isinstance(item, torch.Tensor):
            assert item.isfinite().all()
            total = total + item.square().sum() if item.requires_grad else total
        else:
            pending += item.values() if isinstance(item, dict) else item
    total.backward()
    stages = model.model[:-1]  # parts of some heads work in their loss alone
    assert [name for name, p in stages.named_parameters() if p.requires_grad and p.grad is None] == []
