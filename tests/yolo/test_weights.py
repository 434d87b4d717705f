"""Weights from a checkpoint: what an architecture kept gets them, what it replaced does not, and no checkpoint runs code."""

import logging
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from ultralytics import YOLO
from ultralytics.utils import LOGGER

from nas.blocks.catalog import CATALOG
from nas.errors import InputError
from nas.space.architecture import Architecture, model_yaml, place
from nas.space.skeleton import Skeleton, read_skeleton
from nas.yolo.build import build
from nas.yolo.weights import check, read_weights, transfer

SKELETON = read_skeleton("yolo11n.yaml")
BASELINE = Architecture(SKELETON.name)


def placed(blocks: dict[str, str], width: float = 1.0, skeleton: Skeleton = SKELETON) -> Architecture:
    placements = (place(skeleton.slot(slot), block, width, 1, None, {}) for slot, block in blocks.items())
    return Architecture(skeleton.name, tuple(p for p in placements if p is not None))


EVERY_BLOCK = placed(dict(zip([slot.name for slot in SKELETON.slots], CATALOG, strict=False)))


def built(architecture: Architecture, nc: int = 80, skeleton: Skeleton = SKELETON, seed: int = 5) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build(model_yaml(skeleton, architecture, nc))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints as Ultralytics saves them: of stock models, and of one with every block."""
    folder = tmp_path_factory.mktemp("weights")
    for number, name in enumerate(("yolo11n", "yolo11n-seg", "yolo11s", "yolo26n-seg")):
        torch.manual_seed(number)
        YOLO(f"{name}.yaml").save(folder / f"{name}.pt")
    yolo = YOLO("yolo11n.yaml")
    yolo.model = built(EVERY_BLOCK, seed=9)
    yolo.save(folder / "blocks.pt")
    return folder


def taken(model: torch.nn.Module, source: torch.nn.Module) -> set[str]:
    """The tensors of a model that are those of `source`."""
    theirs = source.state_dict()
    return {name for name, t in model.state_dict().items() if name in theirs and torch.equal(t, theirs[name])}


@pytest.mark.parametrize("name", ["yolo11n", "yolo11n-seg", "yolo26n-seg"])
def test_an_unchanged_architecture_takes_everything(folder: Path, name: str) -> None:
    skeleton = read_skeleton(f"{name}.yaml")
    source = read_weights(folder / f"{name}.pt")
    model = built(Architecture(skeleton.name), skeleton=skeleton)
    whole = len(model.state_dict())
    assert check(folder / f"{name}.pt", model) == (whole, whole)
    assert taken(model, source) == set(model.state_dict())


@pytest.mark.parametrize("nc", [80, 3])
@pytest.mark.parametrize("architecture", [BASELINE, placed({"backbone.P3": "repvit", "neck.topdown.P4": "irmb"})])
def test_it_counts_as_ultralytics_does(folder: Path, caplog: pytest.LogCaptureFixture, nc: int, architecture) -> None:
    source = read_weights(folder / "yolo11n.pt")
    ours, theirs = built(architecture, nc), built(architecture, nc)
    found = transfer(ours, source)
    LOGGER.addHandler(caplog.handler)
    LOGGER.setLevel(logging.INFO)
    try:
        theirs.load(source)
    finally:
        LOGGER.removeHandler(caplog.handler)
    assert found == tuple(map(int, re.search(r"Transferred (\d+)/(\d+) items", caplog.text).groups()))
    assert taken(ours, source) == taken(theirs, source)
    if architecture is BASELINE:
        assert found == {80: (499, 499), 3: (493, 499)}[nc]


def test_a_replaced_slot_takes_nothing_and_a_kept_layer_everything(folder: Path) -> None:
    source = read_weights(folder / "yolo11n.pt")
    model, fresh = built(EVERY_BLOCK), built(EVERY_BLOCK)
    count, whole = transfer(model, source)
    replaced = tuple(f"model.{p.layer}." for p in EVERY_BLOCK.placements)
    kept = {name for name in model.state_dict() if not name.startswith(replaced)}
    assert (count, whole) == (len(kept), len(model.state_dict()))
    assert kept <= taken(model, source)
    assert {name for name in model.state_dict() if name.startswith(replaced)} <= taken(model, fresh)


def test_a_block_takes_weights_from_the_same_block_of_the_same_shape_alone(folder: Path) -> None:
    source = read_weights(folder / "blocks.pt")
    same, wider = built(EVERY_BLOCK), built(placed({p.slot: p.block for p in EVERY_BLOCK.placements}, 1.5))
    assert transfer(same, source) == (len(same.state_dict()),) * 2
    others = built(placed({p.slot: "repvit" if p.block != "repvit" else "irmb" for p in EVERY_BLOCK.placements}))
    for model in (wider, others, built(BASELINE)):
        before = {name: t.clone() for name, t in model.state_dict().items()}
        count, _ = transfer(model, source)
        moved = {name for name, t in model.state_dict().items() if not torch.equal(t, before[name])}
        assert 0 < len(moved) <= count
        assert not any(name.startswith(tuple(f"model.{p.layer}." for p in EVERY_BLOCK.placements)) for name in moved)


def test_a_source_gives_the_same_to_every_trial(folder: Path) -> None:
    source = read_weights(folder / "yolo11n.pt")
    assert source is read_weights(folder / "yolo11n.pt")  # read once in a worker
    before = {name: t.clone() for name, t in source.state_dict().items()}
    transfer(built(EVERY_BLOCK, 3), source)
    assert all(torch.equal(t, before[name]) for name, t in source.state_dict().items())
    models = []
    for seed in (1, 1, 2):  # what a head of other classes draws anew follows torch's generator
        models.append(built(BASELINE, 3, seed=seed))
        transfer(models[-1], source)
    assert taken(*models[:2]) == set(models[0].state_dict())
    drawn = set(models[0].state_dict()) - taken(*models[1:])
    assert drawn == {f"model.23.cv3.{level}.2.weight" for level in range(3)}


class Evil:
    def __reduce__(self) -> tuple:
        return os.mkdir, (os.environ["EVIL"],)


@pytest.mark.parametrize(
    ("name", "what", "cure"),
    [
        ("yolo11n-seg", "a checkpoint for segment, but the skeleton is for detect", "for detect"),
        ("yolo11s", "fits no layer of the skeleton's backbone", "of its scale"),
        ("text", "not a checkpoint of Ultralytics", "best.pt"),
        ("empty", "not a checkpoint of Ultralytics", "best.pt"),
        ("torn", "not a checkpoint of Ultralytics, or damaged", "best.pt"),
        ("zip", "not a checkpoint of Ultralytics", "best.pt"),
        ("state", "not a checkpoint of Ultralytics", "best.pt"),
        ("list", "not a checkpoint of Ultralytics", "best.pt"),
        ("tensor", "holds a Tensor, not a model", "best.pt"),
        ("fused", "fused for inference", "made from"),
        ("evil", "holds classes that are not of Ultralytics, torch or nas", "best.pt"),
    ],
)
def test_what_cannot_be_used_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, what: str, cure: str
) -> None:
    monkeypatch.setenv("EVIL", str(tmp_path / "was-run"))
    path, stock = tmp_path / f"{name}.pt", YOLO("yolo11n.yaml")
    if name.startswith("yolo"):
        path = folder / f"{name}.pt"
    elif name == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a", "b")
    elif name == "fused":
        stock.model.fuse(verbose=False)
        stock.save(path)
    elif name in {"text", "empty", "torn"}:
        whole = (folder / "yolo11n.pt").read_bytes()
        path.write_bytes({"text": b"hello", "empty": b"", "torn": whole[: len(whole) // 2]}[name])
    else:
        known = {"state": stock.model.state_dict(), "list": [1], "tensor": {"model": torch.zeros(3)}, "evil": {"model": Evil()}}
        torch.save(known[name], path)
    with pytest.raises(InputError) as caught:
        check(path, built(BASELINE))
    assert str(path) in caught.value.message and what in caught.value.message and cure in caught.value.hint
    assert "\n" not in caught.value.message
    assert not (tmp_path / "was-run").exists()


SAFE = """
import sys
from pathlib import Path
from nas.space.architecture import Architecture, model_yaml
from nas.space.skeleton import read_skeleton
from nas.yolo.build import build
from nas.yolo.weights import check
skeleton = read_skeleton("yolo11n.yaml")
for path in sys.argv[1:]:
    print(*check(Path(path), build(model_yaml(skeleton, Architecture(skeleton.name)))))
"""


def test_with_safe_loading_of_ultralytics_too(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", SAFE, str(folder / "yolo11n.pt"), str(folder / "blocks.pt")]
    environment = {**os.environ, "ULTRALYTICS_SAFE_LOAD": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    count, of = check(folder / "blocks.pt", built(BASELINE))
    assert 200 < count < of == 499  # what stands in no slot
    assert done.stdout.split() == ["499", "499", str(count), str(of)]
