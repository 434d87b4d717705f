"""Architectures as Ultralytics models: built, fused, counted, exported."""

from __future__ import annotations

import warnings
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from ultralytics.nn.tasks import BaseModel, DetectionModel

from nas.errors import InputError

OPSET = 18


def build(model_yaml: dict[str, Any]) -> DetectionModel:
    """A detection model with fresh weights (drawn from torch's global generator), on the CPU.

    Args:
        model_yaml: as `nas.space.architecture.model_yaml` makes it.

    Raises:
        InputError: not a detection model.
    """
    head = model_yaml["head"][-1][2]
    if not head.endswith("Detect"):
        raise InputError(f"the skeleton's head is {head}, not a detection head", "search with a detection model YAML")
    return DetectionModel(deepcopy(model_yaml), ch=3, nc=model_yaml["nc"], verbose=False)


def inference_form(model: BaseModel, *, export: bool = True) -> BaseModel:
    """A fused copy in eval mode whose forward returns decoded predictions before NMS (what is timed and exported)."""
    fused = deepcopy(model).eval().float().fuse(verbose=False)
    for parameter in fused.parameters():
        parameter.requires_grad_(False)
    head = fused.model[-1]
    head.export, head.format = export, "onnx"
    return fused


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def multiply_adds(model: nn.Module, imgsz: int) -> float:
    """Multiply-adds of one forward pass at batch 1, convolutions, products and attention, counted by torch."""
    image = torch.zeros(1, 3, imgsz, imgsz, device=next(model.parameters()).device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    return float(counter.get_total_flops()) / 2


def export_onnx(model: nn.Module, path: Path, imgsz: int, *, batch: int = 1, dynamic: bool = False) -> None:
    """Write an `inference_form` as ONNX with input `images` (batch, 3, imgsz, imgsz) and output `output0`.

    Args:
        dynamic: leave batch, height and width open.
    """
    axes = {"images": {0: "batch", 2: "height", 3: "width"}, "output0": {0: "batch"}} if dynamic else None
    model.model[-1].dynamic = dynamic  # type: ignore[index, union-attr]
    with warnings.catch_warnings(), torch.no_grad():
        # The tracer warns of Python branches in Ultralytics' head, which depend on the fixed head alone.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (torch.zeros(batch, 3, imgsz, imgsz),),
            str(path),
            opset_version=OPSET,
            input_names=["images"],
            output_names=["output0"],
            dynamic_axes=axes,
            do_constant_folding=True,
            dynamo=False,
        )
