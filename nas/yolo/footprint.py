"""What one inference takes besides time: parameters, multiply-adds, the weights it reads, the memory of its activations.

The model runs once, on the CPU and on a blank image, while every operation that torch carries out is seen: what it reads and
which memory it makes. From that follows when each activation could be freed, which is after the last operation that reads
it, whether or not Python still holds it then. Their peak is what a runtime cannot do without; its own scratch space (a
convolution's unfolded image, a layout of its own) comes on top, and what it fuses or computes in place goes off.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from nas.yolo.build import flop_counter, parameters, tensors

NUMBER_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}


@dataclass(frozen=True)
class Footprint:
    """What one inference of a fused model takes.

    Attributes:
        params: parameters.
        gmacs: multiply-adds of one image, in 1e9: convolutions, products and attention, counted by torch.
        size_mb: the parameters and buffers that it reads, in 1e6 bytes: what the exported file weighs, but for its graph.
        memory_mb: peak memory of its activations, in 1e6 bytes, the image and the outputs among them.
    """

    params: int
    gmacs: float
    size_mb: float
    memory_mb: float


def footprint(
    model: nn.Module, shape: Sequence[int], precision: str = "fp32", *, attention_written_out: bool = False
) -> Footprint:
    """The footprint of an `inference_form`.

    Args:
        shape: of the input: images, 3, height, width.
        precision: of weights and activations, a key of NUMBER_BYTES.
        attention_written_out: count the matrix of all pairs of pixels, as runtimes that get attention as two products and a
            softmax keep it; torch itself never has it whole.
    """
    image = torch.zeros(*shape)
    trace = _Trace(model, image, NUMBER_BYTES[precision])
    attention = sdpa_kernel(SDPBackend.MATH) if attention_written_out else contextlib.nullcontext()
    with torch.no_grad(), attention, flop_counter() as counter, trace:
        outputs = tensors(model(image))
    return Footprint(
        params=parameters(model),
        gmacs=counter.get_total_flops() / 2 / 1e9 / shape[0],
        size_mb=trace.weights / 1e6,
        memory_mb=trace.peak(outputs) / 1e6,
    )


@dataclass
class _Life:
    """One piece of memory: its size, the operation that made it and the last one that touched it."""

    size: int
    born: int
    last: int


class _Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation. Views share the memory that they look at; an operation in place makes none.

    Args:
        model: what is run; the weights that it reads are not among its activations.
        image: its input.
        number: bytes of a floating-point number.
    """

    def __init__(self, model: nn.Module, image: torch.Tensor, number: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._number, self._step = number, 0
        self._weights = WeakIdKeyDictionary({w.untyped_storage(): w for w in (*model.parameters(), *model.buffers())})
        self._read: Any = WeakIdKeyDictionary()
        self._of: Any = WeakIdKeyDictionary()
        self._lives: list[_Life] = []
        self._touch(image)

    def __torch_dispatch__(
        self, operation: Any, _types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = operation(*args, **(kwargs or {}))
        self._step += 1
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, torch.Tensor):
                self._touch(tensor, made=False)
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._touch(tensor)
        return result

    @property
    def weights(self) -> int:
        """The bytes of all weights that were read."""
        return sum(self._read.values())

    def peak(self, outputs: Sequence[torch.Tensor]) -> int:
        """The most bytes alive at once; `outputs` are so to the end."""
        self._step += 1
        for tensor in outputs:
            self._touch(tensor)
        change: Counter[int] = Counter()
        for life in self._lives:
            change[life.born] += life.size
            change[life.last + 1] -= life.size
        most = alive = 0
        for step in sorted(change):
            alive += change[step]
            most = max(most, alive)
        return most

    def _touch(self, tensor: torch.Tensor, *, made: bool = True) -> None:
        """An operation reads or makes a tensor."""
        memory = tensor.untyped_storage()
        if memory in self._weights:
            self._read[memory] = self._bytes(tensor)
        elif memory in self._of:
            self._of[memory].last = self._step
        elif made:
            self._of[memory] = life = _Life(self._bytes(tensor), self._step, self._step)
            self._lives.append(life)

    def _bytes(self, tensor: torch.Tensor) -> int:
        """Of all memory that a tensor looks at, in the precision that is meant."""
        size = tensor.untyped_storage().nbytes()
        return size // tensor.element_size() * self._number if tensor.is_floating_point() else size
