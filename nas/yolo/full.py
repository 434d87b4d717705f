"""Full training by Ultralytics' own trainer, and its own validation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ultralytics import YOLO


def train_full(start: Path, *, data: Path, epochs: int, imgsz: int, device: str | None, folder: Path, seed: int) -> Path:
    """Train a model YAML from scratch, or a checkpoint on; returns the best weights.

    Args:
        folder: where Ultralytics writes its files.
    """
    known: dict[str, Any] = {} if device is None else {"device": device}
    model = YOLO(str(start))
    place = {"project": str(folder.parent.absolute()), "name": folder.name, "exist_ok": True}
    model.train(data=str(data), epochs=epochs, imgsz=imgsz, seed=seed, plots=False, **place, **known)
    return Path(model.trainer.best if model.trainer.best.is_file() else model.trainer.last)


def map_on_val(weights: Path, *, data: Path, imgsz: int, device: str | None, folder: Path) -> float:
    """mAP50-95 on the `val` part, by Ultralytics' validator: of masks for a segmentation model, of boxes otherwise."""
    known: dict[str, Any] = {} if device is None else {"device": device}
    place = {"project": str(folder.parent.absolute()), "name": folder.name, "exist_ok": True}
    metrics = YOLO(str(weights)).val(data=str(data), imgsz=imgsz, plots=False, verbose=False, **place, **known)
    return float(getattr(metrics, "seg", metrics.box).map)
