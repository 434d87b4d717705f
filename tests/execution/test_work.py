"""Training as a worker does it, on 24 images of coloured rectangles."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from nas.dataset.description import read_dataset
from nas.dataset.labels import read_labels
from nas.errors import InputError, NasError, UnreachableError
from nas.execution.work import ScoreJob, TrainJob, scores, train
from nas.seeds import derive
from nas.space.architecture import model_yaml
from nas.space.reader import whole_skeleton
from nas.training import proxy, zero_cost


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> TrainJob:
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
        epochs=2,
        batch=8,
        lr0=0.004,
        held_out=0.25,
        split_seed=0,
        device="cpu",
        threads=1,
    )


def trained(job: TrainJob, trial: int) -> tuple[dict, list]:
    """What a trial of seed 0 tells, without what may differ between two executions."""
    reports: list = []
    told = train(asdict(job), derive(0, trial, "train"), reports.append)
    assert set(told) == {"map", "map50", "loss_curve", "epochs", "seconds", "precision", "pid"}
    for each in (told, *reports):
        assert each.pop("seconds") > 0
    assert told.pop("pid") > 0
    return told, reports


def test_only_train_is_divided_and_scored(job: TrainJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(Path(job.data).parent, tmp_path / "data")
    yaml = tmp_path / "data" / "data.yaml"
    yaml.write_text(yaml.read_text() + "test: images/val\n")
    dataset = read_dataset(yaml)
    for image in (*dataset.val, *dataset.test):
        image.write_bytes(b"")  # whoever decodes it fails
    seen: list = []
    whole = proxy.train_proxy

    def spy(model, fit, held_out, **how):
        seen.append([[labels.tolist() for labels in part.labels] for part in (fit, held_out)])
        return whole(model, fit, held_out, **how)

    monkeypatch.setattr(proxy, "train_proxy", spy)
    for seed in (0, 1):
        train(asdict(replace(job, data=str(yaml), root=str(dataset.root), epochs=1, split_seed=seed)), 0, lambda report: None)
        parts = dataset.split(job.held_out, seed)
        assert [len(part) for part in parts] == [18, 6]
        assert not set(parts[0]) & set(parts[1])
        assert seen[-1] == [[read_labels(dataset.train[i], 2).tolist() for i in part] for part in parts]
    assert len({str(labels) for part in seen[0] for labels in part}) == 24, "labels tell the images apart"
    assert seen[0] != seen[1]


def test_equal_seeds_repeat_and_others_do_not(job: TrainJob) -> None:
    first, reports = trained(job, 1)
    torch.rand(7)  # what ran before in a warm worker does not matter
    assert trained(job, 1) == (first, reports)
    assert trained(job, 2)[0]["loss_curve"] != first["loss_curve"]
    assert reports == [{"epoch": i + 1, "epochs": 2, "loss": loss} for i, loss in enumerate(first["loss_curve"])]
    assert 0 <= first["map"] <= first["map50"] <= 1 and first["epochs"] == 2


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        pytest.param(
            {"device": "cuda"},
            UnreachableError,
            "no CUDA device found on this worker",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
        ),
        ({"data": "missing.yaml"}, InputError, "missing.yaml"),
        ({"held_out": 1.5}, InputError, "held-out share"),
        ({"lr0": 1e30}, NasError, "diverged"),
    ],
)
def test_what_cannot_be_trained(job: TrainJob, changes: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        train(asdict(replace(job, **changes)), 0, lambda report: None)


def test_scores_of_a_model_that_nobody_trained(job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> None:
    payload = {name: value for name, value in asdict(job).items() if name in ScoreJob.__dataclass_fields__}
    dataset = read_dataset(Path(job.data))
    fit = [read_labels(dataset.train[i], 2).tolist() for i in dataset.split(job.held_out, job.split_seed)[0]]
    seen: list = []
    whole = zero_cost.zero_cost_scores
    monkeypatch.setattr(zero_cost, "zero_cost_scores", lambda model, batch: seen.append(batch) or whole(model, batch))
    first, again, other = (scores(payload, derive(0, trial, "scores"), lambda report: None) for trial in (1, 1, 2))
    assert json.loads(json.dumps(first)) == again == first
    assert {name for name in first if first[name] == other[name]} == {"log_params", "log_macs"}
    assert all(torch.equal(seen[0][name], batch[name]) for batch in seen for name in seen[0])
    boxes = torch.cat([seen[0]["cls"], seen[0]["bboxes"]], 1)
    assert len(boxes) == zero_cost.BATCH
    for box in boxes.tolist():
        assert any(box == pytest.approx(labels[0], abs=1e-5) for labels in fit)
