"""One training on several devices: a process for each, which makes its part of every batch.

A step equals that of one device up to rounding. Losses divide by sums over the batch (of Ultralytics' target scores, of its
foreground), so each process computes the loss of the whole batch: it gathers the predictions of the others, and its own alone
carry gradients. The gradients of all are then added up. Batch norms see the whole batch (`nas.training.batch_norm`). So all
hold equal weights at any time, and whatever one of them decides the others decide alike.

NCCL carries it between GPUs, gloo between CPUs; the code is the same. Processes meet in a file, and talk over loopback only.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from itertools import accumulate

import torch
import torch.distributed as dist
from torch import Tensor, nn

PATIENCE = timedelta(days=7)  # whoever waits for longer than others are alive is ended from outside


class Peers:
    """Those who train together, as one of them sees it; by default one that is alone.

    Args:
        rank: which one this is, from 0.
        count: how many there are.
        device: of this one.
    """

    def __init__(self, rank: int = 0, count: int = 1, device: torch.device | None = None) -> None:
        self.rank, self.count = rank, count
        self._device = device or torch.device("cpu")

    @classmethod
    def meet(cls, file: str, rank: int, count: int, device: torch.device) -> Peers:
        """Meet the others, once in the life of a process. Raises RuntimeError where that fails."""
        if not dist.is_initialized():
            nccl = device.type == "cuda"
            dist.init_process_group(
                "nccl" if nccl else "gloo",
                init_method=f"file://{file}",
                rank=rank,
                world_size=count,
                timeout=PATIENCE,
                device_id=device if nccl else None,
            )
        return cls(rank, count, device)

    @property
    def first(self) -> bool:
        """Whether this is the one who writes, reports and is asked."""
        return self.rank == 0

    def part(self, total: int) -> slice:
        """Which of so many images are this one's: parts are contiguous, and differ by one image at most."""
        ends = [0, *accumulate(self._sizes(total))]
        return slice(ends[self.rank], ends[self.rank + 1])

    def whole(self, own: Tensor, total: int) -> Tensor:
        """A batch of `total` images put together from everybody's part, (part, …) to (total, …); gradients reach one's own."""
        return own if self.count == 1 else self._gathered(own, self._sizes(total))

    def joined(self, rows: Tensor) -> Tensor:
        """Everybody's rows, in the order of ranks; any number from each."""
        if self.count == 1:
            return rows
        return self._gathered(rows, self.each(torch.tensor(len(rows))).tolist())

    def each(self, value: Tensor) -> Tensor:
        """Everybody's tensor of one shape, (…) to (peers, …)."""
        return self._gathered(value[None], [1] * self.count)

    def told(self, value: int) -> int:
        """What the first one says."""
        if self.count == 1:
            return value
        word = torch.tensor([value], device=self._device)
        dist.broadcast(word, 0)
        return int(word.item())

    def total(self, values: Tensor) -> Tensor:
        """The sum over everybody, in place."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def add_gradients(self, weights: Sequence[nn.Parameter]) -> None:
        """The gradient of each weight becomes the sum over everybody; none stays where nobody has one."""
        if self.count == 1:
            return
        parts = [torch.zeros_like(w).flatten() if w.grad is None else w.grad.flatten() for w in weights]
        there = torch.tensor([float(w.grad is not None) for w in weights], device=self._device)
        added = self.total(torch.cat([*parts, there])).split([*map(len, parts), len(weights)])  # type: ignore[no-untyped-call]
        missing = any(w.grad is None for w in weights)
        somebodys = added[-1].tolist() if missing else [1.0] * len(weights)
        for weight, gradient, known in zip(weights, added, somebodys, strict=False):
            if weight.grad is not None:
                weight.grad.copy_(gradient.view_as(weight))
            elif known:
                weight.grad = gradient.view_as(weight).clone()

    def _sizes(self, total: int) -> list[int]:
        return [total // self.count + (rank < total % self.count) for rank in range(self.count)]

    def _gathered(self, own: Tensor, sizes: Sequence[int]) -> Tensor:
        """Parts of these lengths, this one's among them, one after the other."""
        sent = torch.zeros(max(sizes), *own.shape[1:], dtype=own.dtype, device=self._device)
        sent[: len(own)] = own.detach()
        parts = [torch.empty_like(sent) for _ in sizes]
        dist.all_gather(parts, sent)
        found = [part[:size].to(own.device) for part, size in zip(parts, sizes, strict=True)]
        found[self.rank] = own
        return torch.cat(found)
