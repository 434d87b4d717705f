"""Weights of an Ultralytics checkpoint for the layers that an architecture kept.

Nothing is downloaded, and a checkpoint runs no code: it is read as data, and only classes of Ultralytics, torch and this
package come alive in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from functools import lru_cache
from pathlib import Path

from torch import nn
from ultralytics.nn.tasks import BaseModel, torch_safe_load
from ultralytics.utils.torch_utils import intersect_dicts

from nas.errors import InputError
from nas.space.skeleton import TASKS
from nas.yolo.stage import Stage


@lru_cache(maxsize=1)
def read_weights(path: Path) -> BaseModel:
    """The model in a checkpoint, in float32 on the CPU; the averaged weights where it has both.

    Raises:
        InputError: not an Ultralytics checkpoint, one that holds other classes, or one of a fused model.
    """
    cure = "give a .pt file of Ultralytics: one that it published, or the best.pt of a training"
    try:
        # with a path, so that Ultralytics takes it for no name of its own that it could fetch
        checkpoint, _ = torch_safe_load(path.absolute(), safe_only=True)
        model = checkpoint.get("ema") or checkpoint["model"]
    except InputError:
        raise  # a user's block whose file was not named
    except Exception as error:  # whatever zip, pickle or torch make of a file that is none
        if "references types outside" in str(error):
            what = "holds classes that are not of Ultralytics, torch or nas, so it is not opened"
        else:
            what = f"not a checkpoint of Ultralytics, or damaged ({type(error).__name__})"
        raise InputError(f"{path}: {what}", cure) from error
    if not isinstance(model, BaseModel):
        raise InputError(f"{path}: holds a {type(model).__name__}, not a model of Ultralytics", cure)
    if model.is_fused():
        raise InputError(f"{path}: a model fused for inference, which cannot train", "give the checkpoint it was made from")
    return model.float()


def transfer(model: BaseModel, source: BaseModel) -> tuple[int, int]:
    """Put the weights of `source` into a model, by name where shapes are equal, as Ultralytics' own `load` does.

    A block in a slot takes weights from nothing but the same block of the same shape. Where the numbers of classes differ,
    the head's class branch takes the width that it has in `source`, as it does in Ultralytics' trainings.

    Returns:
        How many of how many tensors have come from `source`.
    """
    known = deepcopy(source)
    for index, layer in enumerate(model.model):
        if isinstance(layer, Stage) and index < len(known.model) and not _same(layer, known.model[index]):
            known.model[index] = nn.Identity()
    model.load(known, verbose=False)
    own = model.state_dict()
    return len(intersect_dicts(known.state_dict(), own)), len(own)


def other_classes(source: BaseModel, names: Sequence[str]) -> str | None:
    """That a checkpoint was trained on other classes than these, in words; None where it may have been trained on these."""
    nc = int(source.model[-1].nc)
    if nc != len(names):
        return f"it knows {nc} classes, the data has {len(names)}"
    known = [str(source.names[number]) for number in range(nc)] if len(getattr(source, "names", ())) == nc else []
    if known and known != [str(number) for number in range(nc)] and known != list(names):
        return f"it knows other classes ({', '.join(known[:3])}{', …' if nc > 3 else ''})"
    return None


def check(path: Path, skeleton: BaseModel) -> tuple[int, int]:
    """What `transfer` would bring to a skeleton, as it returns it; the skeleton has the weights afterwards.

    Raises:
        InputError: see `read_weights`; a checkpoint of another task, or of a model whose backbone has nothing in common.
    """
    source = read_weights(path)
    theirs, ours = (TASKS.get(type(each.model[-1]).__name__, "another task") for each in (source, skeleton))
    if theirs != ours:
        raise InputError(f"{path}: a checkpoint for {theirs}, but the skeleton is for {ours}", f"give a checkpoint for {ours}")
    backbone = range(len(skeleton.yaml["backbone"]))
    own, known = ({name: t for name, t in each.state_dict().items() if t.ndim > 1} for each in (skeleton, source))
    if not any(int(name.split(".")[1]) in backbone for name in intersect_dicts(known, own)):
        raise InputError(f"{path}: fits no layer of the skeleton's backbone", "give a checkpoint of the skeleton, of its scale")
    return transfer(skeleton, source)


def _same(one: Stage, other: nn.Module) -> bool:
    """Whether two layers are the same block of the same shape."""
    if not isinstance(other, Stage) or type(one.block) is not type(other.block):
        return False
    shapes, others = ({name: t.shape for name, t in each.state_dict().items()} for each in (one, other))
    return shapes == others
