"""What may be a teacher: a checkpoint of the skeleton that knows the data's classes. Everything else is refused, or a start."""

from pathlib import Path
from typing import Any

import pytest
import torch

from nas.errors import InputError, StartError
from nas.imitation.assemble import Assembler
from nas.imitation.channels import Widths
from nas.imitation.teacher import read_teacher, refuse_worthless, shortfall, teacher_of
from nas.space.architecture import Architecture, model_yaml, place
from nas.space.skeleton import read_skeleton
from nas.yolo.build import build
from nas.yolo.checkpoints import save_checkpoint
from nas.yolo.slot import build_layer
from nas.yolo.weights import transfer

NAMES = ("one", "two", "three")


def yaml_of(name: str, nc: int = 3, block: str | None = None) -> dict[str, Any]:
    skeleton = read_skeleton(name)
    placed = place(skeleton.slot("backbone.P4"), block, 1.0, 1, None, {}) if block else None
    return model_yaml(skeleton, Architecture(skeleton.name, (placed,) if placed else ()), nc)


def saved(folder: Path, yaml: dict[str, Any], names: tuple[str, ...] = NAMES) -> Path:
    torch.manual_seed(0)
    save_checkpoint(build(yaml), folder / "some model.pt", names)
    return folder / "some model.pt"


@pytest.mark.parametrize("name", ["yolo11n.yaml", pytest.param("yolo26n-seg.yaml", marks=pytest.mark.slow)])
@pytest.mark.parametrize("names", [NAMES, ()])  # without names, a checkpoint numbers its classes
def test_a_trained_skeleton_is_a_teacher(tmp_path: Path, name: str, names: tuple[str, ...]) -> None:
    yaml = yaml_of(name)
    path = saved(tmp_path, yaml, names)
    assert shortfall(path, yaml, NAMES) is None
    teacher = read_teacher(path, yaml, NAMES)
    torch.manual_seed(0)
    expected = build(yaml).half().float()
    assert all(torch.equal(t, expected.state_dict()[n]) for n, t in teacher.model.state_dict().items())
    assert not teacher.model.training and not any(p.requires_grad for p in teacher.model.parameters())
    assert teacher.digest == teacher_of(expected).digest
    next(iter(expected.parameters())).data[0] += 1
    assert teacher.digest != teacher_of(expected).digest


def test_a_training_that_began_on_many_classes_has_a_wider_head(tmp_path: Path) -> None:
    """As Ultralytics' own trainings from COCO leave it: it is a teacher, and what is assembled has that head too."""
    yaml = yaml_of("yolo11n.yaml")
    begun = build(yaml)
    transfer(begun, build(yaml_of("yolo11n.yaml", 80)))
    wide = begun.model[-1].cv3[0][-1].in_channels
    assert wide == 80 > build(yaml).model[-1].cv3[0][-1].in_channels
    path = tmp_path / "best.pt"
    save_checkpoint(begun, path, NAMES)
    assert shortfall(path, yaml, NAMES) is None
    teacher = read_teacher(path, yaml, NAMES)
    widths = Widths(yaml, {6: torch.ones(128)})
    assembler = Assembler(yaml, teacher.model, widths, lambda _: build_layer(yaml, changed["backbone"][6], 128).state_dict())
    changed = yaml_of("yolo11n.yaml", block="repvit")
    own = assembler.assemble(yaml).model.state_dict()
    assert all(torch.equal(t, own[name]) for name, t in teacher.model.state_dict().items())
    assert assembler.assemble(changed).model.model[-1].cv3[0][-1].in_channels == wide


@pytest.mark.parametrize(
    ("made", "names", "reason"),
    [
        (yaml_of("yolo11n.yaml", 80), (), "knows 80 classes, the data has 3"),
        (yaml_of("yolo11n.yaml"), ("one", "two", "four"), r"knows other classes \(one, two, four\)"),
        (yaml_of("yolo11n.yaml", block="repvit"), NAMES, "layers are not all those of the skeleton"),
    ],
)
def test_what_is_nearly_a_teacher_can_start_its_training(
    tmp_path: Path, made: dict[str, Any], names: tuple[str, ...], reason: str
) -> None:
    path, yaml = saved(tmp_path, made, names), yaml_of("yolo11n.yaml")
    found = shortfall(path, yaml, NAMES)
    assert found is not None
    with pytest.raises(InputError, match=f"no teacher yet: .*{reason}") as caught:
        read_teacher(path, yaml, NAMES)
    assert caught.value.hint and "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("made", "reason"),
    [("yolo11n-seg.yaml", "a checkpoint for segment"), ("yolov8s.yaml", "fits no layer"), (None, "damaged")],
)
def test_what_is_no_teacher_is_refused(tmp_path: Path, made: str | None, reason: str) -> None:
    path = saved(tmp_path, yaml_of(made)) if made else tmp_path / "torn.pt"
    if made is None:
        path.write_bytes(saved(tmp_path, yaml_of("yolo11n.yaml")).read_bytes()[:5000])
    with pytest.raises(InputError, match=reason) as caught:
        shortfall(path, yaml_of("yolo11n.yaml"), NAMES)
    assert caught.value.hint and "\n" not in caught.value.message


def test_a_teacher_that_finds_nothing_is_called_out() -> None:
    refuse_worthless(0.2)
    with pytest.raises(StartError, match=r"0\.004: there is nothing to imitate"):
        refuse_worthless(0.004)
