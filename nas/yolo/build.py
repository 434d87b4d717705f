"""Architectures as Ultralytics models: built, fused, counted, exported."""

from __future__ import annotations

import warnings
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from ultralytics.nn import tasks
from ultralytics.nn.tasks import BaseModel

from nas.errors import InputError
from nas.space.skeleton import TASKS

OPSET = 18
Size = int | tuple[int, int]  # of an image in pixels: the side of a square, or height and width
_MODELS: dict[str, type[BaseModel]] = {
    "detect": tasks.DetectionModel,
    "segment": tasks.SegmentationModel,
    "pose": tasks.PoseModel,
    "obb": tasks.OBBModel,
    "classify": tasks.ClassificationModel,
    "semantic": tasks.SemanticSegmentationModel,
    "depth": tasks.DepthModel,
}


def build(model_yaml: dict[str, Any]) -> BaseModel:
    """A model with fresh weights (drawn from torch's global generator), on the CPU: Ultralytics' class for its task.

    Args:
        model_yaml: as `nas.space.architecture.model_yaml` makes it.

    Raises:
        InputError: a head of no known task.
    """
    head = model_yaml["head"][-1][2]
    if head not in TASKS:
        raise InputError(f"the model's head is {head}, which is not known", f"known are {', '.join(TASKS)}")
    return _MODELS[TASKS[head]](deepcopy(model_yaml), ch=3, nc=model_yaml["nc"], verbose=False)


def inference_form(model: BaseModel, *, export: bool = True) -> BaseModel:
    """A fused copy in eval mode whose forward returns what is timed and exported: decoded predictions before NMS, or the final
    ones (batch, up to 300, 6: corners, score, class) where the head picks them itself, see `is_end2end`.

    A segmentation model returns two tensors: the predictions, each with its mask coefficients, and the mask prototypes.
    """
    copy = deepcopy(model).eval().float()
    copy.end2end = is_end2end(copy)
    fused = copy.fuse(verbose=False)
    for parameter in fused.parameters():
        parameter.requires_grad_(False)
    head = fused.model[-1]
    head.export, head.format = export, "onnx"
    return fused


def is_end2end(model: BaseModel) -> bool:
    """Whether the head has learned to answer with one box per object (YOLOv10, YOLO26), so that nothing follows it.

    Ultralytics trains both of its branches and infers by the other one, with NMS, unless it is told not to.
    """
    return getattr(model.model[-1], "one2one_cv2", None) is not None


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def multiply_adds(model: nn.Module, imgsz: Size) -> float:
    """Multiply-adds of one forward pass at batch 1, convolutions, products and attention, counted by torch."""
    image = torch.zeros(1, 3, *sides(imgsz), device=next(model.parameters()).device)
    with torch.no_grad(), flop_counter() as counter:
        model(image)
    return float(counter.get_total_flops()) / 2


def flop_counter() -> FlopCounterMode:
    """Torch's own counter, which knows attention on a GPU but not the kernel that runs on a CPU."""

    def attention(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
        return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]

    on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return FlopCounterMode(display=False, custom_mapping={on_cpu: attention})


def tensors(output: Any) -> list[torch.Tensor]:
    """The tensors of a forward pass of an `inference_form`, in order: one, or two for segmentation."""
    return [output] if isinstance(output, torch.Tensor) else [tensor for part in output for tensor in tensors(part)]


def sides(imgsz: Size) -> tuple[int, int]:
    """Height and width."""
    return (imgsz, imgsz) if isinstance(imgsz, int) else imgsz


def export_onnx(model: nn.Module, path: Path, imgsz: Size, *, batch: int = 1, dynamic: bool = False) -> None:
    """Write an `inference_form` as ONNX with input `images` (batch, 3, height, width) and outputs `output0`, `output1`, …, in
    the precision and on the device of the model.

    Args:
        dynamic: leave batch, height and width open.
    """
    model.model[-1].dynamic = dynamic  # type: ignore[index, union-attr]
    weight = next(model.parameters())
    image = torch.zeros(batch, 3, *sides(imgsz), dtype=weight.dtype, device=weight.device)
    with warnings.catch_warnings(), torch.no_grad():
        # The tracer warns of Python branches in Ultralytics' head, which depend on the fixed head alone.
        warnings.simplefilter("ignore")
        outputs = {f"output{index}": tensor for index, tensor in enumerate(tensors(model(image)))}
        axes = {"images": {0: "batch", 2: "height", 3: "width"}}
        for name, tensor in outputs.items():
            axes[name] = {0: "batch"}
            if tensor.ndim == 4:  # a map: mask prototypes
                axes[name] |= {2: f"{name}_height", 3: f"{name}_width"}
        torch.onnx.export(
            model,
            (image,),
            str(path),
            opset_version=OPSET,
            input_names=["images"],
            output_names=list(outputs),
            dynamic_axes=axes if dynamic else None,
            do_constant_folding=True,
            dynamo=False,
        )
