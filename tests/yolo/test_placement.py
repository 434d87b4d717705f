"""Blocks in the slots of Ultralytics' skeletons: resolved YAMLs equal the stock models, every block fits every slot."""

import itertools
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from steps import train_step
from ultralytics import YOLO
from ultralytics.nn import tasks
from ultralytics.utils.torch_utils import intersect_dicts

import nas.yolo
from nas.blocks.catalog import CATALOG, ROWS
from nas.errors import InputError
from nas.space.architecture import KEEP, Architecture, model_yaml, place
from nas.space.skeleton import Skeleton, read_skeleton
from nas.yolo.build import build
from nas.yolo.stage import Stage

SMALL = "yolov5n yolov8n yolov9t yolov10n yolo11n yolo12n yolo26n".split()
HEADS = (
    "yolov8n-seg yolov8n-pose yolov8n-obb yolov8n-cls yolov9c-seg yolo11n-seg yolo11n-pose yolo11n-obb yolo11n-cls "
    "yolo12n-seg yolo12n-pose yolo12n-obb yolo12n-cls yolo26n-seg yolo26n-pose yolo26n-obb yolo26n-cls yolo26n-sem "
    "yolo26n-depth"
).split()
SHAPES = "yolov5n-p6 yolov8n-p2 yolov8n-p6 yolov8n-ghost yolov8n-ghost-p2 yolov8n-pose-p6 yolo26n-p2 yolo26n-p6".split()
LARGE = (
    "yolov5s yolov5m yolov5l yolov5x yolov8s yolov8m yolov8l yolov8x yolov8l-p2 yolov9s yolov9m yolov9c yolov9e yolov9e-seg "
    "yolov10s yolov10m yolov10b yolov10l yolov10x yolo11s yolo11m yolo11l yolo11x yolo12s yolo12m yolo12l yolo12x "
    "yolo26s yolo26m yolo26l yolo26x yolo11m-seg yolo11l-obb yolo12l-cls yolo26m-seg yolo26x-pose"
).split()


def architecture(skeleton: Skeleton, block: str, width: float = 1.0, depth: int | None = None, slots: list[str] | None = None):
    chosen = [slot for slot in skeleton.slots if slots is None or slot.name in slots]
    placed = (place(slot, block, width, depth, None, {}) for slot in chosen)
    return Architecture(skeleton.name, tuple(p for p in placed if p is not None))


def shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", SMALL + [pytest.param(n, marks=pytest.mark.slow) for n in HEADS + SHAPES + LARGE])
def test_the_unmodified_skeleton_is_the_stock_model(name: str) -> None:
    stock = YOLO(f"{name}.yaml")
    skeleton = read_skeleton(f"{name}.yaml")
    model = build(model_yaml(skeleton, Architecture(skeleton.name)))
    assert shapes(model) == shapes(stock.model)
    assert skeleton.task == stock.task
    assert type(model) is type(stock.model)
    assert getattr(model.model[-1], "legacy", None) == getattr(stock.model.model[-1], "legacy", None)
    assert list(model.stride) == list(stock.model.stride)
    assert model.save == stock.model.save
    assert [slot.layer for slot in skeleton.slots if not hasattr(stock.model.model[slot.layer], "cv1")] == []


@pytest.mark.parametrize("name", ["yolov8n", "yolo11n", "yolo12n", "yolo26n"])
def test_the_head_stays_when_every_slot_is_replaced(name: str) -> None:
    skeleton = read_skeleton(f"{name}.yaml")
    stock = tasks.DetectionModel(f"{name}.yaml", verbose=False)
    model = build(model_yaml(skeleton, architecture(skeleton, "repvit")))
    layer = f"model.{len(skeleton.rows) - 1}."
    head = {key for key in stock.state_dict() if key.startswith(layer)}
    transferred = intersect_dicts(stock.state_dict(), model.state_dict())
    assert head
    assert head == {key for key in transferred if key.startswith(layer)}
    # nothing of the replaced stages is taken for something else
    replaced = tuple(f"model.{slot.layer}." for slot in skeleton.slots)
    kept = {key for key in stock.state_dict() if not key.startswith(replaced)}
    assert set(transferred) == kept


SLOTS = ["backbone.P4", "backbone.P2", "neck.topdown.P3", "neck.bottomup.P5"]  # equal channels, unequal, both ways of the neck
IN_CI = {"yolo11n", "yolo12n"}


@pytest.mark.parametrize("slot", SLOTS)
@pytest.mark.parametrize("block", CATALOG)
@pytest.mark.parametrize("name", [n if n in IN_CI else pytest.param(n, marks=pytest.mark.slow) for n in SMALL])
def test_every_block_in_every_kind_of_slot(name: str, block: str, slot: str) -> None:
    skeleton = read_skeleton(f"{name}.yaml")
    chosen = architecture(skeleton, block, 0.75, 2, [slot])
    model = build(model_yaml(skeleton, chosen, nc=3))
    layer = skeleton.slot(slot).layer
    stage = model.model[layer]
    assert (stage.i, stage.f, stage.type) == (layer, -1, CATALOG[block].row)
    assert stage.np == sum(p.numel() for p in stage.parameters()) > 0
    assert len(model.model) == len(skeleton.rows)
    train_step(model)


@pytest.mark.parametrize("name", [n for n in SMALL if n not in IN_CI] + HEADS + SHAPES)
def test_every_other_skeleton_and_head_takes_blocks(name: str) -> None:
    """A block in each slot, all of them where there are slots enough, other widths and depths."""
    skeleton = read_skeleton(f"{name}.yaml")
    turns = itertools.cycle([*CATALOG, KEEP])
    placed = [place(slot, next(turns), (0.5, 1.25)[slot.layer % 2], 1, None, {}) for slot in skeleton.slots]
    chosen = Architecture(skeleton.name, tuple(p for p in placed if p is not None))
    model = build(model_yaml(skeleton, chosen))
    assert len(chosen.placements) >= len(skeleton.slots) - 2
    assert [m.type for m in model.model if isinstance(m, Stage)] == [
        CATALOG[p.block].row for p in chosen.placements if p.block != KEEP
    ]
    train_step(model)


@pytest.mark.parametrize("block", CATALOG)
def test_deeper_has_more_parameters(block: str) -> None:
    skeleton = read_skeleton("yolo11n.yaml")
    counts = []
    for depth in (1, 3, 5):  # odd: RepViT has squeeze-and-excitation in every other unit
        chosen = architecture(skeleton, block, 1.0, depth, ["backbone.P5"])
        counts.append(build(model_yaml(skeleton, chosen)).model[8].np)
    assert counts[1] - counts[0] == counts[2] - counts[1] > 0


@pytest.mark.parametrize("width", [0.5, 0.75, 1.25, 1.5])
@pytest.mark.parametrize("name", ["yolov5n", "yolov9t", "yolov10n", "yolo12n", "yolo26n"])
def test_keep_can_be_resized(name: str, width: float) -> None:
    skeleton = read_skeleton(f"{name}.yaml")
    chosen = architecture(skeleton, KEEP, width, 2)
    model = build(model_yaml(skeleton, chosen, nc=3))
    for placement in chosen.placements:
        row = model.yaml["backbone" if placement.layer < skeleton.split else "head"]
        args = row[placement.layer - (0 if placement.layer < skeleton.split else skeleton.split)][3]
        assert args[0] == placement.channels
    train_step(model)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolov9m", "yolov9e", "yolov10m", "yolo11m", "yolo12l", "yolo26m", "yolov8n-ghost"])
@pytest.mark.parametrize("width", [0.25, 0.75, 1.25])
def test_keep_can_be_resized_at_larger_scales(name: str, width: float) -> None:
    skeleton = read_skeleton(f"{name}.yaml")
    train_step(build(model_yaml(skeleton, architecture(skeleton, KEEP, width, 1), nc=3)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolov9e", "yolo26m"])
@pytest.mark.parametrize("block", CATALOG)
def test_every_block_in_all_slots_of_larger_skeletons(name: str, block: str) -> None:
    skeleton = read_skeleton(f"{name}.yaml")
    train_step(build(model_yaml(skeleton, architecture(skeleton, block, 0.5, 1), nc=3)))


def test_stock_models_build_as_before_and_registering_again_changes_nothing() -> None:
    nas.yolo.register()
    ours = tasks.parse_model
    nas.yolo.register()
    assert tasks.parse_model is ours
    for name in ("yolov8n", "yolo11n"):
        torch.manual_seed(0)
        here = tasks.DetectionModel(f"{name}.yaml", verbose=False).state_dict()
        tasks.parse_model = nas.yolo.parser._stock
        try:
            torch.manual_seed(0)
            stock = tasks.DetectionModel(f"{name}.yaml", verbose=False).state_dict()
        finally:
            nas.yolo.register()
        assert here.keys() == stock.keys()
        assert all(torch.equal(here[key], stock[key]) for key in stock)


def test_equal_seeds_build_equal_weights_and_the_yaml_is_left_alone() -> None:
    skeleton = read_skeleton("yolo11n.yaml")
    data = model_yaml(skeleton, architecture(skeleton, "irmb", 0.5), nc=3)
    before = deepcopy(data)
    weights = []
    for _ in range(2):
        torch.manual_seed(1)
        weights.append(build(data).state_dict())
    assert data == before
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_scales_still_work_in_a_handwritten_yaml_with_our_rows() -> None:
    data = tasks.yaml_model_load("yolo11.yaml")
    data["backbone"][6] = [-1, 2, "RepViT", [512]]
    for scale, channels in (("n", 128), ("s", 256), ("m", 512)):
        model = tasks.DetectionModel({**deepcopy(data), "scale": scale}, verbose=False)
        assert model.model[7].conv.in_channels == channels


WRONG_ROWS = [
    ("unknown knob", "RepViT", [64, {"ratoi": 2.0}], "unknown knob 'ratoi' of RepViT", "did you mean 'ratio'?"),
    ("heads of a block without heads", "RepViT", [64, {"heads": 2}], "unknown knob 'heads' of RepViT", "known: "),
    ("even kernel", "iRMB", [64, {"kernel": 4}], "iRMB: kernel must be odd, not 4", "correct"),
    ("heads 0", "iRMB", [64, {"heads": 0}], "heads", "correct"),
    ("heads a bool", "MobileMQA", [64, {"heads": True}], "heads", "correct"),
    ("text", "RIFormer", [64, {"ratio": "wide"}], "RIFormer: ratio must be a number, not 'wide'", "correct"),
    ("heads that do not divide", "iRMB", [64, {"heads": 7}], "7 heads do not divide", "correct"),
    ("positional knobs", "RepViT", [64, True, 2], "arguments of RepViT are [64, True, 2]", "write [channels]"),
    ("no channels", "RepViT", [], "arguments of RepViT are []", "write [channels]"),
    ("channels a word", "RepViT", ["wide"], "arguments of RepViT are ['wide']", "write [channels]"),
    ("channels 0", "RepViT", [0], "arguments of RepViT are [0]", "write [channels]"),
]


@pytest.mark.parametrize(("row", "args", "what", "cure"), [w[1:] for w in WRONG_ROWS], ids=[w[0] for w in WRONG_ROWS])
def test_wrong_arguments_of_a_row_name_the_layer(row: str, args: list, what: str, cure: str) -> None:
    data = model_yaml(read_skeleton("yolo11n.yaml"), Architecture("yolo11n"))
    data["backbone"][6] = [-1, 1, row, args]
    with pytest.raises(InputError) as caught:
        build(data)
    assert caught.value.message.startswith("layer 6: ")
    assert what in caught.value.message
    assert cure in str(caught.value)


@pytest.mark.parametrize("repeats", [0, -1, "many", 1.5])
def test_wrong_repeats_of_a_row_name_the_layer(repeats: object) -> None:
    data = model_yaml(read_skeleton("yolo11n.yaml"), Architecture("yolo11n"))
    data["backbone"][6] = [-1, repeats, "RepViT", [64]]
    with pytest.raises(InputError, match="layer 6: repeats of RepViT"):
        build(data)


def test_a_head_of_no_known_task_is_not_built() -> None:
    skeleton = read_skeleton("yolov8n-world.yaml")
    assert skeleton.task is None
    with pytest.raises(InputError, match="head is WorldDetect"):
        build(model_yaml(skeleton, Architecture(skeleton.name)))


def test_no_row_of_ours_hides_a_name_of_ultralytics() -> None:
    assert not set(ROWS) & set(vars(tasks))


def test_an_activation_that_ultralytics_would_run_is_refused(tmp_path: Path) -> None:
    trace = tmp_path / "was-run"
    skeleton = read_skeleton("yolo11n.yaml")
    data = model_yaml(skeleton, architecture(skeleton, "repvit", slots=["backbone.P4"]))
    data["activation"] = f"__import__('pathlib').Path({str(trace)!r}).touch() or torch.nn.SiLU()"
    with pytest.raises(InputError, match="is not a known activation"):
        tasks.DetectionModel(data, verbose=False)
    assert not trace.exists()
    tasks.DetectionModel({**data, "activation": "nn.ReLU()"}, verbose=False)
