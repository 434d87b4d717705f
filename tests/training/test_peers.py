"""A training divided among devices is the training of one device: CPUs here, through the code that GPUs take."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import peer_work
import pytest
import torch
from safetensors.torch import load_file

from nas.errors import InputError
from nas.execution.gang import Gang
from nas.training.peers import Peers
from nas.training.proxy import Training
from nas.training.recipe import Recipe


@pytest.fixture(scope="module")
def two() -> Iterator[Gang]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
        gang = Gang(2)
    yield gang
    gang.close()


@pytest.mark.parametrize("skeleton", ["yolo11n.yaml", pytest.param("yolo26n-seg.yaml", marks=pytest.mark.slow)])
def test_steps_of_two_are_steps_of_one(two: Gang, skeleton: str, tmp_path: Path) -> None:
    """Five images in a batch, so three and two; mosaics, images without objects, batch norms that see all of them, and for the
    second model masks and an end-to-end head with two losses."""
    payload = {"skeleton": skeleton, "out": str(tmp_path / "two")}
    together = two.run("peer_work:steps", payload, 5, lambda _: None)
    alone = peer_work.steps({**payload, "out": str(tmp_path / "one"), "count": 1}, 5, lambda _: None)
    assert (together["images"], alone["images"]) == (3, 5)
    one, other = load_file(tmp_path / "one"), load_file(tmp_path / "two")
    assert one.keys() == other.keys(), "who has a gradient"

    def apart(kind: str, origin: dict[str, torch.Tensor]) -> float:
        """How far apart two devices' tensors of a kind are from one's, as a share of how far these are from `origin`."""
        names = [name for name in one if name.startswith(kind)]
        far = torch.cat([(one[name] - other[name]).flatten() for name in names]).double().norm()
        moved = torch.cat([(one[name] - origin.get(name, torch.zeros(()))).flatten() for name in names]).double().norm()
        return float(far / moved)

    start = {f"weight.{name}": p.detach() for name, p in peer_work.model_of(skeleton).named_parameters()}
    assert together["loss"] == pytest.approx(alone["loss"], rel=1e-6)
    assert apart("gradient", {}) < 1e-6
    assert apart("norm", {}) < 1e-12
    assert apart("weight", start) < 1e-3
    assert together["curve"] == pytest.approx(alone["curve"], rel=1e-4)
    assert together["map50"] == pytest.approx(alone["map50"], abs=1e-3)


def test_fewer_images_than_devices() -> None:
    model, found = peer_work.model_of("yolo11n.yaml"), peer_work.images(3, polygons=False)
    with pytest.raises(InputError, match="a batch of 3 images cannot be divided among 4 devices"):
        Training(model, found, Recipe(batch=8), [1], 0, peer_work.CPU, torch.float32, Peers(1, 4))


def test_parts_of_a_batch() -> None:
    assert [[Peers(rank, 3).part(total) for rank in range(3)] for total in (8, 3)] == [
        [slice(0, 3), slice(3, 6), slice(6, 8)],
        [slice(0, 1), slice(1, 2), slice(2, 3)],
    ]
