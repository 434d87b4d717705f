"""Training as a worker does it, on 24 images of coloured rectangles."""

import json
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from ultralytics import YOLO

from nas.dataset.description import read_dataset
from nas.dataset.labels import read_labels
from nas.errors import NasError, UnreachableError
from nas.execution import work
from nas.execution.decode import decode
from nas.execution.gang import disband
from nas.execution.work import ScoreJob, TrainJob, images_of, price, scores, train, try_weights
from nas.seeds import derive
from nas.space.architecture import model_yaml
from nas.space.reader import whole_skeleton
from nas.training import precision, proxy, zero_cost
from nas.yolo.metrics import evaluate


@pytest.fixture(scope="module")
def job(training: TrainJob) -> TrainJob:
    return training


def trained(job: TrainJob, trial: int) -> tuple[dict, list]:
    """What a trial of seed 0 tells, without what may differ between two executions."""
    reports: list = []
    told = train(asdict(job), derive(0, trial, "train"), reports.append)
    assert set(told) == {"map", "map50", "box_map", "loss_curve", "epochs", "resumed_at", "seconds", "precision", "pid"}
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
        train(asdict(replace(job, data=str(yaml), root=str(dataset.root), rungs=[1], split_seed=seed)), 0, lambda report: None)
        parts = dataset.split(job.held_out, seed)
        assert [len(part) for part in parts] == [18, 6]
        assert not set(parts[0]) & set(parts[1])
        assert seen[-1] == [[read_labels(dataset.train[i], 2).tolist() for i in part] for part in parts]
    assert len({str(labels) for part in seen[0] for labels in part}) == 24, "labels tell the images apart"
    assert seen[0] != seen[1]


def test_a_host_decodes_once_whatever_the_split_and_the_share(job: TrainJob, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    parts = [
        images_of(job.data, job.root, cache, 64, 0.25, seed, False, share) for seed, share in ((0, 1.0), (1, 0.5), (1, 1.0))
    ]
    assert len(list((tmp_path / "cache" / "images").glob("*.sizes.npy"))) == 1
    assert [(len(fit), len(rest)) for fit, rest, _ in parts] == [(18, 6), (9, 6), (18, 6)]
    half, whole = ({str(label) for label in fit.labels} for fit, _, _ in parts[1:])
    assert half < whole
    for fit, rest, _ in parts:
        for part in (fit, rest):
            for index, label in enumerate(part.labels):  # pixels and labels still belong together
                (kind, x, y, _, _) = label[0]
                middle = part.read(slice(index, index + 1))[0, :, int(y * 64), int(x * 64)]
                assert middle[2 - int(kind)] == 255


def test_images_are_decoded_before_something_is_timed(job: TrainJob, tmp_path: Path) -> None:
    there = replace(job, cache=str(tmp_path / "fresh"))
    assert decode(asdict(there), 0, print) == {"images": 24}
    pixels = list((tmp_path / "fresh").rglob("pixels-*.npy"))
    assert pixels
    before = [file.stat().st_mtime_ns for file in pixels]
    images_of.cache_clear()
    train(asdict(replace(there, rungs=[1])), 0, lambda _: None)
    assert sorted(pixels) == sorted((tmp_path / "fresh").rglob("pixels-*.npy"))
    assert before == [file.stat().st_mtime_ns for file in pixels]
    shutil.copytree(Path(job.data).parent, tmp_path / "data")
    for image in (tmp_path / "data/images/train").glob("*"):
        image.write_bytes(b"no image")
    told = decode(asdict(replace(there, data=str(tmp_path / "data/data.yaml"), root=str(tmp_path / "data"))), 0, print)
    assert told["fault"] and told["cure"]


def test_weights_that_are_kept_load_in_ultralytics(job: TrainJob, tmp_path: Path) -> None:
    told = train(
        asdict(replace(job, keep=str(tmp_path / "trial" / "weights.pt"), names=["blue", "green"])), 0, lambda report: None
    )
    assert [path.name for path in (tmp_path / "trial").iterdir()] == ["weights.pt"]
    yolo = YOLO(tmp_path / "trial" / "weights.pt")
    assert yolo.names == {0: "blue", 1: "green"} and yolo.task == "detect"
    _, rest, nc = images_of(job.data, job.root, job.cache, 64, job.held_out, job.split_seed, False)
    again = evaluate(yolo.model, rest, nc, batch=8, device=torch.device("cpu"))
    assert again.boxes.map == pytest.approx(told["map"], abs=0.01)  # half precision


def test_out_of_memory_is_tried_again_with_half_the_batch(job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, whole = [], proxy.train_proxy

    def scarce(*args, recipe, **how):
        seen.append((recipe.batch, recipe.accumulate))
        if recipe.batch > largest:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(*args, recipe=recipe, **how)

    monkeypatch.setattr(proxy, "train_proxy", scarce)
    reports: list = []
    largest = 4
    told = train(asdict(job), 0, reports.append)
    assert seen == [(8, 1), (4, 2)] and told["halved"]
    assert "out of memory at batch 8" in reports[0]["note"]
    largest = 0
    with pytest.raises(MemoryError):
        train(asdict(job), 0, reports.append)
    assert len(seen) == 4


def test_out_of_memory_on_several_devices(job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half the batch, as long as each has an image of it."""
    seen: list = []

    def scarce(count, kind, payload, seed, report):
        seen.append((count, payload["job"]["batch"], payload["halved"]))
        if not payload["halved"]:
            raise MemoryError
        return {"map": 0.5}

    monkeypatch.setattr(work, "together", scarce)
    reports: list = []
    assert train(asdict(replace(job, devices=4)), 0, reports.append) == {"map": 0.5, "halved": True}
    assert seen == [(4, 8, False), (4, 8, True)] and "out of memory at batch 8" in reports[0]["note"]
    with pytest.raises(MemoryError):
        train(asdict(replace(job, devices=8)), 0, reports.append)
    assert len(seen) == 3


@pytest.mark.slow
def test_two_devices_train_what_one_trains(job: TrainJob, tmp_path: Path) -> None:
    """Through the processes that GPUs have, on CPUs; and whatever number of them takes a training up goes on with it."""
    dtype = tmp_path / "precision" / f"{precision._stamp(torch.device('cpu'))}.json"
    dtype.parent.mkdir()
    dtype.write_text('{"dtype": "torch.float32"}')
    one = replace(job, rungs=[1, 4], cache=str(tmp_path), state=str(tmp_path / "state"))
    two, reports = replace(one, devices=2, keep=str(tmp_path / "weights.pt"), names=["blue", "green"]), []
    try:
        first = train(asdict(replace(two, until=1)), 3, reports.append)
        copy = shutil.copy(one.state, tmp_path / "copy")
        rest = train(asdict(two), 3, reports.append)
        assert [report["epoch"] for report in reports if report] == [1, 2, 3, 4]
        assert (first["epochs"], rest["epochs"], rest["resumed_at"]) == (1, 4, 1) and rest["pid"] == first["pid"] != os.getpid()
        assert not Path(one.state).exists() and YOLO(two.keep).names == {0: "blue", 1: "green"}
        whole = train(asdict(replace(two, state=None)), 3, lambda report: None)
        assert (whole["loss_curve"], whole["map"], whole["resumed_at"]) == (rest["loss_curve"], rest["map"], 0)
        alone = train(asdict(replace(one, state=None)), 3, lambda report: None)
        assert alone["loss_curve"][:2] == pytest.approx(whole["loss_curve"][:2], rel=0.01)
        assert whole["map50"] > 0 and abs(alone["map50"] - whole["map50"]) < 0.2
        taken_up = train(asdict(replace(one, state=copy)), 3, lambda report: None)
        assert taken_up["resumed_at"] == 1 and list(taken_up["loss_curve"][:1]) == whole["loss_curve"][:1]
        with pytest.raises(NasError, match="a batch of 1 images cannot be divided among 2 devices"):
            train(asdict(replace(two, batch=1)), 3, lambda report: None)
    finally:
        disband()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_cuda_devices_train_what_one_trains(job: TrainJob) -> None:
    try:
        one, two = (train(asdict(replace(job, device="cuda", devices=n)), 3, lambda report: None) for n in (1, 2))
    finally:
        disband()
    assert one["loss_curve"] == pytest.approx(two["loss_curve"], rel=0.05)


def test_equal_seeds_repeat_and_others_do_not(job: TrainJob) -> None:
    first, reports = trained(job, 1)
    torch.rand(7)  # what ran before in a warm worker does not matter
    assert trained(job, 1) == (first, reports)
    assert trained(job, 2)[0]["loss_curve"] != first["loss_curve"]
    assert reports == [{"epoch": i + 1, "epochs": 2, "loss": loss} for i, loss in enumerate(first["loss_curve"])]
    assert 0 <= first["map"] <= first["map50"] <= 1 and first["epochs"] == 2 and first["box_map"] == first["map"]


@pytest.mark.slow
def test_a_checkpoint_is_where_training_starts(job: TrainJob, tmp_path: Path) -> None:
    torch.manual_seed(3)
    YOLO("yolo11n.yaml").save(tmp_path / "stock.pt")
    start = replace(job, weights=str(tmp_path / "stock.pt"), rungs=[1])
    first = train(asdict(start), 7, lambda report: None)
    assert first["transferred"] == (493, 499)  # other classes than the checkpoint's
    again = train(asdict(start), 7, lambda report: None)
    assert {**again, "seconds": 0} == {**first, "seconds": 0}
    scratch = train(asdict(replace(start, weights=None)), 7, lambda report: None)
    assert scratch["loss_curve"] != first["loss_curve"] and "transferred" not in scratch
    told = try_weights({"model": job.model, "weights": start.weights, "names": job.names}, 0, lambda report: None)
    assert told == {"transferred": (493, 499), "fresh": True}
    wrong = try_weights({"model": job.model, "weights": job.data, "names": job.names}, 0, lambda report: None)
    assert "not a checkpoint" in wrong["fault"] and wrong["cure"]
    # a head of another width is what is timed, since it is what is trained
    payload = {"model": job.model, "target": "cpu:torch", "imgsz": 32, "allow_noisy": True}
    params = [price(payload | more, 0, lambda report: None)["params"] for more in ({}, {"weights": start.weights})]
    assert params[1] > params[0]


def test_a_segmentation_model_is_scored_by_its_masks(job: TrainJob, tmp_path: Path) -> None:
    shutil.copytree(Path(job.data).parent, tmp_path / "data")
    for label in (tmp_path / "data" / "labels").rglob("*.txt"):
        kind, *box = label.read_text().split()
        x, y = float(box[0]) - 0.25, float(box[1]) - 0.25
        label.write_text(f"{kind} {x} {y} {x + 0.5} {y} {x + 0.5} {y + 0.5} {x} {y + 0.5}\n")
    space = whole_skeleton("yolo11n-seg.yaml")
    model = model_yaml(space.skeleton, space.baseline, 2)
    segment = replace(job, model=model, data=str(tmp_path / "data" / "data.yaml"), root=str(tmp_path / "data"), rungs=[12])
    told = train(asdict(segment), 0, lambda report: None)
    assert 0.1 < told["map"] <= told["map50"] <= 1 and told["box_map"] > 0.1
    assert told["map"] != told["box_map"]
    boxes = train(asdict(replace(job, model=model)), 0, lambda report: None)
    assert "a box, where segmentation needs a polygon" in boxes["fault"] and boxes["cure"]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        pytest.param(
            {"device": "cuda"},
            UnreachableError,
            "no CUDA device found on this worker",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
        ),
        ({"lr0": 1e30}, NasError, "diverged"),
    ],
)
def test_what_cannot_be_trained(job: TrainJob, changes: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        train(asdict(replace(job, **changes)), 0, lambda report: None)


@pytest.mark.parametrize(
    ("changes", "message"), [({"data": "missing.yaml"}, "missing.yaml"), ({"held_out": 1.5}, "held-out share")]
)
def test_nothing_to_train_on_is_told_as_a_fault_of_the_search(job: TrainJob, changes: dict, message: str) -> None:
    told = train(asdict(replace(job, **changes)), 0, lambda report: None)
    assert set(told) == {"fault", "cure"} and message in told["fault"]


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


def test_what_breaks_another_limit_is_not_timed(job: TrainJob) -> None:
    payload = {"model": job.model, "target": "cpu:onnxruntime", "imgsz": 64}

    def timed(report: object) -> None:
        raise AssertionError(report)

    for name in ("params", "gmacs", "size_mb"):
        told = price(payload | {"limits": {"ms": 1.0, name: 1e-6}}, 0, timed)
        assert set(told) == {"params", "gmacs", "size_mb", "memory_mb", "end2end"}
        assert min(told[name] for name in ("params", "gmacs", "size_mb", "memory_mb")) > 0
    assert price(payload | {"limits": {"ms": 1e-6}, "allow_noisy": True}, 0, lambda _: None).items() >= told.items()
