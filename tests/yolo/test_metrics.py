"""Our mAP is Ultralytics' mAP: same weights, same files, both ways."""

import os
import tempfile
from pathlib import Path

os.environ.setdefault("YOLO_OFFLINE", "1")
os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.mkdtemp())

import cv2
import numpy as np
import pytest
import torch
import yaml
from ultralytics import YOLO

from nas.training.proxy import Recipe, train_proxy
from nas.yolo import metrics
from nas.yolo.decode import decode
from nas.yolo.metrics import evaluate

IMGSZ, CPU = 96, torch.device("cpu")
NAMES = {0: "red", 1: "green", 2: "never"}


def write_set(root: Path, split: str, count: int, seed: int) -> tuple[list[Path], list[np.ndarray]]:
    """Images of odd and differing shapes, so that the letterbox matters; some without any box."""
    random = np.random.default_rng(seed)
    paths, labels = [], []
    for folder in ("images", "labels"):
        (root / folder / split).mkdir(parents=True)
    for i in range(count):
        width, height = random.integers(60, 210, 2)
        image = random.integers(60, 120, (height, width, 3), dtype=np.uint8)
        rows = []
        for _ in range(i % 4):
            kind, w, h = random.integers(2), random.integers(15, width // 2), random.integers(15, height // 2)
            x, y = random.integers(width - w), random.integers(height - h)
            image[y : y + h, x : x + w] = ((40, 40, 230), (40, 230, 40))[kind]
            rows.append([kind, (x + w / 2) / width, (y + h / 2) / height, w / width, h / height])
        paths.append(root / "images" / split / f"{i:03}.png")
        cv2.imwrite(str(paths[-1]), image)
        lines = "\n".join(" ".join(map(str, row)) for row in rows)
        (root / "labels" / split / f"{i:03}.txt").write_text(lines)
        labels.append(np.array(rows, np.float32).reshape(-1, 5))
    return paths, labels


@pytest.mark.parametrize("skeleton", ["yolo11n.yaml", "yolo26n.yaml"])  # with NMS, and end to end
def test_map_equals_ultralytics_validation(tmp_path: Path, skeleton: str) -> None:
    torch.set_num_threads(1)
    train = decode(*write_set(tmp_path, "train", 48, 0), IMGSZ, tmp_path / "cache")
    val = decode(*write_set(tmp_path, "val", 32, 1), IMGSZ, tmp_path / "cache")
    data = tmp_path / "data.yaml"
    data.write_text(yaml.safe_dump({"path": str(tmp_path), "train": "images/train", "val": "images/val", "names": NAMES}))

    torch.manual_seed(0)
    yolo = YOLO(skeleton)
    model = type(yolo.model)(skeleton, ch=3, nc=3, verbose=False)
    train_proxy(model, train, val, nc=3, epochs=10, recipe=Recipe(), seed=0, device=CPU, report=lambda p: None)
    ours = evaluate(model, val, 3, batch=8, device=CPU)

    model.names, yolo.model = NAMES, model
    theirs = yolo.val(
        data=str(data), imgsz=IMGSZ, batch=8, rect=False, plots=False, workers=0, device="cpu", project=str(tmp_path)
    )
    assert theirs.box.map > 0.05, "real predictions are needed to compare anything"
    assert ours.map == pytest.approx(theirs.box.map, abs=0.002)
    assert ours.map50 == pytest.approx(theirs.box.map50, abs=0.002)
    assert sorted(ours.per_class) == [0, 1]  # a class without labels does not count
    assert evaluate(model, val, 3, batch=5, device=CPU).map == pytest.approx(ours.map, abs=1e-4)


def test_nms_has_no_wall_clock_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    limits = []

    def spy(prediction: tuple, *args: object, max_time_img: float, **kwargs: object) -> list[torch.Tensor]:
        limits.append(max_time_img)
        return [torch.zeros(0, 6)] * len(prediction[0])

    monkeypatch.setattr(metrics, "non_max_suppression", spy)
    images = decode(*write_set(tmp_path, "val", 3, 0), 64, tmp_path / "cache")
    model = YOLO("yolo11n.yaml").model
    assert evaluate(model, images, 80, batch=2, device=CPU).map == 0.0
    assert limits == [float("inf")] * 2
