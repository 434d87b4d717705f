"""Zero-cost scores: how well a model will train, guessed from its fresh weights and one small batch.

Each is a plain number, the higher the better, and means something beside the same number of another architecture only,
taken with the same batch. None is a measurement of accuracy: what they are worth on a space is for a comparison with
real trainings to say.

Detectors are not the ReLU classifiers that the papers score, so two words are used throughout for what a layer does
beside convolving. A *rectifier* (ReLU, SiLU, GELU, Hardswish, …) passes what is far above zero and stops what is far
below: it is a switch, and the sign of its input is its position. A *weighing* (the sigmoid of a gate, the softmax of an
attention) only shares out what others pass: it has no off side, and over its values it is a mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nas.errors import InputError, NasError
from nas.training.augment import Augmentation, Batches, generator_of
from nas.yolo.build import inference_form, multiply_adds, parameters
from nas.yolo.criterion import Batch, Criterion
from nas.yolo.decode import Images, Pixels

BATCH = 8  # images that a score looks at
# Pixels of a side, to which larger images are shrunk: any model of the default space then takes under a second of one core.
SIDE = 128
PART = 2  # images per gradient; ZiCo compares the gradients of several parts of the batch
SMALL = 20480  # numbers; torch (aten/src/ATen/native/Convolution.cpp) gives what is larger to oneDNN, on one thread
RECTIFIERS = frozenset(
    "relu relu_ relu6 hardtanh leaky_relu leaky_relu_ prelu elu elu_ selu celu silu gelu hardswish mish".split()
)
NORMS = frozenset("batch_norm group_norm layer_norm instance_norm".split())
GATES = frozenset("sigmoid hardsigmoid".split())
SOFTMAXES = frozenset("softmax scaled_dot_product_attention".split())


class UndefinedScoreError(NasError):
    """A zero-cost score of a model is infinite or not a number."""


@dataclass(frozen=True)
class Passes:
    """What a few passes through a model found; every score is a function of it.

    Attributes:
        parameters: of the fused model, as in every table of a run.
        multiply_adds: of one image through the fused model.
        agreement: float64 (B, B): how many rectifiers are in one position for two images, see `activation_agreement`.
        weights: of convolutions and linear layers.
        gradients: per weight (parts, *its shape): of the loss of each part of the batch.
        flow: logarithm of the synaptic flow, see `synaptic_flow`.
    """

    parameters: int
    multiply_adds: float
    agreement: Tensor
    weights: Sequence[Tensor]
    gradients: Sequence[Tensor]
    flow: float


def log_params(passes: Passes) -> float:
    """ln of the number of parameters: the score that others have to beat."""
    return math.log(passes.parameters)


def log_macs(passes: Passes) -> float:
    """ln of the multiply-adds."""
    return math.log(passes.multiply_adds)


def nwot(passes: Passes) -> float:
    """ln |det K_H|, with K_H[i, j] = N_A - d_H(c_i, c_j) of the binary codes c of N_A rectifiers for images i and j.

    A network that tells all images apart before it is trained has the largest determinant. Mellor et al., "Neural
    Architecture Search without Training" (ICML 2021), section 3.
    """
    sign, log_determinant = torch.linalg.slogdet(passes.agreement)
    return float(log_determinant) if sign > 0 else -math.inf


def synflow(passes: Passes) -> float:
    """ln of the sum over all weights of θ ∂R/∂θ: Tanaka et al., "Pruning neural networks without any data by iteratively
    conserving synaptic flow" (NeurIPS 2020), equation 1, summed as in Abdelfattah et al. (ICLR 2021)."""
    return passes.flow


def grad_norm(passes: Passes) -> float:
    """Σ ‖∂L/∂θ‖₂ over the layers: Abdelfattah et al., "Zero-Cost Proxies for Lightweight NAS" (ICLR 2021), section 3.2."""
    return sum(float(gradient.sum(0).norm()) for gradient in passes.gradients)


def snip(passes: Passes) -> float:
    """Σ |θ ∂L/∂θ| over all weights: Lee et al., "SNIP: Single-shot Network Pruning based on Connection Sensitivity" (ICLR
    2019), summed as in Abdelfattah et al. (ICLR 2021), section 3.2."""
    pairs = zip(passes.weights, passes.gradients, strict=True)
    return sum(float((weight.detach() * gradient.sum(0)).abs().sum()) for weight, gradient in pairs)


def zico(passes: Passes) -> float:
    """Σ over the layers of ln Σ over their weights of E|∂L/∂θ| / √Var|∂L/∂θ|, both over the parts of the batch.

    Large and steady gradients train fast. Weights whose gradient is equal in all parts are left out, and so are layers
    whose gradient is zero (behind a norm that starts at zero). Li et al., "ZiCo: Zero-shot NAS via Inverse Coefficient
    of Variation on Gradients" (ICLR 2023), as the paper defines it: the authors' program has the variance of ∂L/∂θ.
    """
    layers = []
    for gradient in passes.gradients:
        size = gradient.double().abs_()
        mean = size.mean(0)
        deviation = (size - mean).square_().mean(0).sqrt_()  # Tensor.std is ten times slower along the first dimension
        layers.append(float(torch.where(deviation > 0, mean / deviation, 0.0).sum()))
    terms = [math.log(layer) for layer in layers if layer != 0]
    return math.fsum(terms) if terms else -math.inf


SCORES: Mapping[str, Callable[[Passes], float]] = {
    score.__name__: score for score in (log_params, log_macs, nwot, synflow, grad_norm, snip, zico)
}


def zero_cost_scores(model: nn.Module, batch: Batch) -> dict[str, float]:
    """Every score of `SCORES` by name, all finite; equal for equal weights and batches.

    The model is not touched: not its weights, statistics, mode, hooks or `requires_grad`, nor torch's generator.

    Args:
        model: a detection or segmentation model as `nas.yolo.build.build` makes it, on the CPU, with its initial weights.
        batch: at least 4 images, as `score_batch` makes it.

    Raises:
        InputError: fewer than 4 images.
        UndefinedScoreError: a score is infinite or not a number.
    """
    count = len(batch["img"])
    if count < 2 * PART:
        raise InputError(f"{count} different images to score an architecture by", f"there must be at least {2 * PART}")
    with torch.random.fork_rng([]), torch.enable_grad(), _Grouped():
        torch.manual_seed(0)  # of whatever the model itself draws
        passes = _observe(model, batch)
    found = {name: score(passes) for name, score in SCORES.items()}
    undefined = [f"{name} = {value}" for name, value in found.items() if not math.isfinite(value)]
    if undefined:
        raise UndefinedScoreError(
            f"zero-cost scores that are not finite: {', '.join(undefined)}",
            "a weight or a pixel is not finite, or no rectifier of the model tells two of the images apart",
        )
    return found


def score_batch(images: Images, seed: int) -> Batch:
    """The images to score by, not augmented: equal for equal arguments, whatever the architecture.

    Up to `BATCH` of them, shrunk to `SIDE`, no two alike (that would make NWOT's determinant zero), those with labels first.
    """
    order = torch.randperm(len(images), generator=generator_of(seed)).tolist()
    order.sort(key=lambda row: len(images.labels[row]) == 0)
    chosen: dict[bytes, tuple[int, Pixels]] = {}
    for row in order:
        small = _shrunk(images.read(slice(row, row + 1)))
        chosen.setdefault(small.tobytes(), (row, small))
        if len(chosen) == BATCH:
            break
    rows = [row for row, _ in chosen.values()]
    taken, pixels = images.take(rows), np.concatenate([small for _, small in chosen.values()])
    scale = np.float32(pixels.shape[-1] / images.imgsz)
    polygons = taken.polygons and [[points * scale for points in outlines] for outlines in taken.polygons]
    seen = Images(pixels, taken.labels, polygons=polygons)
    return Batches(seen, torch.device("cpu")).make(torch.arange(len(rows)), Augmentation(), generator_of(seed))


def _shrunk(pixels: Pixels) -> Pixels:
    """Images (B, 3, S, S) of at most `SIDE` pixels a side, each the mean of those it stands for."""
    if pixels.shape[-1] <= SIDE:
        return pixels
    means = torch.nn.functional.interpolate(torch.from_numpy(pixels).float(), (SIDE, SIDE), mode="area")
    small: Pixels = means.round_().byte().numpy()
    return small


def activation_agreement(model: nn.Module, images: Tensor) -> Tensor:
    """N_A - d_H of the codes of every pair of images: float64 (B, B), of whole numbers.

    The code of an image has one bit for each rectifier at each pixel: whether its input is above zero. Of a ReLU that
    is the linear region that the paper counts. SiLU, GELU and Hardswish are x times a gate that opens around zero: far
    from zero they are the ReLU with the same code, and their output has the sign of their input. Weighings, those of
    softmax attention among them, have no region and so no bit; the ReLU of linear attention has.

    Args:
        model: in training mode, so that its batch norms centre the inputs of rectifiers; changes their statistics.
        images: (B, 3, H, W).
    """
    codes = _Codes(images)
    with torch.no_grad(), codes:
        model(images)
    return codes.agreement


def loss_gradients(
    model: nn.Module, weights: Sequence[Tensor], parts: Iterable[Batch], loss: Callable[[Any, Batch], Tensor]
) -> list[Tensor]:
    """Per weight (parts, *its shape) its gradient of the loss of each part; zeros where the loss does not depend on it.

    The batch norms see each part for itself, as in a training with batches of that size.
    """
    found = [torch.autograd.grad(loss(model(part["img"]), part), weights, materialize_grads=True) for part in parts]
    return [torch.stack(gradients) for gradients in zip(*found, strict=True)]


def synaptic_flow(model: nn.Module, weights: Sequence[Tensor], shape: Sequence[int]) -> float:
    """ln Σ θ ∂R/∂θ over `weights`, with R the sum of all predictions for an image of ones and every parameter |θ|.

    Only what the weights conduct is to count, so what is not linear in the image gives way to what it does to large
    positive numbers: rectifiers to the identity, gates to one. Norms would undo the weights' scale and are left out, as
    in Abdelfattah et al. Attention, by softmax or linear, becomes the mean of its values: queries and keys only weigh,
    and conduct nothing.

    Args:
        model: in training mode and double precision, whose range (1e308) the product of all layers needs; its
            parameters become absolute.
        weights: of its convolutions and linear layers.
        shape: of an image: (3, H, W).
    """
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()
    image = torch.ones(1, *shape, dtype=torch.float64)
    with _Conducting():
        conducted = [prediction.sum() for prediction in _predictions(model(image))]
    gradients = torch.autograd.grad(conducted, weights, materialize_grads=True)
    flow = sum(float((w.detach() * gradient).sum()) for w, gradient in zip(weights, gradients, strict=True))
    return math.log(flow) if flow > 0 else -math.inf if flow == 0 else math.nan


def _observe(model: nn.Module, batch: Batch) -> Passes:
    """All passes, through copies: the batch forward, its parts forward and back, an image of ones forward and back."""
    images = batch["img"]
    fused = inference_form(model)
    twin = deepcopy(model).float().requires_grad_(False).to(memory_format=torch.channels_last).train()
    weights = layer_weights(twin)
    agreement = activation_agreement(twin, images)
    gradients = loss_gradients(twin, weights, _parts(batch), Criterion(twin, epochs=1))
    initial = [weight.detach() for weight in weights]  # stays in single precision
    # in double precision, depthwise convolutions are several times slower with the channels last
    twin = twin.double().to(memory_format=torch.contiguous_format)
    flow = synaptic_flow(twin, weights, images.shape[1:])
    return Passes(parameters(fused), multiply_adds(fused, images.shape[-1]), agreement, initial, gradients, flow)


def layer_weights(model: nn.Module) -> list[Tensor]:
    """The weights of convolutions and linear layers, which the scores look at; made to require a gradient.

    The head's `dfl` is left out: fixed numbers as a convolution, of which the loss does not even depend.
    """
    layers = (nn.Linear, nn.modules.conv._ConvNd)
    found = [m.weight for name, m in model.named_modules() if isinstance(m, layers) and ".dfl." not in name]
    return [weight.requires_grad_() for weight in found]


def _parts(batch: Batch) -> list[Batch]:
    """A batch in parts of at least `PART` images."""
    count = len(batch["img"])
    parts = []
    for rows in torch.arange(count).tensor_split(count // PART):
        start, end = int(rows[0]), int(rows[-1]) + 1
        inside = (batch["batch_idx"] >= start) & (batch["batch_idx"] < end)
        part = {
            name: values[inside] if name in {"cls", "bboxes", "batch_idx"} else values[start:end]
            for name, values in batch.items()
        }
        parts.append({**part, "batch_idx": part["batch_idx"] - start})
    return parts


def _predictions(output: Any) -> list[Tensor]:
    """The tensors that a model in training mode predicts, without the feature maps that its head hands on."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, dict):
        output = [value for name, value in output.items() if name != "feats"]
    return [tensor for part in output for tensor in _predictions(part)]


class _Codes(TorchFunctionMode):
    """Counts on which rectifiers the images of a forward pass agree, whether they are modules or functions."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.agreement = torch.zeros(len(images), len(images), dtype=torch.float64)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if args and _name(func) in RECTIFIERS:
            self._take(args[0])
        return func(*args, **(kwargs or {}))

    def _take(self, inputs: Tensor) -> None:
        # Windows of an attention may share the first dimension with the images, which come first there.
        codes = inputs.reshape(len(self.agreement), -1) > 0
        for part in torch.split(codes, 2**23, 1):  # float32 counts up to 2**24
            ones = part.float()
            both = ones @ ones.T
            own = both.diagonal()
            self.agreement += part.shape[1] - own[:, None] - own[None, :] + 2 * both


class _Grouped(TorchFunctionMode):
    """Convolves in groups by one product of matrices where torch would go through the groups one by one, of which a
    depthwise convolution has as many as channels: a third of the synaptic flow's time."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if _name(func) == "conv2d" and len(args) == 7 and args[6] > 1 and _one_by_one(args[0]):
            return grouped_convolution(*args)
        return func(*args, **(kwargs or {}))


def _one_by_one(images: Tensor) -> bool:
    """Whether torch's grouped convolution of these on the CPU is a loop: small ones are, and all in double precision."""
    return images.dtype == torch.float64 or images.numel() <= SMALL


def grouped_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int
) -> Tensor:
    """`conv2d` of the same arguments (B, C, H, W), as one batched product of the weights and the patches that they see."""
    n, _, height, _ = x.shape
    patches = torch.nn.functional.unfold(x, weight.shape[2:], dilation, padding, stride)
    kernels = weight.reshape(groups, len(weight) // groups, -1)
    y = (kernels @ patches.reshape(n, groups, kernels.shape[2], -1)).reshape(n, len(weight), -1)
    rows = (height + 2 * padding[0] - dilation[0] * (weight.shape[2] - 1) - 1) // stride[0] + 1
    y = y.reshape(n, len(weight), rows, -1)
    return y if bias is None else y + bias[:, None, None]


class _Conducting(TorchFunctionMode):
    """Makes a model what it is for large positive numbers, see `synaptic_flow`."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = _name(func) if args else ""
        if name in RECTIFIERS or name in NORMS:
            return args[0]
        if name in GATES:
            return torch.ones_like(args[0])
        if name in SOFTMAXES:  # without logits, or with queries of zero, all values have equal weights
            args = (torch.zeros_like(args[0]), *args[1:])
        if name == "linear_attention":
            args = (torch.ones_like(args[0]), torch.ones_like(args[1]), *args[2:])
        return func(*args, **(kwargs or {}))


def _name(function: Callable[..., Any]) -> str:
    """`silu` of `F.silu` as of what `nn.SiLU` calls, `sigmoid` of `torch.sigmoid` as of `Tensor.sigmoid`."""
    return getattr(function, "__name__", "")
