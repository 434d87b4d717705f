"""Slots of the stock skeletons: names, layers, channels and depths, written down from the models that Ultralytics builds."""

from pathlib import Path

import pytest

from nas.errors import InputError
from nas.space.reader import find_space, read_space, whole_skeleton
from nas.space.skeleton import read_skeleton
from nas.space.source import shipped

NAMES = (
    "backbone.P2 backbone.P3 backbone.P4 backbone.P5 neck.topdown.P4 neck.topdown.P3 neck.bottomup.P4 neck.bottomup.P5"
).split()

# skeleton: (layer, channels in, channels out, depth) per slot, in the order of NAMES
SLOTS = {
    "yolov5n": [
        (2, 32, 32, 1),
        (4, 64, 64, 2),
        (6, 128, 128, 3),
        (8, 256, 256, 1),
        (13, 256, 128, 1),
        (17, 128, 64, 1),
        (20, 128, 128, 1),
        (23, 256, 256, 1),
    ],
    "yolov8n": [
        (2, 32, 32, 1),
        (4, 64, 64, 2),
        (6, 128, 128, 2),
        (8, 256, 256, 1),
        (12, 384, 128, 1),
        (15, 192, 64, 1),
        (18, 192, 128, 1),
        (21, 384, 256, 1),
    ],
    "yolov9t": [
        (2, 32, 32, 1),
        (4, 64, 64, 3),
        (6, 96, 96, 3),
        (8, 128, 128, 3),
        (12, 224, 96, 3),
        (15, 160, 64, 3),
        (18, 144, 96, 3),
        (21, 192, 128, 3),
    ],
    "yolov9s": [
        (2, 64, 64, 1),
        (4, 128, 128, 3),
        (6, 192, 192, 3),
        (8, 256, 256, 3),
        (12, 448, 192, 3),
        (15, 320, 128, 3),
        (18, 288, 192, 3),
        (21, 384, 256, 3),
    ],
    "yolov9m": [
        (2, 64, 128, 1),
        (4, 240, 240, 1),
        (6, 360, 360, 1),
        (8, 480, 480, 1),
        (12, 840, 360, 1),
        (15, 600, 240, 1),
        (18, 544, 360, 1),
        (21, 720, 480, 1),
    ],
    "yolov9c": [
        (2, 128, 256, 1),
        (4, 256, 512, 1),
        (6, 512, 512, 1),
        (8, 512, 512, 1),
        (12, 1024, 512, 1),
        (15, 1024, 256, 1),
        (18, 768, 512, 1),
        (21, 1024, 512, 1),
    ],
    "yolov10n": [
        (2, 32, 32, 1),
        (4, 64, 64, 2),
        (6, 128, 128, 2),
        (8, 256, 256, 1),
        (13, 384, 128, 1),
        (16, 192, 64, 1),
        (19, 192, 128, 1),
        (22, 384, 256, 1),
    ],
    "yolo11n": [
        (2, 32, 64, 1),
        (4, 64, 128, 1),
        (6, 128, 128, 1),
        (8, 256, 256, 1),
        (13, 384, 128, 1),
        (16, 256, 64, 1),
        (19, 192, 128, 1),
        (22, 384, 256, 1),
    ],
    "yolo12n": [
        (2, 32, 64, 1),
        (4, 64, 128, 1),
        (6, 128, 128, 2),
        (8, 256, 256, 2),
        (11, 384, 128, 1),
        (14, 256, 64, 1),
        (17, 192, 128, 1),
        (20, 384, 256, 1),
    ],
}
SLOTS["yolo26n"] = SLOTS["yolo11n"]


@pytest.mark.parametrize("name", SLOTS)
def test_slots_of_a_skeleton(name: str) -> None:
    skeleton = read_skeleton(f"{name}.yaml")
    assert skeleton.name == name
    assert [slot.name for slot in skeleton.slots] == NAMES
    assert [(slot.layer, slot.row.c1, slot.row.c2, slot.depth) for slot in skeleton.slots] == SLOTS[name]


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("yolov8n", "detect"),
        ("yolov10n", "detect"),
        ("yolo11n-seg", "segment"),
        ("yolo26n-seg", "segment"),
        ("yolo26n-pose", "pose"),
        ("yolo11n-obb", "obb"),
        ("yolo26n-cls", "classify"),
        ("yolo26n-sem", "semantic"),
        ("yolo26n-depth", "depth"),
        ("rtdetr-l", None),
    ],
)
def test_the_last_row_says_what_a_model_is_for(name: str, task: str | None) -> None:
    assert read_skeleton(f"{name}.yaml").task == task


def test_a_second_slot_of_one_name_gets_a_number() -> None:
    slots = {slot.name: (slot.layer, slot.row.c1, slot.row.c2) for slot in read_skeleton("yolov9e.yaml").slots}
    assert slots["backbone.P4"] == (7, 512, 1024)
    assert slots["backbone.P4.2"] == (25, 512, 1024)
    assert list(slots)[4:8] == ["backbone.P2.2", "backbone.P3.2", "backbone.P4.2", "backbone.P5.2"]


@pytest.mark.parametrize(
    ("name", "levels"),
    [("yolov8n-p2", "P4 P3 P2 P3 P4 P5"), ("yolo26n-p6", "P5 P4 P3 P4 P5 P6"), ("yolov5n-p6", "P5 P4 P3 P4 P5 P6")],
)
def test_necks_of_other_heights(name: str, levels: str) -> None:
    neck = [slot.name for slot in read_skeleton(f"{name}.yaml").slots if slot.name.startswith("neck")]
    ways = ["topdown"] * 3 + ["bottomup"] * 3
    assert neck == [f"neck.{way}.{level}" for way, level in zip(ways, levels.split(), strict=True)]


def read(tmp_path: Path, slots: str, skeleton: str = "yolo11n.yaml"):
    path = tmp_path / "space.yaml"
    path.write_text(f"skeleton: {skeleton}\nslots:\n{slots}", encoding="utf-8")
    return {choices.slot.name: choices for choices in read_space(path).slots}


def test_later_lines_win_key_by_key_and_unnamed_slots_are_left_out(tmp_path: Path) -> None:
    slots = read(
        tmp_path,
        "  backbone.*: {block: [keep, irmb], width: [0.5, 1], irmb: {window: [0, 7], ratio: 2}}\n"
        "  neck.topdown.P?: {depth: 2}\n"
        "  8: {block: repvit}\n"
        "  backbone.P4: {depth: [1, 2], irmb: {window: 5}}\n",
    )
    assert list(slots) == NAMES[:6]  # of the skeleton's order, not the file's
    assert slots["backbone.P3"].blocks == ("keep", "irmb")
    assert slots["backbone.P3"].depths == ()
    assert (slots["backbone.P5"].blocks, slots["backbone.P5"].widths) == (("repvit",), (0.5, 1.0))
    p4 = slots["backbone.P4"]
    assert (p4.blocks, p4.widths, p4.depths) == (("keep", "irmb"), (0.5, 1.0), (1, 2))
    assert p4.knobs["irmb"]["window"] == (5,)
    assert slots["neck.topdown.P3"].blocks == ("keep",)
    assert slots["neck.topdown.P3"].depths == (2,)


def test_knobs_of_one_block_win_one_by_one(tmp_path: Path) -> None:
    slots = read(
        tmp_path,
        "  backbone.*: {block: [keep, irmb], irmb: {window: [0, 7], ratio: 2}}\n  backbone.P4: {irmb: {window: 5}}\n",
    )
    assert slots["backbone.P4"].knobs["irmb"] == {"window": (5,), "ratio": (2.0,)}


def test_globs_reach_numbered_slots(tmp_path: Path) -> None:
    slots = read(tmp_path, "  backbone.P4*: {block: repvit}\n  backbone.P5.2: {block: irmb}\n", "yolov9e.yaml")
    assert list(slots) == ["backbone.P4", "backbone.P4.2", "backbone.P5.2"]


def test_a_skeleton_beside_the_space_is_found_and_whole_skeleton_lists_all_slots(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "nc: 3\nbackbone:\n  - [-1, 1, Conv, [8, 3, 2]]\n  - [-1, 1, Conv, [16, 3, 2]]\n  - [-1, 2, C2f, [16, True]]\n"
        "head:\n  - [[2], 1, Detect, [nc]]\n",
        encoding="utf-8",
    )
    slots = read(tmp_path, "  '*': {block: repvit}\n", "mine.yaml")
    assert [(slot.layer, slot.row.c1, slot.row.c2, slot.depth) for slot in (s.slot for s in slots.values())] == [(2, 16, 16, 2)]
    assert [choices.slot.name for choices in whole_skeleton(str(tmp_path / "mine.yaml")).slots] == ["backbone.P2"]


def test_a_space_finds_the_skeleton_beside_it_before_one_in_the_working_folder(tmp_path: Path, monkeypatch) -> None:
    detector = "backbone:\n  - [-1, 1, C2f, [{}, True]]\nhead:\n  - [[0], 1, Detect, [nc]]\n"
    (tmp_path / "mine.yaml").write_text(detector.format(16), encoding="utf-8")
    (tmp_path / "cwd").mkdir()
    (tmp_path / "cwd" / "mine.yaml").write_text(detector.format(32), encoding="utf-8")
    monkeypatch.chdir(tmp_path / "cwd")
    (slot,) = read(tmp_path, "  '*': {block: repvit}\n", "mine.yaml").values()
    assert slot.slot.row.c2 == 16


def test_models_of_other_tasks_can_be_looked_at() -> None:
    assert [choices.slot.name for choices in whole_skeleton("yolo11n-seg.yaml").slots] == NAMES


def test_a_shipped_space_is_meant_by_a_bare_name_only(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_space("demo.yaml") == find_space("demo") == shipped("search_spaces") / "demo.yaml"
    with pytest.raises(InputError, match=r"no search space 'typo/dir/demo.yaml'") as caught:
        find_space("typo/dir/demo.yaml")
    assert "correct the path" in str(caught.value.hint)


@pytest.mark.parametrize("path", sorted(shipped("search_spaces").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_spaces_read_and_say_where_heads_round_the_channels(path: Path) -> None:
    space = read_space(path)
    assert find_space(path.stem) == path
    assert space.size > 100
    for choices in space.slots:
        for option in choices.options:
            assert option is None or option.channels % 8 == 0
    for note in space.notes:
        slot, rest = note.split(": ")
        assert slot in {choices.slot.name for choices in space.slots}
        assert "gets" in rest


def test_rounding_notes(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(
        "skeleton: yolo11n.yaml\nslots:\n"
        "  backbone.P2: {block: [keep, repvit, irmb, mobile_mqa], width: [0.75, 1], heads: [3, 8, 12]}\n",
        encoding="utf-8",
    )
    # irmb alone needs channels that its heads divide; 64 is no multiple of lcm(8, 3), 48 is one of 24
    assert read_space(path).notes == (
        "backbone.P2: irmb with 3 heads gets 72 channels, not 64",
        "backbone.P2: irmb with 12 heads gets 72 channels, not 64",
    )


@pytest.mark.parametrize(
    ("skeleton", "slot", "notes"),
    [
        # A2C2f needs multiples of 64, an attention C3k2 of 128; with a residual (YOLO12 l) the channels are fixed
        ("yolo12n", "backbone.P4", ["keep gets 128 channels, not 96"]),
        ("yolo26n", "neck.bottomup.P5", ["keep gets 256 channels, not 192"]),
        ("yolo12l", "backbone.P4", ["keep gets 512 channels, not 256", "keep gets 512 channels, not 384"]),
        ("yolo12l", "neck.topdown.P4", []),
        ("yolo11n", "backbone.P4", []),
    ],
)
def test_rounding_notes_of_keep(tmp_path: Path, skeleton: str, slot: str, notes: list[str]) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(f"skeleton: {skeleton}.yaml\nslots: {{{slot}: {{width: [0.5, 0.75, 1]}}}}\n", encoding="utf-8")
    assert read_space(path).notes == tuple(f"{slot}: {note}" for note in notes)
