"""One layer of a model on its own, and what a model's layers read and write."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.utils.torch_utils import initialize_weights

from nas.blocks.common import BlockBase, ConvNorm
from nas.yolo.parser import parse_model
from nas.yolo.stage import Stage


def build_layer(model_yaml: Mapping[str, Any], row: list[Any] | tuple[Any, ...], c1: int) -> nn.Module:
    """The layer that a row makes in a model, (N, c1, H, W) in, with fresh weights from torch's global generator.

    Args:
        model_yaml: a resolved YAML of the model, for its `legacy`, `activation` and `nc`.
        row: `[from, repeats, module, args]`; `from` does not matter.
        c1: input channels.
    """
    alone = {**model_yaml, "backbone": [[-1, *row[1:3], list(row[3])]], "head": []}
    layers, _ = parse_model(alone, c1, verbose=False)
    layer: nn.Module = layers[0]
    initialize_weights(layer)  # as every whole model does: norms get an epsilon of their own
    return layer


def tap(model: Any, images: Tensor, layers: Collection[int]) -> dict[int, tuple[Any, Tensor]]:
    """Input and output of some layers for a batch of images; the model runs no further than the last of them."""
    outputs: list[Any] = []
    found: dict[int, tuple[Any, Tensor]] = {}
    x: Any = images
    for layer in model.model:
        if layer.f != -1:
            x = outputs[layer.f] if isinstance(layer.f, int) else [x if f == -1 else outputs[f] for f in layer.f]
        before, x = x, layer(x)
        outputs.append(x if layer.i in model.save else None)
        if layer.i in layers:
            found[layer.i] = (before, x)
            if len(found) == len(layers):
                break
    return found


@torch.no_grad()
def output_channels(model: Any) -> list[int]:
    """Of each layer the channels of the map that it writes; 0 where that is not one map."""
    device = next(model.parameters()).device
    largest = int(model.stride.max())
    found = [0] * len(model.model)

    def note(layer: Any, _: Any, output: Any) -> None:
        found[layer.i] = output.shape[1] if isinstance(output, Tensor) and output.ndim == 4 else 0

    hooks = [layer.register_forward_hook(note) for layer in model.model]
    mode = model.training
    try:
        model.eval()(torch.zeros(1, 3, 2 * largest, 2 * largest, device=device))
    finally:
        model.train(mode)
        for hook in hooks:
            hook.remove()
    return found


def stem_of(layer: nn.Module) -> ConvNorm | None:
    """The 1 x 1 convolution, norm and SiLU that a block of ours begins with; None where a layer has none."""
    block = layer.block if isinstance(layer, Stage) else None
    stem = block.stem if isinstance(block, BlockBase) else None
    return stem if isinstance(stem, ConvNorm) else None


@torch.no_grad()
def before_activation(layer: nn.Module, x: Tensor, channels: int) -> Tensor | None:
    """What a layer in eval mode writes before its last activation: its last batch norm of that many channels."""
    found: list[Tensor] = []

    def note(_: nn.Module, __: Any, output: Tensor) -> None:
        if output.shape[1] == channels:
            found[:] = [output.clone()]  # the activation behind it may work in place

    hooks = [module.register_forward_hook(note) for module in layer.modules() if isinstance(module, nn.BatchNorm2d)]
    try:
        layer(x)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


def read_from(model: Any, first: int, images: Tensor) -> dict[int, Any]:
    """What the layers from `first` on read of those before, by layer; the images as those of layer -1."""
    wanted = {source for layer in model.model[first:] for source in _sources(layer) if source < first}
    outputs = _run(model.model[:first], model.save, {-1: images})
    return {source: outputs[source] for source in wanted}


def predictions_with_fixed_norms(model: Any, images: Tensor) -> Any:
    """What the loss reads, computed with the running statistics: the head's training output of a model in eval mode."""
    return predictions_of(model.model, model.save, {-1: images})


def predictions_of(layers: Sequence[Any], save: Collection[int], known: Mapping[int, Any]) -> Any:
    """Likewise of a model's last layers, given what they read of those before (see `read_from`); `save` is the model's."""
    head = layers[-1]
    marked = [head, *([head.proto] if hasattr(head, "proto") else [])]
    for layer in layers:
        layer.eval()
    for module in marked:
        module.training = True
    try:
        return _run(layers, save, known)[head.i]
    finally:
        for module in marked:
            module.training = False


def _run(layers: Iterable[Any], save: Collection[int], known: Mapping[int, Any]) -> dict[int, Any]:
    """Outputs by layer, of those that another one than the next reads, and of the last."""
    outputs = dict(known)
    for layer in layers:
        read = [outputs[source] for source in _sources(layer)]
        outputs[layer.i] = layer(read[0] if isinstance(layer.f, int) else read)
        if layer.i - 1 not in save:
            outputs.pop(layer.i - 1, None)
    return outputs


def _sources(layer: Any) -> list[int]:
    """The layers that a layer reads."""
    return [layer.i + source if source < 0 else source for source in ([layer.f] if isinstance(layer.f, int) else layer.f)]


def first_readers(layer: nn.Module, c1: int) -> dict[str, nn.Conv2d]:
    """The convolutions of a layer, by name, that read the layer's own input, all channels of it."""
    found: dict[str, nn.Conv2d] = {}
    device = next(layer.parameters()).device
    image = torch.zeros(1, c1, 16, 16, device=device)

    def note(name: str, conv: nn.Conv2d, inputs: tuple[Any, ...]) -> None:
        if inputs[0] is image:
            found[name] = conv

    hooks = [
        module.register_forward_pre_hook(lambda conv, inputs, name=name: note(name, conv, inputs))
        for name, module in layer.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    mode = layer.training
    try:
        with torch.no_grad():
            layer.eval()(image)
    finally:
        layer.train(mode)
        for hook in hooks:
            hook.remove()
    return found
