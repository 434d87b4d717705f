"""Batch norms that see the batch of all peers, so that a batch divided among devices is normalised as on one.

With each device's own part alone, the batch norms of 8 images on 4 GPUs would see 2: another training, whose mAP could not be
compared with that of a search on fewer GPUs. torch's SyncBatchNorm is for GPUs only; this is the same on any device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nas.training.peers import Peers

_BatchNorm = nn.modules.batchnorm._BatchNorm


@contextmanager
def together(model: nn.Module, peers: Peers) -> Iterator[None]:
    """Let the batch norms of a model see everybody's part of a batch, in training; the model itself stays as it is."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)] if peers.count > 1 else []
    for norm in norms:
        norm.forward = partial(_forward, norm, peers)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def _forward(norm: _BatchNorm, peers: Peers, x: Tensor) -> Tensor:
    if not norm.training:
        return type(norm).forward(norm, x)
    normalised, mean, variance, count = _Normalised.apply(x, norm.weight, norm.bias, norm.eps, peers)
    if norm.running_mean is not None and norm.running_var is not None:
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
        share = norm.momentum if norm.momentum is not None else 1 / float(norm.num_batches_tracked or 1)
        with torch.no_grad():
            norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
            norm.running_var.lerp_((variance * (count / (count - 1).clamp_(min=1))).to(norm.running_var.dtype), share)
    result: Tensor = normalised
    return result


class _Normalised(torch.autograd.Function):
    """x (B, C, …) less the mean of its channel over everybody, divided by its deviation, times weight (C,), plus bias (C,)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, peers: Peers
    ) -> tuple[Tensor, ...]:
        axes = [axis for axis in range(x.dim()) if axis != 1]
        variance, mean = torch.var_mean(x.float() if x.dtype.itemsize < 4 else x, axes, correction=0)
        own = torch.stack([mean, variance, torch.full_like(mean, x.numel() // x.shape[1])])
        means, variances, counts = peers.each(own).unbind(1)  # (peers, C) each
        count = counts.sum(0)
        mean = (means * counts).sum(0) / count
        variance = ((variances + (means - mean).square()) * counts).sum(0) / count
        ctx.save_for_backward(x, weight, mean, variance, count)
        ctx.eps, ctx.peers = eps, peers
        ctx.mark_non_differentiable(mean, variance, count)
        return torch.batch_norm(x, weight, bias, mean, variance, False, 0.0, eps, False), mean, variance, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance, count = ctx.saved_tensors
        # sums over one's own part, (C,): of the gradient, and of the gradient times what was normalised
        axes, shape = [axis for axis in range(x.dim()) if axis != 1], [1, -1, *[1] * (x.dim() - 2)]
        gradient = gradients[0].to(mean.dtype)
        centred = x.to(mean.dtype) - mean.view(shape)
        scale = torch.rsqrt(variance + ctx.eps)
        plain, along = gradient.sum(axes), (gradient * centred).sum(axes) * scale
        of_all = ctx.peers.total(torch.cat([plain, along])) / count.repeat(2)
        mean_plain, mean_along = (mean_of.view(shape) for mean_of in of_all.chunk(2))
        factor = scale if weight is None else scale * weight
        found = centred.mul_(scale.view(shape)).mul_(-mean_along).add_(gradient).sub_(mean_plain).mul_(factor.view(shape))
        return found.to(x.dtype), None if weight is None else along, None if weight is None else plain, None, None
