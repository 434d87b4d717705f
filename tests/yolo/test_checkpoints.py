"""Checkpoints with our blocks: what stands in the file, who can load it, and what loading never does."""

from __future__ import annotations

import copy
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from ultralytics import YOLO

from nas.blocks.catalog import ROWS
from nas.errors import InputError
from nas.space.architecture import Architecture, model_yaml, place
from nas.space.skeleton import read_skeleton
from nas.yolo.stage import Stage


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    skeleton = read_skeleton("yolo11n.yaml")
    wanted = {"backbone.P4": "repvit", "backbone.P5": "mobile_mqa", "neck.topdown.P3": "irmb"}
    placed = [place(skeleton.slot(slot), block, 0.5, 1, None, {}) for slot, block in wanted.items()]
    folder = tmp_path_factory.mktemp("checkpoint")
    data = model_yaml(skeleton, Architecture(skeleton.name, tuple(p for p in placed if p)), 3)
    (folder / "winner.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")
    YOLO(str(folder / "winner.yaml")).save(folder / "winner.pt")
    return folder / "winner.pt"


def fresh(code: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)


def test_a_checkpoint_names_nothing_of_ours_that_could_be_installed(checkpoint: Path) -> None:
    named = {name.split(".")[0] for name in torch.serialization.get_unsafe_globals_in_checkpoint(checkpoint)}
    with torch.serialization.safe_globals([]):
        named |= {name.split(".")[0] for name in torch.serialization.get_unsafe_globals_in_checkpoint(checkpoint)}
    assert "nas" not in named
    assert named - {"_yolo_placement_search"} <= {"ultralytics", "torch", "builtins", "collections"}


WITHOUT_US = """
import sys
class Absent:  # this package is not installed here
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"nas", "_yolo_placement_search"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
from ultralytics.utils import checks
checks.ONLINE = True  # so that it does try to install; PIP_NO_INDEX keeps the network out of it
from ultralytics import YOLO
YOLO(sys.argv[1])
"""


def test_without_us_loading_installs_nothing_and_says_what_is_missing(checkpoint: Path) -> None:
    done = fresh(WITHOUT_US, checkpoint, YOLO_AUTOINSTALL="True", YOLO_VERBOSE="True", PIP_NO_INDEX="1", UV_OFFLINE="1")
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named '_yolo_placement_search'"
    told = done.stdout + done.stderr
    assert "attempting AutoUpdate" in told  # it was tried, with the true pip or uv …
    assert "Invalid requirement" in told or "Failed to parse" in told  # … which refused the name itself


SAFELY = """
import sys, torch, nas.yolo
from ultralytics import YOLO
model = YOLO(sys.argv[1]).model.eval()
with torch.no_grad():
    torch.save(model(torch.linspace(0, 1, 3 * 64 * 96).reshape(1, 3, 64, 96))[0], sys.argv[2])
"""


def test_restricted_loading_knows_our_blocks(checkpoint: Path, tmp_path: Path) -> None:
    done = fresh(SAFELY, checkpoint, tmp_path / "out.pt", ULTRALYTICS_SAFE_LOAD="1")
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        expected = YOLO(checkpoint).model.eval()(torch.linspace(0, 1, 3 * 64 * 96).reshape(1, 3, 64, 96))[0]
    torch.testing.assert_close(torch.load(tmp_path / "out.pt"), expected, rtol=1e-4, atol=1e-3)


def through_a_file(stage: Stage) -> Stage:
    file = io.BytesIO()
    torch.save(stage, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("row", ROWS)
def test_every_stage_comes_back_as_it_was(row: str) -> None:
    torch.manual_seed(0)
    stage = Stage(row, 16, 32, 2 if ROWS[row].stride == 1 else 1)
    stage.i, stage.f, stage.type, stage.np = 4, [-1, 2], row, 7
    x = torch.rand(2, 16, 8, 12)
    stage(x)  # in training mode: the norms have seen something
    before = torch.get_rng_state()
    for change in (lambda s: s, Stage.eval, Stage.half, lambda s: s.float().fuse() or s):
        stage = change(stage)
        for again in (through_a_file(stage), copy.deepcopy(stage)):
            assert (again.i, again.f, again.type, again.np) == (4, [-1, 2], row, 7)
            assert again.training == stage.training
            assert again.fused == stage.fused
            old, new = stage.state_dict(), again.state_dict()
            assert list(old) == list(new)
            assert all(old[name].dtype == new[name].dtype and torch.equal(old[name], new[name]) for name in old)
            assert all(old[name].data_ptr() != new[name].data_ptr() for name in old if old[name].numel())
            assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in stage.parameters()]
    assert torch.equal(torch.get_rng_state(), before)
    with torch.no_grad():
        assert torch.equal(again.eval()(x), stage.eval()(x))


def test_a_block_that_is_not_there_is_named() -> None:
    import _yolo_placement_search

    made_of, *others = Stage("RepViT", 8, 8, 1).__reduce__()[1]
    with pytest.raises(InputError, match="holds a block 'RepVitt'"):
        _yolo_placement_search.restore({**made_of, "row": "RepVitt"}, *others)
    with pytest.raises(InputError, match="'RepViT' cannot be rebuilt"):
        _yolo_placement_search.restore({**made_of, "depth": 2}, *others)
