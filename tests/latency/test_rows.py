"""The rows of architectures, worked out without torch, are those of the models that Ultralytics builds."""

import random

import pytest
import torch

from nas.errors import InputError
from nas.latency.rows import row_kinds
from nas.space.architecture import Architecture, model_yaml
from nas.space.reader import find_space, read_space
from nas.yolo.build import build

SPACES = ["demo", "yolo11n-blocks", "yolo26n-blocks", "yolov8n-blocks", "irmb-yolov10"]
LARGE = ["yolo11s-blocks", "yolo26s-blocks", "yolov8s-blocks", "efficientvit-yolov5", "mqa-yolov9c", "riformer-yolov9c"]


@pytest.mark.parametrize("name", [*SPACES, *(pytest.param(n, marks=pytest.mark.slow) for n in [*LARGE, "repvit-yolo11"])])
def test_channels_are_those_of_the_built_model(name):
    space = read_space(find_space(name))
    drawn = [space.sample(random.Random(seed), 64) for seed in range(2)]
    kinds, index = row_kinds(space.skeleton, [space.baseline, *drawn])
    for number, architecture in enumerate(drawn, start=1):
        seen = {}

        def note(layer, taken, made, seen=seen):
            seen[layer.i] = taken[0], made

        model = build(model_yaml(space.skeleton, architecture)).eval()
        for layer in model.model:
            layer.register_forward_hook(note)
        with torch.no_grad():
            model(torch.zeros(1, 3, 64, 64))
        for layer, at in enumerate(index[number]):
            kind, (taken, made) = kinds[at], seen[layer]
            inputs = taken if isinstance(taken, list) else [taken]
            assert kind.layer == layer
            assert kind.inputs == tuple(t.shape[1] for t in inputs)
            assert kind.stride == 64 // inputs[0].shape[2]
            if isinstance(made, torch.Tensor) and made.ndim == 4:
                assert kind.channels == made.shape[1]


def test_what_a_slot_holds_stands_in_its_row():
    space = read_space(find_space("yolo11n-blocks"))
    drawn = [space.sample(random.Random(seed), 160) for seed in range(50)]
    kinds, index = row_kinds(space.skeleton, drawn)
    assert len(set(kinds)) == len(kinds)
    for architecture, rows in zip(drawn, index, strict=True):
        for p in architecture.placements:
            kind = kinds[rows[p.layer]]
            module = space.skeleton.rows[p.layer].module if p.block == "keep" else p.block
            assert (kind.module, kind.channels, kind.depth, kind.heads) == (module, p.channels, p.depth, p.heads or 0)
            assert dict(kind.knobs) == dict(p.knobs)
    copies = [Architecture.from_dict(architecture.to_dict()) for architecture in drawn]
    again, where = row_kinds(space.skeleton, copies)
    assert [again[at] for at in where.ravel()] == [kinds[at] for at in index.ravel()]


def test_an_architecture_of_another_skeleton_is_refused():
    space = read_space(find_space("yolo11n-blocks"))
    with pytest.raises(InputError, match="yolov8n"):
        row_kinds(space.skeleton, [space.baseline, Architecture("yolov8n")])
