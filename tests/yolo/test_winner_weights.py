"""`winner.pt` in Ultralytics' hands: it loads, validates, trains on from its weights, and exports."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from tiny_sets import tiny_set
from ultralytics import YOLO

from nas.space.architecture import Architecture, model_yaml, place
from nas.space.skeleton import read_skeleton
from nas.yolo.build import build, inference_form, tensors
from nas.yolo.checkpoints import save_checkpoint
from nas.yolo.full import map_on_val, train_full

pytestmark = pytest.mark.slow
NAMES = ("blue", "red")


@pytest.mark.parametrize(("name", "task"), [("yolo11n", "detect"), ("yolo11n-seg", "segment")])
def test_a_winner_goes_on_in_ultralytics(name: str, task: str, tmp_path: Path) -> None:
    """With a learning rate of zero an epoch leaves the weights as they were: it did begin with them."""
    skeleton = read_skeleton(f"{name}.yaml")
    wanted = {"backbone.P4": ("repvit", 0.5), "backbone.P5": ("mobile_mqa", 1.0), "neck.topdown.P3": ("irmb", 1.0)}
    placed = [place(skeleton.slot(slot), block, width, 1, None, {}) for slot, (block, width) in wanted.items()]
    architecture = Architecture(skeleton.name, tuple(p for p in placed if p))
    torch.manual_seed(0)
    model = build(model_yaml(skeleton, architecture, len(NAMES)))
    path, data = tmp_path / "winner.pt", tiny_set(tmp_path / "data", task)
    save_checkpoint(model, path, NAMES)
    loaded = YOLO(str(path))
    assert loaded.task == task and loaded.names == dict(enumerate(NAMES))
    own = {"data": str(data), "imgsz": 64, "workers": 0, "device": "cpu", "plots": False, "project": str(tmp_path)}
    metrics = loaded.val(**own, name="val", verbose=False)
    assert 0 <= getattr(metrics, "seg", metrics.box).map <= 1
    still = {"lr0": 0.0, "optimizer": "SGD", "warmup_epochs": 0.0, "batch": 4, "amp": False}
    YOLO(str(path)).train(epochs=1, name="on", **own, **still)
    after = dict(YOLO(tmp_path / "on" / "weights" / "last.pt").model.named_parameters())
    before = dict(YOLO(str(path)).model.named_parameters())
    assert before.keys() == after.keys()
    assert all(torch.allclose(p.float(), after[n].float(), atol=1e-3) for n, p in before.items())
    exported = YOLO(str(path)).export(format="onnx", imgsz=64, device="cpu", verbose=False)
    session, images = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"]), torch.rand(1, 3, 64, 64)
    found = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        expected = tensors(inference_form(YOLO(str(path)).model.float())(images))
    for got, wanted_ in zip(found, expected, strict=True):
        assert np.abs(got - wanted_.numpy()).max() <= 2e-3 * max(1.0, float(wanted_.abs().max()))
    best = train_full(path, data=data, epochs=1, imgsz=64, device="cpu", folder=tmp_path / "full", seed=0)
    assert 0 <= map_on_val(best, data=data, imgsz=64, device="cpu", folder=tmp_path / "full" / "val") <= 1
    assert [row[2] for row in YOLO(best).model.yaml["backbone"]] == [row[2] for row in model.yaml["backbone"]]
