"""What the processes of `test_peers` do: a few steps of a training, alone or with others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from ultralytics.nn.tasks import DetectionModel, SegmentationModel

from nas.training.augment import Augmentation, generator_of
from nas.training.batch_norm import together
from nas.training.peers import Peers
from nas.training.proxy import Training, train_proxy
from nas.training.recipe import Recipe
from nas.yolo.decode import Images

CPU = torch.device("cpu")
HOW = Augmentation(0.5, 0.2, 0.1, 0.5, 0.01, 0.3, 0.2)


def images(count: int, *, polygons: bool) -> Images:
    """Noise with bright rectangles; some images have none."""
    random = np.random.default_rng(0)
    pixels, labels = random.integers(60, 120, (count, 3, 64, 64), dtype=np.uint8), []
    for image in pixels:
        boxes = []
        for _ in range(random.integers(3)):
            kind, (w, h) = int(random.integers(3)), random.integers(12, 40, 2)
            x, y = random.integers(64 - w), random.integers(64 - h)
            image[kind, y : y + h, x : x + w] = 230
            boxes.append([kind, (x + w / 2) / 64, (y + h / 2) / 64, w / 64, h / 64])
        labels.append(np.array(boxes, np.float32).reshape(-1, 5))
    corners = np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)], np.float32) * 64
    outlines = [[box[1:3] * 64 + corners * box[3:] for box in label] for label in labels]
    return Images(pixels, labels, polygons=outlines if polygons else None)


def model_of(skeleton: str, seed: int = 3) -> nn.Module:
    """In float64: what little the order of sums changes does not grow over a few steps, as it does in float32."""
    torch.manual_seed(seed)
    model = (SegmentationModel if "seg" in skeleton else DetectionModel)(skeleton, ch=3, nc=3, verbose=False)
    if "26" in skeleton:
        model.end2end = True
    model.double().register_forward_pre_hook(lambda _, args: (args[0].double(),))
    model.model[-1].stride = model.model[-1].stride.float()  # Ultralytics' losses mix it with float32
    return model


def steps(payload: Mapping[str, Any], seed: int, report: Callable[[Mapping[str, Any]], None]) -> dict[str, Any]:
    """The gradient of one batch and what it leaves in the batch norms, then a short training and its score.

    `count` train together, with a teacher; `out` is where the tensors go.
    """
    torch.set_num_threads(1)
    peers = Peers.meet(payload["meet"], payload["rank"], payload["count"], CPU) if payload["count"] > 1 else Peers()
    recipe, skeleton = Recipe(batch=5, augmentation=HOW), payload["skeleton"]
    found, model = images(10, polygons="seg" in skeleton), model_of(skeleton)
    training = Training(model, found, recipe, [2], seed, CPU, torch.float32, peers, model_of(skeleton, 4))
    with together(model, peers):
        part = peers.part(5)
        loss = training._pass(training._batches.make(torch.arange(5), HOW, generator_of(7), part))
        peers.add_gradients(training._weights)
    kept = {f"gradient.{n}": p.grad.contiguous() for n, p in model.named_parameters() if p.grad is not None}
    kept |= {f"norm.{n}": b.clone() for n, b in model.named_buffers() if "running" in n}
    del training
    model = model_of(skeleton)
    shared = {"rungs": [2], "recipe": recipe, "seed": seed, "device": CPU, "precision": torch.float32, "report": lambda _: None}
    outcome = train_proxy(model, found, found, nc=3, **shared, peers=peers, teacher=model_of(skeleton, 4))
    kept |= {f"weight.{n}": p.detach().contiguous() for n, p in model.named_parameters()}
    assert not any("forward" in vars(module) for module in model.modules()), "the model is as it was"
    if peers.first:
        save_file(kept, Path(payload["out"]))
    return {
        "loss": loss,
        "map": outcome.map,
        "map50": outcome.map50,
        "curve": outcome.loss_curve,
        "images": part.stop - part.start,
    }
