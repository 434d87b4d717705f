"""The footprint of an inference: by hand on a small model, and beside torch's own allocator and a file on the disk."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from nas.space.architecture import Architecture, model_yaml, place
from nas.space.skeleton import Skeleton, read_skeleton
from nas.yolo.build import build, export_onnx, inference_form
from nas.yolo.footprint import footprint

IMGSZ = 160


class Hand(nn.Module):
    """Small enough to follow on paper: 8 channels, one branch, an unused layer, a view, an operation in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.left, self.right = nn.Conv2d(8, 4, 1, bias=False), nn.Conv2d(8, 4, 1, bias=False)
        self.unused = nn.Linear(100, 100)
        self.register_buffer("shift", torch.ones(1, 8, 1, 1))
        self.register_buffer("steps", torch.arange(3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        both = torch.cat((self.left(y), self.right(y)), 1)
        return torch.relu_(both + self.shift).flatten(1)


def test_a_small_model_by_hand():
    pixels = 10 * 20
    found = footprint(Hand().eval(), (2, 3, 10, 20), "fp32")
    assert found.params == 3 * 8 + 8 + 2 * 8 * 4 + 100 * 101
    assert found.gmacs * 1e9 == pytest.approx(pixels * (3 * 8 + 2 * 8 * 4))
    assert found.size_mb * 1e6 == pytest.approx(4 * (3 * 8 + 8 + 2 * 8 * 4 + 8))
    # Alive at once, in channels: image 3, stem 8; stem 8, left 4, right 4; left, right, both 8; both 8, sum 8.
    assert found.memory_mb * 1e6 == pytest.approx(2 * pixels * 4 * max(3 + 8, 8 + 4 + 4, 4 + 4 + 8, 8 + 8))
    half = footprint(Hand().eval(), (2, 3, 10, 20), "fp16")
    assert (half.memory_mb, half.size_mb) == pytest.approx((found.memory_mb / 2, found.size_mb / 2))


def test_attention_written_out_keeps_its_matrix():
    class Attention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            pairs = x.flatten(2).transpose(1, 2).contiguous().unsqueeze(1)
            return nn.functional.scaled_dot_product_attention(pairs, pairs, pairs)

    whole, out = (footprint(Attention(), (1, 3, 16, 16), attention_written_out=flag) for flag in (False, True))
    assert whole.gmacs == pytest.approx(out.gmacs) and whole.gmacs * 1e9 == pytest.approx(2 * 256 * 256 * 3)
    assert whole.memory_mb < 0.1 * 256 * 256 * 4 / 1e6 < 256 * 256 * 4 / 1e6 < out.memory_mb


@pytest.fixture
def one_thread():
    """With more, a convolution takes scratch space for each."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def models() -> dict[str, dict]:
    skeleton = read_skeleton("yolo11n.yaml")
    blocks = {"backbone.P3": "repvit", "backbone.P4": "efficientvit", "backbone.P5": "mobile_mqa", "neck.topdown.P4": "irmb"}
    return {
        "blocks": model_yaml(skeleton, placed(skeleton, blocks), 8),
        **{name: model_yaml(read_skeleton(name), Architecture(name), 8) for name in NAMES},
    }


NAMES = ("yolo11n.yaml", "yolov8n.yaml", "yolov10n.yaml", "yolo26n.yaml", "yolo11n-seg.yaml")


def placed(skeleton: Skeleton, blocks: dict[str, str]) -> Architecture:
    slots = [slot for slot in skeleton.slots if slot.name in blocks]
    return Architecture(skeleton.name, tuple(place(slot, blocks[slot.name], 0.5, 1, None, {}) for slot in slots))


@pytest.mark.parametrize("name", ["blocks", *NAMES])
def test_the_file_weighs_what_is_said_and_torch_allocates_it(name: str, tmp_path: Path, one_thread: None) -> None:
    torch.manual_seed(0)
    model = inference_form(build(models()[name]))
    found = footprint(model, (1, 3, IMGSZ, IMGSZ))
    export_onnx(model, tmp_path / "model.onnx", IMGSZ)
    assert found.size_mb == pytest.approx((tmp_path / "model.onnx").stat().st_size / 1e6, rel=0.03)
    # Equal but for the scratch space of a convolution that runs at the peak.
    assert 0.99 <= allocated(model, IMGSZ) / 1e6 / found.memory_mb <= 1.2


def allocated(model: nn.Module, imgsz: int) -> int:
    """The peak of torch's own allocator while TorchScript, which frees a tensor after its last use, runs a model; in
    channels_last, in which a convolution needs no scratch space to change a layout."""
    image = torch.zeros(1, 3, imgsz, imgsz).to(memory_format=torch.channels_last)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns of Python branches in the head
        script = torch.jit.trace(model.to(memory_format=torch.channels_last), image, check_trace=False)
        for _ in range(3):
            script(image)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            script(image)
    alive = most = 0
    for event in sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            alive += event.nbytes()
            most = max(most, alive)
    return most
