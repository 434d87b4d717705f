"""Drawing, listing and naming architectures: what holds for every architecture of every space."""

import json
import math
import random
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nas.blocks.catalog import CATALOG
from nas.space.architecture import KEEP, Architecture, place, round_channels
from nas.space.reader import find_space, read_space
from nas.space.rules import Rule
from nas.space.search_space import SearchSpace, SlotChoices, rule_names
from nas.space.skeleton import read_skeleton

SKELETONS = [
    read_skeleton(f"{name}.yaml") for name in ("yolov5n", "yolov9t", "yolov9m", "yolov10n", "yolo11n", "yolo12n", "yolo26n")
]
KNOBS = {"irmb": {"window": (0, 7), "se": (True, False)}, "mobile_mqa": {"key_dim": (16, 32)}, "repvit": {"ratio": (2.0, 3.0)}}


def some(values: list, least: int = 1):
    return st.lists(st.sampled_from(values), min_size=least, max_size=3, unique=True).map(tuple)


@st.composite
def spaces(draw) -> SearchSpace:
    skeleton = draw(st.sampled_from(SKELETONS))
    named = draw(st.lists(st.sampled_from(skeleton.slots), min_size=1, max_size=3, unique_by=lambda slot: slot.layer))
    choices = [
        SlotChoices(
            slot,
            draw(some([KEEP, *CATALOG])),
            draw(some([0.25, 0.5, 0.75, 1.0, 1.25, 1.5])),
            draw(some([1, 2, 3], 0)),
            draw(some([1, 2, 3, 4, 8, 12], 0)),
            draw(st.sampled_from([{}, KNOBS])),
        )
        for slot in sorted(named, key=lambda slot: slot.layer)
    ]
    return SearchSpace(skeleton, tuple(choices))


quick = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@quick
@given(spaces(), st.integers(0, 2**32))
def test_every_drawn_architecture(space: SearchSpace, seed: int) -> None:
    drawn = space.sample(random.Random(seed), 640)
    again = Architecture.from_dict(json.loads(json.dumps(drawn.to_dict())))
    assert again == drawn
    assert again.id == drawn.id
    params = space.params(drawn)
    assert space.draw(lambda name, _: params[name]) == drawn
    for placement in drawn.placements:
        spec = CATALOG.get(placement.block)
        assert placement.channels % 8 == 0
        assert (placement.heads is not None) == (spec is not None and spec.has_heads)
        if spec is not None:
            assert [name for name, _ in placement.knobs] == sorted(spec.knobs)
            if spec.heads_divide:
                assert placement.channels % placement.heads == 0
        assert placement.text(space.skeleton.slot(placement.slot)).split()[0] == placement.block


@quick
@given(spaces(), st.integers(0, 2**32))
def test_size_neighbours_and_baseline(space: SearchSpace, seed: int) -> None:
    here = space.sample(random.Random(seed), 640)
    placed = {p.slot: p for p in here.placements}
    near = list(space.neighbours(here))
    for other in near:
        moved = {p.slot: p for p in other.placements}
        assert sum(placed.get(slot.slot.name) != moved.get(slot.slot.name) for slot in space.slots) == 1
        assert space.params(other) is not None
    assert len({other.id for other in near}) == len(near) == sum(len(slot.options) - 1 for slot in space.slots)
    for small in space.smallest(640):
        assert space.params(small) is not None
    if space.size <= 500:
        everything = list(space.enumerate())
        assert len({a.id for a in everything}) == len(everything) == space.size


@given(st.floats(1, 5000), st.integers(1, 64))
def test_channels_round_to_the_nearest_usable_number(wanted: float, heads: int) -> None:
    unit = math.lcm(8, heads)
    got = round_channels(wanted, heads)
    assert got % unit == 0
    assert got >= unit
    assert abs(got - wanted) <= unit / 2 or got == unit


def test_ignored_choices_collapse() -> None:
    slot = read_skeleton("yolo11n.yaml").slot("backbone.P4")
    heads = SlotChoices(slot, (KEEP, "repvit", "mobile_mqa"), (1.0,), (), (2, 4))
    assert [option and (option.block, option.heads) for option in heads.options] == [
        None,
        ("repvit", None),
        ("mobile_mqa", 2),
        ("mobile_mqa", 4),
    ]
    # 0.98 and 1.0 are the same 128 channels; a depth that is the skeleton's own is no change
    assert len(SlotChoices(slot, (KEEP,), (0.98, 1.0), (1,)).options) == 1
    # all heads that a rule rounds to one number of channels stay apart, for the head count itself differs
    assert len(SlotChoices(slot, ("irmb",), (1.0,), (1,), (1, 2)).options) == 2
    # what is not asked for stands for the block's default, so that naming the default changes nothing
    named = replace(heads, blocks=("mobile_mqa",), heads=(4,), knobs={"mobile_mqa": {"key_dim": (32,)}})
    assert list(named.options) == [place(slot, "mobile_mqa", 1.0, None, None, {})]


def test_only_what_matters_is_asked() -> None:
    space = read_space(find_space("yolo11n-blocks"))
    asked: list[str] = []

    def choose(name, choices):
        asked.append(name)
        return {"block": "repvit"}.get(name.rpartition(".")[2], choices[0])

    space.draw(choose)
    assert {name.rpartition(".")[2] for name in asked} == {"block", "width", "depth"}
    assert len(asked) == 3 * 8 - 1  # backbone.P2 has one depth


@pytest.mark.parametrize("name", ["yolo12n", "yolo26n"])
def test_keep_rounds_to_what_attention_rows_can_use(name: str) -> None:
    skeleton = read_skeleton(f"{name}.yaml")
    slot = skeleton.slot({"yolo12n": "backbone.P4", "yolo26n": "neck.bottomup.P5"}[name])
    unit = {"yolo12n": 64, "yolo26n": 128}[name]
    for width in (0.1, 0.5, 0.75, 1.25, 1.6):
        placement = place(slot, KEEP, width, None, None, {})
        assert placement is None or placement.channels % unit == 0


def test_the_smallest_is_cheap_in_every_knob_and_allowed() -> None:
    skeleton = read_skeleton("yolo11n.yaml")
    knobs = {"irmb": {"ratio": (4.0, 2.0), "window": (0, 9, 7), "kernel": (5, 3)}, "mobile_mqa": {"kv_stride": (1, 4, 2)}}
    both = ("irmb", "mobile_mqa")
    choices = [
        SlotChoices(skeleton.slot(name), both, (1.0, 0.5, 0.75), (2, 1), (4, 2), knobs)
        for name in ("backbone.P4", "backbone.P5")
    ]

    def smallest(*rules: str, imgsz: int = 640) -> list[list[str]]:
        forbid = tuple(Rule.parse(rule, rule_names(skeleton)) for rule in rules)
        space = SearchSpace(skeleton, tuple(choices), forbid)
        found = space.smallest(imgsz)
        assert all(space.forbidding_rule(architecture, imgsz) is None for architecture in found)
        return [list(architecture.describe(skeleton).values()) for architecture in found]

    irmb, mqa = "irmb w0.5 h2 ratio=2.0", "mobile_mqa w0.5 h2 kv_stride=4"
    assert smallest() == [[irmb] * 2, [mqa] * 2]
    narrow = "backbone.P4.block == 'irmb' and backbone.P4.width < 0.75"
    assert smallest(narrow) == [["irmb w0.75 h2 ratio=2.0", irmb], [mqa] * 2]
    assert smallest("backbone.P5.block == 'irmb' and imgsz > 480") == [[irmb, mqa], [mqa] * 2]
    assert smallest("backbone.P5.block == 'irmb' and imgsz > 480", imgsz=320) == smallest()
    assert smallest(narrow, "backbone.P5.kv_stride > 2")[1] == [mqa, "mobile_mqa w0.5 h2 kv_stride=2"]
    assert smallest("imgsz > 480") == []


def test_ids_are_stable() -> None:
    skeleton = read_skeleton("yolo11n.yaml")
    placements = (
        place(skeleton.slot("backbone.P3"), KEEP, 0.5, None, None, {}),
        place(skeleton.slot("backbone.P4"), "irmb", 1.25, 2, 4, {"window": 0}),
        place(skeleton.slot("neck.bottomup.P5"), "repvit", 1.0, None, None, {}),
    )
    architecture = Architecture("yolo11n", placements)
    assert Architecture("yolo11n").id == "a761acd8f8"
    assert architecture.id == "a20a27ff7e"
    assert (
        Architecture.from_dict({**architecture.to_dict(), "placements": architecture.to_dict()["placements"][::-1]})
        == architecture
    )
    assert architecture.describe(skeleton) == {
        "backbone.P3": "keep w0.5",
        "backbone.P4": "irmb w1.25 d2 h4 window=0",
        "neck.bottomup.P5": "repvit",
    }


def test_a_non_member_has_no_parameters() -> None:
    skeleton = read_skeleton("yolo11n.yaml")
    p3, p4 = skeleton.slot("backbone.P3"), skeleton.slot("backbone.P4")
    space = SearchSpace(skeleton, (SlotChoices(p4, ("repvit", "irmb"), (0.5,)),))
    assert space.params(space.baseline) is None
    assert space.baseline.is_skeleton
    assert space.params(Architecture("yolo11n", (place(p4, "repvit", 1.0, None, None, {}),))) is None
    both = (place(p3, "repvit", 1.0, None, None, {}), place(p4, "repvit", 0.5, None, None, {}))
    assert space.params(Architecture("yolo11n", both)) is None
    assert space.params(Architecture("yolo11n", both[1:])) == {"backbone.P4.block": "repvit"}


def test_sampling_keeps_to_the_rules_or_gives_up() -> None:
    space = read_space(find_space("demo"))
    rng = random.Random(0)
    narrow = Rule.parse("backbone.P4.block != 'irmb' and backbone.P4.width < 1 or imgsz > 640", rule_names(space.skeleton))
    ruled = replace(space, forbid=(narrow,))
    drawn = [ruled.sample(rng, 640) for _ in range(50)]
    assert all(ruled.forbidding_rule(architecture, 640) is None for architecture in drawn)
    assert ruled.sample(rng, 960, attempts=20) is None
