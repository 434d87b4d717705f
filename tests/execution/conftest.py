import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from harness import Ticker

from nas.execution.executor import Attempt
from nas.execution.work import TrainJob
from nas.space.architecture import model_yaml
from nas.space.reader import whole_skeleton

# Clusters of tests listen on all interfaces, as Ray has it. Ray reads this once in a process, and hands it on.
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "5" * 32}
# How long a head waits for the process that serves a client: 30 s are too few for a busy machine.
os.environ["RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S"] = "120"


@pytest.fixture
def ticker(tmp_path: Path) -> Callable[..., Ticker]:
    """Makes an attempt by its key: `tick`, or `quiet` for the lane."""

    def make(key: str, function: str = "tick", **payload: object) -> Ticker:
        folder = tmp_path / key
        folder.mkdir()
        payload["folder"] = str(folder)
        return Ticker(folder, Attempt(key, f"attempts:{function}", payload, quiet=function == "quiet"))

    return make


@pytest.fixture(scope="session")
def training(tmp_path_factory: pytest.TempPathFactory) -> TrainJob:
    """Of yolo11n on 24 images of coloured rectangles."""
    import cv2

    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 2)):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for index in range(count):
            image = rng.integers(0, 60, (64, 64, 3), np.uint8)
            x, y = rng.integers(0, 32, 2)
            image[y : y + 32, x : x + 32, index % 2] = 255
            cv2.imwrite(str(root / f"images/{split}/{index}.png"), image)
            box = f"{index % 2} {(x + 16) / 64} {(y + 16) / 64} 0.5 0.5\n"
            (root / f"labels/{split}/{index}.txt").write_text(box, encoding="utf-8")
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [blue, green]\n", encoding="utf-8")
    space = whole_skeleton("yolo11n.yaml")
    return TrainJob(
        model_yaml(space.skeleton, space.baseline, 2),
        data=str(root / "data.yaml"),
        root=str(root),
        cache=str(tmp_path_factory.mktemp("cache")),
        imgsz=64,
        rungs=[2],
        batch=8,
        lr0=0.004,
        held_out=0.25,
        split_seed=0,
        device="cpu",
        threads=1,
    )
