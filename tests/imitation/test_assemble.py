"""Assembled networks: the teacher where nothing is replaced, the teacher with channels at zero where slots are narrow."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn

from nas.imitation.alternatives import Alternative, alternative_of, differences, rows_of
from nas.imitation.assemble import Assembler
from nas.imitation.channels import Widths, importance_of
from nas.space.architecture import Architecture, Placement, model_yaml, place
from nas.space.reader import find_space, read_space
from nas.space.skeleton import read_skeleton
from nas.training.augment import Augmentation, Batches, generator_of
from nas.yolo.build import build
from nas.yolo.slot import build_layer, output_channels, predictions_of, predictions_with_fixed_norms, read_from

from .conftest import draw, trained

CPU = torch.device("cpu")


def importances(teacher: Any, seed: int = 3) -> dict[int, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {layer: torch.rand(count, generator=random) for layer, count in enumerate(output_channels(teacher))}


def predicted(model: Any, x: torch.Tensor) -> list[torch.Tensor]:
    """What the head predicts, before it is decoded: logits and distances, by name."""
    with torch.no_grad():
        found = predictions_with_fixed_norms(model, x)
    return [part for name in sorted(found) for part in logits(found[name]) if name != "feats"]


def logits(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    parts = [value[name] for name in sorted(value) if name != "feats"] if isinstance(value, dict) else list(value)
    return [tensor for part in parts for tensor in logits(part)]


@pytest.mark.parametrize("name", ["yolo11n.yaml", "yolov8n-seg.yaml", "yolo26n-seg.yaml", "yolov9t.yaml", "yolov10n.yaml"])
def test_nothing_replaced_is_the_teacher(name: str) -> None:
    yaml, teacher = trained(name)
    made = Assembler(yaml, teacher.model, Widths(yaml, {}), lambda _: {}).assemble(yaml)
    x = torch.rand(2, 3, 64, 96)
    assert all(map(torch.equal, predicted(made.model, x), predicted(teacher.model, x))) and not made.unfit


@pytest.mark.parametrize("name", ["yolo11n.yaml", "yolov8n-seg.yaml", "yolo26n-seg.yaml", "yolov9t.yaml", "yolov10n.yaml"])
def test_a_model_goes_on_from_any_layer(name: str) -> None:
    """Given what the later layers read of the earlier ones, and what Ultralytics' own pass predicts."""
    teacher = trained(name)[1].model
    x, head = torch.rand(2, 3, 64, 96), teacher.model[-1]
    with torch.no_grad():
        marked = [head, *([head.proto] if hasattr(head, "proto") else [])]
        for module in marked:
            module.training = True
        own = [part for n, value in sorted(teacher.predict(x).items()) for part in logits(value) if n != "feats"]
        for module in marked:
            module.training = False
        for first in range(len(teacher.model)):
            found = predictions_of(teacher.model[first:], teacher.save, read_from(teacher, first, x))
            parts = [part for n, value in sorted(found.items()) for part in logits(value) if n != "feats"]
            assert len(parts) == len(own) > 1 and all(map(torch.equal, parts, own))


class Masked(nn.Module):
    """A teacher's layer whose output channels are zero but for some."""

    def __init__(self, layer: Any, kept: torch.Tensor) -> None:
        super().__init__()
        self.layer, self.kept = layer, kept
        self.i, self.f, self.type = layer.i, layer.f, layer.type

    def forward(self, x: Any) -> torch.Tensor:
        y = self.layer(x)
        return torch.zeros_like(y).index_copy_(1, self.kept, y[:, self.kept])


@pytest.mark.parametrize(
    "name",
    [
        "yolo11n.yaml",
        "yolov8n-seg.yaml",
        *(
            pytest.param(f"{name}.yaml", marks=pytest.mark.slow)
            for name in ("yolov8n", "yolov5n", "yolo26n-seg", "yolov9c", "yolov10s")
        ),
    ],
)
@pytest.mark.parametrize("width", [0.5, pytest.param(1.5, marks=pytest.mark.slow)])
def test_slicing_equals_masking(name: str, width: float) -> None:
    """Every slot in turn writes half of its channels, or half of them twice."""
    yaml, teacher = trained(name)
    skeleton = read_skeleton(name)
    widths = Widths(yaml, importances(teacher.model))
    x, compared = torch.rand(1, 3, 64, 64, dtype=torch.float64), 0
    for slot in skeleton.slots:
        placement = place(slot, "repvit", width, None, None, {})
        if slot.fixed or placement is None:
            continue
        index = widths.index(slot.layer, placement.channels)

        class Cut(nn.Module):
            """Stands in for a library block that imitates perfectly."""

            def __init__(self, layer: Any, index: torch.Tensor = index) -> None:
                super().__init__()
                self.layer, self.index = layer, index
                self.i, self.f, self.type = layer.i, layer.f, layer.type

            def forward(self, x: Any) -> torch.Tensor:
                return self.layer(x)[:, self.index]

        model = build(model_yaml(skeleton, Architecture(skeleton.name, (placement,)), 3)).eval()
        stage = dict(model.model[slot.layer].state_dict())
        made = Assembler(yaml, teacher.model, widths, lambda _, stage=stage: stage).assemble(model.yaml)
        made.model.model[slot.layer] = Cut(deepcopy(teacher.model.model[slot.layer]))
        expected = build(yaml).eval()
        expected.load_state_dict(teacher.model.state_dict())
        expected.model[slot.layer] = Masked(expected.model[slot.layer], index.unique())
        # what follows the width of its input is cut in its own hidden layers, and cannot be the same
        follows = {"SPPF", type(teacher.model.model[-1]).__name__}
        assert all(width < 1 and type(teacher.model.model[layer]).__name__ in follows for layer in made.unfit) or "26" in name
        if not made.unfit:
            compared += 1
            for found, wanted in zip(predicted(made.model.double(), x), predicted(expected.double(), x), strict=True):
                torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6 * float(wanted.abs().max()))
    assert compared > 2


def test_narrower_choices_are_parts_of_wider_ones() -> None:
    yaml, teacher = trained("yolov9c.yaml")
    for widths in (Widths(yaml, importances(teacher.model)),):
        half, most, all_, more = (set(widths.index(4, count).tolist()) for count in (256, 384, 512, 640))
        assert half < most < all_ == more == set(range(512))
        assert sum(i < 256 for i in half) == 128  # ADown reads halves


def test_importance_finds_the_channels_that_count() -> None:
    _, teacher = trained("yolo11n.yaml")
    reader = teacher.model.model[5].conv  # reads layer 4 alone beside a Concat
    joined = teacher.model.model[16].cv1.conv  # reads layer 4 after the 128 channels of layer 13
    with torch.no_grad():
        reader.weight[:, 7] = 0
        joined.weight[:, 128 + 7] = 0
    batch = Batches(draw(8, 64, 0), CPU).make(torch.arange(8), Augmentation(), generator_of(0))
    found = importance_of(teacher.model, [batch])[4]
    assert found[7] == 0 and (found > 0).sum() > 100
    assert all(not p.requires_grad and p.grad is None for p in teacher.model.parameters())


def test_a_layer_on_its_own_is_the_layer_in_its_model() -> None:
    space = read_space(find_space("yolo11n-blocks"))
    yaml = model_yaml(space.skeleton, space.baseline, 3)
    channels = {slot.layer: slot.row.c1 for slot in space.skeleton.slots}
    for choices in space.slots[1:6:2]:
        for option in list(choices.options)[::17]:
            if option is None:
                continue
            alternative = alternative_of(space, option)
            whole = model_yaml(space.skeleton, Architecture(space.skeleton.name, (option,)), 3)
            assert differences(whole, yaml) == [alternative]
            in_model = build(whole).model[alternative.layer]
            alone = build_layer(yaml, alternative.row, channels[alternative.layer])
            assert {n: t.shape for n, t in alone.state_dict().items()} == {n: t.shape for n, t in in_model.state_dict().items()}
            assert type(alone) is type(in_model)
            norms = [[m.eps for m in each.modules() if isinstance(m, nn.BatchNorm2d)] for each in (alone, in_model)]
            assert norms[0] == norms[1]


def test_blocks_that_lose_their_stem_are_named() -> None:
    """Layer 13 at half width leaves layer 19 an input as wide as its output: a block has no stem there."""
    skeleton = read_skeleton("yolo11n.yaml")
    yaml, teacher = trained("yolo11n.yaml")
    slots = {slot.layer: slot for slot in skeleton.slots}
    narrow, whole = place(slots[13], "keep", 0.5, None, None, {}), place(slots[19], "riformer", 1.0, None, None, {})
    assert isinstance(narrow, Placement) and isinstance(whole, Placement)
    both = model_yaml(skeleton, Architecture(skeleton.name, (narrow, whole)), 3)

    def block(alternative: Alternative) -> dict[str, torch.Tensor]:
        width = {13: slots[13].row.c1, 19: slots[19].row.c1}[alternative.layer]
        return dict(build_layer(yaml, alternative.row, width).state_dict())

    made = Assembler(yaml, teacher.model, Widths(yaml, importances(teacher.model)), block).assemble(both)
    assert made.unfit == (19,)
    assert len(rows_of(both)) == len(made.model.model)
