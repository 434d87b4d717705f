"""`Stage`: the thin adapter that lets Ultralytics fuse and pickle our blocks, which themselves know only torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any, Self

import torch
from torch import Tensor, nn
from ultralytics.nn.modules.block import RepVGGDW

from nas.blocks.catalog import ROWS
from nas.blocks.register import file_of
from nas.errors import InputError, NasError, did_you_mean
from nas.user import not_loaded

_KEPT = ("i", "f", "type", "np", "training")  # what Ultralytics hangs on a layer, and the mode


class Stage(RepVGGDW):  # type: ignore[misc]
    """A block in a YOLO slot: (N, c1, H, W) to (N, c2, H, W).

    Ultralytics' `model.fuse()` calls `fuse()` of every `RepVGGDW` and then uses its `forward_fuse`; nothing else of that
    class is inherited. `is_fused()` asks whether `conv1` is still there.

    In a checkpoint a stage is its arguments and its tensors (see `rebuilt`); no class of a block is named there. So
    a file loads with `weights_only` too, and the classes may move.

    Args:
        row: the block's name in a model YAML, a key of `nas.blocks.catalog.ROWS`.
        c1, c2, depth: input channels, output channels, number of blocks.
        options: `heads` and the block's knobs.
    """

    def __init__(self, row: str, c1: int, c2: int, depth: int, **options: object) -> None:
        nn.Module.__init__(self)
        self.block = ROWS[row].load()(c1, c2, depth, **options)
        self.made_of = {"row": row, "c1": c1, "c2": c2, "depth": depth, **options}
        self.fused = False

    @property
    def conv1(self) -> nn.Module:
        """What Ultralytics looks for to tell whether a fusion is still owed."""
        if self.fused:
            raise AttributeError("conv1")
        return self.block

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)  # type: ignore[no-any-return]

    forward_fuse = forward

    @torch.no_grad()
    def fuse(self) -> None:
        """Turn the block into its inference form, once; a user's block without `fuse` has no other form."""
        if not self.fused:
            fuse = getattr(self.block, "fuse", None)
            if callable(fuse):
                fuse()
            self.fused = True

    def __reduce__(self) -> tuple[Callable[..., Stage], tuple[Any, ...]]:
        import _yolo_placement_search  # noqa: PLC0415  (it imports this module)

        kept = {name: getattr(self, name) for name in _KEPT if hasattr(self, name)}
        spec = ROWS[str(self.made_of["row"])]
        file = file_of(spec) if spec.digest else ""
        return _yolo_placement_search.restore, (self.made_of, self.fused, dict(self.state_dict()), kept, file)

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        twin = type(self).__new__(type(self))  # as every module copies; `__reduce__` is for files
        memo[id(self)] = twin
        twin.__dict__.update(deepcopy(self.__dict__, memo))
        return twin


def rebuilt(
    made_of: Mapping[str, Any], fused: bool, tensors: Mapping[str, Tensor], kept: Mapping[str, Any], file: str = ""
) -> Stage:
    """A stage of a checkpoint.

    Args:
        file: the name of the user's file that its block stands in; empty for one of ours.

    Raises:
        InputError: its block is not registered, or is no longer what it was.
    """
    row = made_of["row"]
    if row not in ROWS and file:
        raise not_loaded(file)
    if row not in ROWS:
        raise InputError(f"the checkpoint holds a block '{row}', which is not known here", did_you_mean(row, ROWS))
    with torch.random.fork_rng(devices=[]):  # loading draws nothing that a later draw would miss
        try:
            stage = Stage(**made_of)
            if fused:
                stage.fuse()
            stage.load_state_dict(dict(tensors), assign=True)
        except NasError:
            raise
        except Exception as error:  # a user's block may raise what it likes
            problem = f"{type(error).__name__}: {error}".splitlines()[0]
            cure = f"load the {file} that it was made with" if file else "use the nas that wrote it"
            raise InputError(f"the checkpoint's block '{row}' cannot be rebuilt: {problem}", cure) from error
    for name in _KEPT:
        if name in kept:
            setattr(stage, name, kept[name])
    stage.train(stage.training)
    return stage
