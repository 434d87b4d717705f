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

from nas.dataset.labels import read_polygons
from nas.training.proxy import train_proxy
from nas.training.recipe import Recipe
from nas.yolo import metrics
from nas.yolo.decode import Images, decode
from nas.yolo.metrics import evaluate

IMGSZ, CPU = 96, torch.device("cpu")
NAMES = {0: "red", 1: "green", 2: "never"}


def write_set(root: Path, split: str, count: int, seed: int, *, polygons: bool = False) -> tuple[list[Path], list[np.ndarray]]:
    """Images of odd and differing shapes, so that the letterbox matters; some without any object. Objects are rectangles, or
    with `polygons` of three to six corners, which hide parts of each other."""
    random = np.random.default_rng(seed)
    paths, labels = [], []
    for folder in ("images", "labels"):
        (root / folder / split).mkdir(parents=True)
    for i in range(count):
        width, height = random.integers(60, 210, 2)
        image = random.integers(60, 120, (height, width, 3), dtype=np.uint8)
        rows, lines = [], []
        for _ in range(i % 4):
            kind, w, h = random.integers(2), random.integers(15, width // 2), random.integers(15, height // 2)
            x, y = random.integers(width - w), random.integers(height - h)
            points = np.array([[x, y], [x + w, y], [x + w, y + h], [x, y + h]])
            if polygons:
                corners = random.integers(3, 7)
                angles = random.uniform(0, 2 * np.pi) + np.arange(corners) * 2 * np.pi / corners
                points = np.stack([x + w / 2 + w / 2 * np.cos(angles), y + h / 2 + h / 2 * np.sin(angles)], 1)
            cv2.fillPoly(image, [points.astype(int)], ((40, 40, 230), (40, 230, 40))[kind])
            (left, top), (right, bottom) = points.min(0), points.max(0)
            box = [(left + right) / 2 / width, (top + bottom) / 2 / height, (right - left) / width, (bottom - top) / height]
            rows.append([kind, *box])
            lines.append(" ".join(map(str, [kind, *(points / (width, height)).ravel()] if polygons else rows[-1])))
        paths.append(root / "images" / split / f"{i:03}.png")
        cv2.imwrite(str(paths[-1]), image)
        (root / "labels" / split / f"{i:03}.txt").write_text("\n".join(lines))
        labels.append(np.array(rows, np.float32).reshape(-1, 5))
    return paths, labels


def read_set(root: Path, split: str, count: int, seed: int, *, polygons: bool) -> Images:
    paths, labels = write_set(root, split, count, seed, polygons=polygons)
    outlines = [read_polygons(path, 3) for path in paths] if polygons else None
    return decode(paths, labels, IMGSZ, root / "cache", outlines)


@pytest.mark.parametrize(
    ("skeleton", "epochs", "end2end"),
    [
        ("yolo11n.yaml", 10, False),
        pytest.param("yolov10n.yaml", 14, True, marks=pytest.mark.slow),
        pytest.param("yolo11n-seg.yaml", 12, False, marks=pytest.mark.slow),
        pytest.param("yolo26n.yaml", 16, True, marks=pytest.mark.slow),
        pytest.param("yolov8n-seg.yaml", 12, False, marks=pytest.mark.slow),
        pytest.param("yolo26n-seg.yaml", 16, False, marks=pytest.mark.slow),
        pytest.param("yolo26n-seg.yaml", 16, True, marks=pytest.mark.slow),
    ],
)
def test_map_equals_ultralytics_validation(tmp_path: Path, skeleton: str, epochs: int, end2end: bool) -> None:
    torch.set_num_threads(1)
    segment = "seg" in skeleton
    train = read_set(tmp_path, "train", 48, 0, polygons=segment)
    val = read_set(tmp_path, "val", 32, 1, polygons=segment)
    data = tmp_path / "data.yaml"
    data.write_text(yaml.safe_dump({"path": str(tmp_path), "train": "images/train", "val": "images/val", "names": NAMES}))

    torch.manual_seed(0)
    yolo = YOLO(skeleton)
    model = type(yolo.model)(skeleton, ch=3, nc=3, verbose=False)
    outcome = train_proxy(
        model,
        train,
        val,
        nc=3,
        rungs=(epochs,),
        recipe=Recipe(),
        seed=0,
        device=CPU,
        precision=torch.float32,
        report=lambda p: None,
    )
    model.end2end = end2end
    ours = evaluate(model, val, 3, batch=8, device=CPU)

    model.names, yolo.model = NAMES, model
    how = {"imgsz": IMGSZ, "batch": 8, "rect": False, "plots": False, "workers": 0, "device": "cpu"}
    theirs = yolo.val(data=str(data), **how, nms=not end2end, project=str(tmp_path))
    pairs = [(ours.boxes, theirs.box), *([(ours.masks, theirs.seg)] if segment else [])]
    for found, expected in pairs:
        assert expected.map > 0.05, "real predictions are needed to compare anything"
        assert found.map == pytest.approx(expected.map, abs=0.002)
        assert found.map50 == pytest.approx(expected.map50, abs=0.002)
        assert sorted(found.per_class) == [0, 1]  # a class without labels does not count
    if not end2end:  # as it was built; another batch size, so other roundings
        told = (outcome.map, outcome.map50, outcome.box_map)
        assert told == pytest.approx((pairs[-1][1].map, pairs[-1][1].map50, theirs.box.map), abs=0.004)


def test_nms_has_no_wall_clock_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    limits = []

    def spy(prediction: torch.Tensor, *args: object, max_time_img: float, **kwargs: object) -> list[torch.Tensor]:
        limits.append(max_time_img)
        return [torch.zeros(0, 6)] * len(prediction)

    monkeypatch.setattr(metrics, "non_max_suppression", spy)
    images = decode(*write_set(tmp_path, "val", 3, 0), 64, tmp_path / "cache")
    model = YOLO("yolo11n.yaml").model
    assert evaluate(model, images, 80, batch=2, device=CPU).boxes.map == 0.0
    assert limits == [float("inf")] * 2
