"""Imitation as work: the jobs that a search sends, on a few images of the built-in set."""

from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ultralytics import YOLO

from nas.cache import cache_root
from nas.dataset.builtin import builtin_dataset
from nas.dataset.description import read_dataset
from nas.execution import work
from nas.execution.imitate import AssembleJob, ImitateJob, TeacherJob, assemble, imitate, meet
from nas.execution.validate import ValidateJob, validate
from nas.imitation import channels as imitation
from nas.imitation.alternatives import alternatives_of, differences
from nas.imitation.learn import Lessons
from nas.imitation.library import Library
from nas.space.architecture import Architecture, model_yaml
from nas.space.search_space import SearchSpace, SlotChoices
from nas.space.skeleton import read_skeleton
from nas.training.recipe import Recipe
from nas.yolo import metrics
from nas.yolo.build import build
from nas.yolo.checkpoints import save_checkpoint
from nas.yolo.weights import read_weights

LESSONS = Lessons(rounds=(1,), enough=-1e9, first=1, judged=4, training=Recipe(batch=8, lr=0.004)).plain()


def silent(_: Any) -> None: ...


def shared(tmp_path: Path, name: str) -> dict[str, Any]:
    """The fields of a `TeacherJob`: a skeleton with random weights as its teacher, and few images."""
    skeleton = read_skeleton(name)
    dataset = read_dataset(builtin_dataset(polygons="seg" in name), polygons="seg" in name)
    yaml = model_yaml(skeleton, Architecture(skeleton.name), dataset.nc)
    torch.manual_seed(0)
    save_checkpoint(build(yaml), tmp_path / "teacher.pt", dataset.names)
    where = {"data": str(dataset.yaml), "root": str(dataset.root), "cache": str(cache_root()), "imgsz": 64}
    how = {"held_out": 0.05, "split_seed": 3, "device": "cpu", "threads": 1, "fraction": 0.05}
    job = TeacherJob(yaml, str(tmp_path / "teacher.pt"), list(dataset.names), **where, **how)  # type: ignore[arg-type]
    return asdict(job)


@pytest.mark.parametrize("name", ["yolo11n.yaml", pytest.param("yolo11n-seg.yaml", marks=pytest.mark.slow)])
def test_from_a_teacher_to_a_network_that_trains_on(tmp_path: Path, name: str) -> None:
    """Blocks learn, a network with narrower slots is assembled, scored and kept, and a proxy training goes on from it."""
    skeleton, base = read_skeleton(name), shared(tmp_path, name)
    slots = (
        SlotChoices(skeleton.slot("backbone.P4"), ("keep", "repvit"), (0.5, 1.0)),
        SlotChoices(skeleton.slot("neck.topdown.P3"), ("irmb",), (0.5,)),
    )
    space = SearchSpace(skeleton, slots)
    alternatives = [a for slot in alternatives_of(space).values() for a in slot.values() if a is not None]
    plain, seen, folder = [a.plain() for a in alternatives], list[Any](), str(tmp_path / "library")
    job = ImitateJob(**base, alternatives=plain, library=folder, lessons=LESSONS)
    entries = imitate(asdict(job), 0, seen.append)["entries"]
    assert len(entries) == 4 and not any(entry["dropped"] for entry in entries.values()) and seen[0]["students"] == 4
    architecture = next(a for a in space.enumerate() if len(a.placements) == 2 and a.placements[0].channels == 64)
    model = model_yaml(skeleton, architecture, len(base["names"]))
    library = Library(Path(folder))
    rise = library.rise(differences(model, base["skeleton"]))
    assert rise == pytest.approx(sum(entries[a.key]["rise"] for a in differences(model, base["skeleton"])))
    keep = tmp_path / "assembled.pt"
    told = assemble(asdict(AssembleJob(**base, model=model, library=folder, keep=str(keep), settle=1)), 0, silent)
    assert 0 <= told["map"] <= told["map50"] <= 1 and told["unfit"] == [23]  # the head, whose width follows its first input
    assert YOLO(keep).model.names == dict(enumerate(base["names"]))
    same = {field.name: base[field.name] for field in fields(work.TrainJob) if field.name in base}
    train = work.TrainJob(model, rungs=[1], batch=8, lr0=0.0, weights=str(keep), keep=str(tmp_path / "on.pt"), **same)
    went_on = work.train(asdict(train), 0, silent)
    where = {name: base[name] for name in ("data", "root", "cache", "imgsz", "device", "threads")}
    scored = validate(asdict(ValidateJob(str(keep), polygons="seg" in name, **where)), 0, silent)
    assert 0 <= scored["map"] <= scored["map50"] <= 1 and scored["images"] == len(read_dataset(Path(base["data"])).val)
    whole = len(build(model).state_dict())
    assert tuple(went_on["transferred"]) == (whole, whole)
    before, after = (dict(read_weights(path).named_parameters()) for path in (keep, tmp_path / "on.pt"))
    assert all(torch.equal(p, after[n]) for n, p in before.items())


@pytest.mark.parametrize(("maps", "settled"), [([0.1, 0.2], True), ([0.2, 0.1], False), ([0.3], False)])
def test_norms_are_settled_where_that_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, maps: list[float], settled: bool
) -> None:
    """Below the mAP that is good enough both are scored, and the better one is kept."""
    base, scores = shared(tmp_path, "yolo11n.yaml"), iter(maps)

    def evaluate(*_: object, **__: object) -> SimpleNamespace:
        score = next(scores)
        return SimpleNamespace(fitness=SimpleNamespace(map=score, map50=score), boxes=SimpleNamespace(map=score))

    monkeypatch.setattr("nas.yolo.metrics.evaluate", evaluate)
    keep = tmp_path / "assembled.pt"
    job = AssembleJob(**base, model=base["skeleton"], library=str(tmp_path / "l"), keep=str(keep), settle=1, unless=0.25)
    assert assemble(asdict(job), 0, silent)["map"] == max(maps) and next(scores, None) is None
    teacher, made = (dict(read_weights(path).named_buffers()) for path in (Path(base["teacher"]), keep))
    assert any(not torch.equal(value, made[name]) for name, value in teacher.items() if "running" in name) is settled


def test_a_teacher_that_has_left_out_this_split_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nas.imitation.teacher.refuse_worthless", lambda _: None)
    base = shared(tmp_path, "yolo11n.yaml")
    same = {field.name: base[field.name] for field in fields(work.TrainJob) if field.name in base}
    keep = str(tmp_path / "trained.pt")
    job = work.TrainJob(base["skeleton"], rungs=[1], batch=8, lr0=0.0, keep=keep, **{**same, "left_out": "data 0.05 3"})
    work.train(asdict(job), 0, silent)
    given = ((keep, "data 0.05 3"), (keep, "data 0.05 4"), (keep, None), (base["teacher"], "data 0.05 3"))
    told = [meet({**base, "teacher": path, "left_out": split}, 0, silent)["left_out"] for path, split in given]
    assert told == [True, False, False, False]
    tried = [work.WeightsJob(base["skeleton"], path, base["names"], left_out=split) for path, split in given]
    assert [work.try_weights(asdict(job), 0, silent)["fresh"] for job in tried] == told
    assert YOLO(keep).model.names == dict(enumerate(base["names"]))  # and Ultralytics takes no offence


def test_out_of_memory_looks_at_fewer_images_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything learns, and where a network is scored."""
    base, real, scored, looked = shared(tmp_path, "yolo11n.yaml"), metrics.evaluate, list[int](), list[int]()

    def evaluate(*given: Any, batch: int, **more: Any) -> Any:
        scored.append(batch)
        if batch > 8:
            raise torch.OutOfMemoryError
        return real(*given, batch=batch, **more)

    def importance(teacher: Any, batches: Sequence[Any]) -> Any:
        looked.append(len(batches[0]["img"]))
        if looked[-1] > 2:
            raise torch.OutOfMemoryError
        return channels(teacher, batches)

    channels = imitation.importance_of
    monkeypatch.setattr(metrics, "evaluate", evaluate)
    monkeypatch.setattr(imitation, "importance_of", importance)
    skeleton = read_skeleton("yolo11n.yaml")
    space = SearchSpace(skeleton, (SlotChoices(skeleton.slot("backbone.P5"), ("repvit",), (1.0,)),))
    architecture = next(a for a in space.enumerate() if a.placements)
    model = model_yaml(skeleton, architecture, len(base["names"]))
    job = AssembleJob(**base, model=model, library=str(tmp_path / "l"), lessons=LESSONS)
    assert assemble(asdict(job), 0, silent)["map"] >= 0
    assert looked == [8, 4, 2] and scored == [32, 16, 8]


def test_a_teacher_is_met_before_anything_learns_from_it(tmp_path: Path) -> None:
    base = shared(tmp_path, "yolo11n.yaml")
    assert "there is nothing to imitate" in meet(base, 0, silent)["fault"]
    fewer = {**base, "names": ["cell"], "skeleton": {**base["skeleton"], "nc": 1}}
    assert "it knows 8 classes" in meet(fewer, 0, silent)["shortfall"]
    torn = tmp_path / "torn.pt"
    torn.write_bytes(b"not a checkpoint")
    told = meet({**base, "teacher": str(torn)}, 0, silent)
    assert "is not opened" in told["fault"] and told["cure"]
