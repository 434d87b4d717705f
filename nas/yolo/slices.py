"""Layers of a model that read other channels than they used to: their kernels are cut, or doubled, to fit.

An *index* lists, for every channel that a layer now reads, the channel that it stands for. One that stands there twice is
read as the mean of the two. So a layer with a cut input computes what it did with the other channels at zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.nn.modules import SPPF, AConv, ADown, Detect
from ultralytics.nn.modules.block import Proto26

from nas.yolo.slot import first_readers

SIDE = 16  # pixels of the map that two layers are compared on


def chosen(importance: Tensor, count: int, *, halved: bool = False) -> Tensor:
    """The index of `count` channels out of `len(importance)`: the most important in their order, or all and those again.

    Args:
        importance: of each channel there is.
        halved: choose alike within each half, for a reader that splits its input into two.
    """
    if halved:
        first, second = importance.chunk(2)
        return torch.cat([chosen(first, count // 2), chosen(second, count // 2) + len(first)])
    own = len(importance)
    # stable, so that equal importances cannot come out in another order elsewhere
    order = torch.sort(importance, descending=True, stable=True).indices.cpu()
    if count <= own:
        return order[:count].sort().values
    return torch.cat([torch.arange(own), *(order[: count - done] for done in range(own, count, own))])


def is_whole(index: Tensor, count: int) -> bool:
    """Whether an index is every channel once, in order."""
    return len(index) == count and bool((index == torch.arange(count)).all())


def splits_input(module: str) -> bool:
    """Whether the layer of a row of this name reads the two halves of its input apart."""
    return module == "ADown"


def take_equal(new: nn.Module, old: nn.Module) -> None:
    """Copy every tensor that has the same name and shape in `old`."""
    theirs, own = old.state_dict(), new.state_dict()
    same = {name: theirs[name] for name, tensor in own.items() if name in theirs and theirs[name].shape == tensor.shape}
    new.load_state_dict(same, strict=False)


@torch.no_grad()
def reread(new: nn.Module, old: nn.Module, index: Tensor, width: int) -> bool:
    """Give a layer the weights of one of the same kind that reads `width` channels; both on the CPU and in eval mode.

    Returns:
        Whether the new layer computes what the old one did with the channels at zero that `index` lacks. It may not where
        input and output are of one width: some blocks add the two, and have a stem only where they differ.
    """
    take_equal(new, old)
    if isinstance(old, SPPF):
        _pooled(new, old, index)
    elif isinstance(old, ADown):
        first, second = index.chunk(2)
        if not first.max() < width // 2 <= second.min():
            return False
        _conv(new.cv1, old.cv1, first)
        _conv(new.cv2, old.cv2, second - width // 2)
    elif isinstance(old, AConv):
        _conv(new.cv1, old.cv1, index)
    else:
        ours = dict(new.named_modules())
        for name, reader in first_readers(old, width).items():
            if name in ours and reader.groups == 1:
                ours[name].weight.copy_(_read(reader.weight, index))
    x = torch.rand(2, len(index), SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    kept = torch.zeros(2, width, SIDE, SIDE).index_copy_(1, index, x)
    found, expected = _joined(new(kept[:, index])), _joined(old(kept))
    return torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


@torch.no_grad()
def reread_head(new: Detect, old: Detect, indexes: Sequence[Tensor]) -> bool:
    """As `reread`, for the last layer, which has several inputs. The width of its branches follows that of its first input;
    of a hidden layer's channels those stay that the next layer reads most. Returns whether all of them have stayed."""
    whole = True
    take_equal(new, old)
    for name in ("cv2", "cv3", "cv4", "one2one_cv2", "one2one_cv3", "one2one_cv4"):
        ours, theirs = getattr(new, name, None), getattr(old, name, None)
        if ours is not None and theirs is not None:
            for branch, source, index in zip(ours, theirs, indexes, strict=True):
                whole &= _chain(branch, source, index)
    proto = getattr(old, "proto", None)
    if isinstance(proto, Proto26):  # adds what it makes of the other inputs to the first one
        for refine, source, index in zip(new.proto.feat_refine, proto.feat_refine, indexes[1:], strict=True):
            _conv(refine, source, index, indexes[0])
        _conv(new.proto.feat_fuse, proto.feat_fuse, indexes[0])
        _conv(new.proto.semseg[0], proto.semseg[0], indexes[0])
    elif proto is not None:
        _conv(new.proto.cv1, proto.cv1, indexes[0])
    return whole


def _joined(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output if isinstance(output, Tensor) else torch.cat([part.flatten(1) for part in output], 1)


def _pooled(new: SPPF, old: SPPF, index: Tensor) -> None:
    """SPPF's hidden width is half its input's; its second convolution reads the hidden channels and pooled ones of them."""
    step, groups = old.cv1.conv.out_channels, old.n + 1
    hidden = chosen(_columns(old.cv2.conv).view(groups, step).sum(0), new.cv1.conv.out_channels)
    _conv(new.cv1, old.cv1, index, hidden)
    _conv(new.cv2, old.cv2, torch.cat([hidden + group * step for group in range(groups)]))


def _chain(new: nn.Module, old: nn.Module, index: Tensor) -> bool:
    """A branch: convolutions one after the other, some of them depthwise. Returns whether none has become narrower."""
    whole, silent = True, torch.zeros(())
    pairs = [(ours, theirs) for (_, ours), (_, theirs) in zip(_convs(new), _convs(old), strict=True)]
    for place, (ours, theirs) in enumerate(pairs):
        filters, source = _filter(ours), _filter(theirs)
        if source.groups > 1:
            _conv(ours, theirs, None, index)
            # of a channel at zero its norm makes a constant, which the next layer still reads
            silent = theirs.act(theirs.bn(torch.zeros(1, source.out_channels, 1, 1))).flatten()
            silent[index] = 0
            continue
        rows = torch.arange(source.out_channels)
        if filters.out_channels != source.out_channels:
            reader = next(_filter(later) for _, later in pairs[place + 1 :] if _filter(later).groups == 1)
            rows = chosen(_columns(reader), filters.out_channels)
            whole &= filters.out_channels > source.out_channels
        _conv(ours, theirs, index, rows)
        if silent.any():
            ours.bn.running_mean -= (source.weight.sum((2, 3)) @ silent)[rows]
            silent = torch.zeros(())
        index = rows
    return whole


def _convs(branch: nn.Module) -> list[tuple[str, Any]]:
    """The convolutions of a branch in order, each with its norm where it has one (an Ultralytics `Conv`)."""
    found: list[tuple[str, Any]] = []
    for name, child in branch.named_children():
        found += [(name, child)] if hasattr(child, "conv") or isinstance(child, nn.Conv2d) else _convs(child)
    return found


def _filter(conv: Any) -> nn.Conv2d:
    found: nn.Conv2d = getattr(conv, "conv", conv)
    return found


def _conv(new: Any, old: Any, columns: Tensor | None, rows: Tensor | None = None) -> None:
    """A convolution with its norm: input channels by `columns`, output channels by `rows`, all of them where None."""
    ours, theirs = _filter(new), _filter(old)
    weight = theirs.weight if columns is None else _read(theirs.weight, columns)
    pairs = [(ours.weight, weight)]
    if theirs.bias is not None and ours.bias is not None:
        pairs.append((ours.bias, theirs.bias))
    if hasattr(old, "bn"):
        pairs += [(getattr(new.bn, n), getattr(old.bn, n)) for n in ("weight", "bias", "running_mean", "running_var")]
        new.bn.num_batches_tracked.copy_(old.bn.num_batches_tracked)
    for own, source in pairs:
        own.copy_(source if rows is None else source[rows])


def _read(weight: Tensor, index: Tensor) -> Tensor:
    """Kernels (rows, columns, …) that read by an index; channels that stand for one share its weight."""
    shares = torch.bincount(index, minlength=weight.shape[1])[index]
    return weight[:, index] / shares.view(1, -1, *[1] * (weight.ndim - 2))


def _columns(conv: nn.Conv2d) -> Tensor:
    """How much a convolution reads of each of its input channels: the L1 norm of the kernels."""
    return conv.weight.detach().abs().sum((0, 2, 3))
