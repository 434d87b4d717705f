"""What softmax attention on a large map costs in memory, said before anything is built."""

from __future__ import annotations

import math
from collections.abc import Iterator

from nas.blocks.catalog import CATALOG
from nas.space.architecture import Placement
from nas.space.search_space import SearchSpace, SlotChoices

LARGE_BYTES = 2**30
FLOAT_BYTES = 4


def attention_notes(space: SearchSpace, imgsz: int) -> list[str]:
    """A line for each slot and block whose attention weights may take over 1 GiB for one image of `imgsz` pixels.

    The blocks attend through PyTorch's `scaled_dot_product_attention`, which need not keep the weights; ONNX Runtime and
    other runtimes do keep them, and so does training where PyTorch has no such kernel for the device.
    """
    return [note for choices in space.slots for note in _slot_notes(choices, imgsz)]


def _slot_notes(choices: SlotChoices, imgsz: int) -> Iterator[str]:
    slot = choices.slot
    pixels = math.ceil(imgsz / slot.row.stride) ** 2
    most: dict[str, int] = {}
    for placement in choices.options:
        if placement is not None and placement.block in CATALOG:
            most[placement.block] = max(most.get(placement.block, 0), FLOAT_BYTES * _scores(placement, pixels))
    for block, size in most.items():
        if size > LARGE_BYTES:
            yield (
                f"{slot.name}: {block} attends over a map of {pixels:,} pixels at {imgsz} px: up to {size / 2**30:.1f} GiB "
                "of attention weights per image where a runtime keeps them (ONNX Runtime does); place it deeper, raise "
                "kv_stride or lower window, or forbid it above an imgsz"
            )


def _scores(placement: Placement, pixels: int) -> int:
    scores = CATALOG[placement.block].scores
    return 0 if scores is None else scores(pixels, placement.heads or 1, dict(placement.knobs))
