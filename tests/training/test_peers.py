"""A training divided among devices is the training of one device: CPUs here, through the code that GPUs take."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import peer_work
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from nas.errors import InputError
from nas.execution.gang import Gang
from nas.training.batch_norm import together
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


@pytest.mark.parametrize(
    "skeleton", [pytest.param(name, marks=pytest.mark.slow) for name in ("yolo11n.yaml", "yolo26n-seg.yaml")]
)
def test_steps_of_two_are_steps_of_one(two: Gang, skeleton: str, tmp_path: Path) -> None:
    """Five images in a batch, so three and two; mosaics, images without objects, batch norms that see all of them, and for the
    second model masks and an end-to-end head with two losses; a teacher whose term is divided by a sum over the batch."""
    payload = {"skeleton": skeleton, "out": str(tmp_path / "two")}
    divided = two.run("peer_work:steps", payload, 5, lambda _: None)
    alone = peer_work.steps({**payload, "out": str(tmp_path / "one"), "count": 1}, 5, lambda _: None)
    assert (divided["images"], alone["images"]) == (3, 5)
    one, other = load_file(tmp_path / "one"), load_file(tmp_path / "two")
    assert one.keys() == other.keys(), "who has a gradient"

    def apart(kind: str, origin: dict[str, torch.Tensor]) -> float:
        """How far apart two devices' tensors of a kind are from one's, as a share of how far these are from `origin`."""
        names = [name for name in one if name.startswith(kind)]
        far = torch.cat([(one[name] - other[name]).flatten() for name in names]).double().norm()
        moved = torch.cat([(one[name] - origin.get(name, torch.zeros(()))).flatten() for name in names]).double().norm()
        return float(far / moved)

    start = {f"weight.{name}": p.detach() for name, p in peer_work.model_of(skeleton).named_parameters()}
    assert divided["loss"] == pytest.approx(alone["loss"], rel=1e-6)
    assert apart("gradient", {}) < 1e-6
    assert apart("norm", {}) < 1e-12
    assert apart("weight", start) < 1e-3
    assert divided["curve"] == pytest.approx(alone["curve"], rel=1e-4)
    assert divided["map50"] == pytest.approx(alone["map50"], abs=1e-3)


class Twins(Peers):
    """Two who have the same part."""

    def __init__(self) -> None:
        super().__init__(0, 2)

    def each(self, value: torch.Tensor) -> torch.Tensor:
        return torch.stack([value, value])

    def total(self, values: torch.Tensor) -> torch.Tensor:
        return values.mul_(2)


@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("affine", [True, False])
def test_a_norm_of_two_is_torchs_of_both(dtype: torch.dtype, near: float, affine: bool) -> None:
    """Values, gradients and running statistics, in the precisions of a training; means far from 0."""
    torch.manual_seed(0)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    part = (torch.randn(3, 4, 5, 5, dtype=wide) * 2 + 5).to(dtype).to(memory_format=torch.channels_last)
    slope = torch.randn(3, 4, 5, 5, dtype=wide).to(dtype)
    found = []
    for peers, x, along in ((Twins(), part, slope), (Peers(), torch.cat([part, part]), torch.cat([slope, slope]))):
        norm, seen = nn.BatchNorm2d(4, momentum=0.3, affine=affine, dtype=wide), x.clone().requires_grad_()
        with torch.no_grad():
            for parameter in norm.parameters():
                parameter.copy_(torch.tensor([0.5, -1.0, 2.0, 1.5]))
        with together(norm, peers):
            y = norm(seen)
            (y * along).sum().backward()
        gradients = [p.grad * peers.count for p in norm.parameters()]  # as they are added up
        found.append([y[:3], seen.grad[:3], norm.running_mean, norm.running_var, *gradients])
        assert norm.num_batches_tracked == 1 and y.dtype == seen.grad.dtype == dtype
    for ours, torchs in zip(*found, strict=True):
        torch.testing.assert_close(ours.double(), torchs.double(), rtol=near, atol=near * 5)


def test_fewer_images_than_devices() -> None:
    model, found = peer_work.model_of("yolo11n.yaml"), peer_work.images(3, polygons=False)
    with pytest.raises(InputError, match="a batch of 3 images cannot be divided among 4 devices"):
        Training(model, found, Recipe(batch=8), [1], 0, peer_work.CPU, torch.float32, Peers(1, 4))


def test_parts_of_a_batch() -> None:
    assert [[Peers(rank, 3).part(total) for rank in range(3)] for total in (8, 3)] == [
        [slice(0, 3), slice(3, 6), slice(6, 8)],
        [slice(0, 1), slice(1, 2), slice(2, 3)],
    ]
