"""Architectures of every task in Ultralytics' hands: trained an epoch, saved, loaded, fused, exported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from tiny_sets import tiny_set
from ultralytics import YOLO

from nas.space.architecture import Architecture, model_yaml, place
from nas.space.skeleton import read_skeleton, shipped_model
from nas.space.source import shipped
from nas.yolo.build import inference_form, tensors

BLOCKS = ("mobile_mqa", "irmb", "efficientvit", "repvit", "riformer")
SKELETONS = {
    "yolo11n": "detect",
    "yolo11n-seg": "segment",
    "yolo11n-pose": "pose",
    "yolo11n-obb": "obb",
    "yolo11n-cls": "classify",
    "yolo26n-seg": "segment",
    "yolo26n-pose": "pose",
    "yolo26n-sem": "semantic",
}


def with_every_block(name: str) -> dict:
    """All five blocks in the slots of a skeleton, as far as they reach, from the deepest backbone stage on."""
    skeleton = read_skeleton(f"{name}.yaml")
    slots = sorted(skeleton.slots, key=lambda slot: (not slot.name.startswith("backbone"), -slot.layer))
    placements = [place(slot, block, 0.5, 1, None, {}) for slot, block in zip(slots, BLOCKS, strict=False)]
    return model_yaml(skeleton, Architecture(skeleton.name, tuple(sorted(placements, key=lambda p: p.layer))))


def trained_and_exported(model: Path, task: str, folder: Path) -> None:
    data = tiny_set(folder / "data", task)
    yolo = YOLO(str(model))
    assert yolo.task == task
    yolo.train(
        data=str(data),
        epochs=1,
        imgsz=64,
        batch=4,
        workers=0,
        device="cpu",
        plots=False,
        project=str(folder),
        name="t",
        amp=False,
    )
    best = folder / "t" / "weights" / "best.pt"
    path = YOLO(best).export(format="onnx", imgsz=64, device="cpu", verbose=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    images = torch.rand(1, 3, 64, 64)
    found = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    fused = inference_form(YOLO(best).model)
    assert fused.is_fused()
    with torch.no_grad():
        expected = [tensor.numpy() for tensor in tensors(fused(images))]
    if task == "semantic":  # Ultralytics lets the exported graph name the class of each pixel itself
        expected = [e.argmax(1) if e.shape != f.shape else e for e, f in zip(expected, found, strict=True)]
    for got, wanted in zip(found, expected, strict=True):
        assert got.shape == wanted.shape
        assert np.abs(got - wanted).max() <= 2e-3 * max(1.0, np.abs(wanted).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", SKELETONS)
def test_every_task_trains_and_exports(name: str, tmp_path: Path) -> None:
    path = tmp_path / "architecture.yaml"
    path.write_text(yaml.safe_dump(with_every_block(name)), encoding="utf-8")
    trained_and_exported(path, SKELETONS[name], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(shipped("models").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_model_trains_and_exports(path: Path, tmp_path: Path) -> None:
    assert shipped_model(f"model={path.name}") == f"model={path}"
    trained_and_exported(path, "detect", tmp_path)
