"""What a `forbid` rule means: looked up in the placement, in the skeleton's own row, or absent."""

import pytest

from nas.space.architecture import Architecture, place
from nas.space.rules import Rule
from nas.space.search_space import SearchSpace, SlotChoices, rule_names
from nas.space.skeleton import read_skeleton

SKELETON = read_skeleton("yolov9e.yaml")
PLACED = {
    "backbone.P4": place(SKELETON.slot("backbone.P4"), "irmb", 0.5, 3, 8, {"window": 0}),
    "backbone.P4.2": place(SKELETON.slot("backbone.P4.2"), "repvit", 1.0, 1, None, {"se": False}),
    "backbone.P5.2": place(SKELETON.slot("backbone.P5.2"), "keep", 0.75, None, None, {}),
}
ARCHITECTURE = Architecture(SKELETON.name, tuple(PLACED.values()))

TRUE_AT_640 = [
    "imgsz > 480",
    "imgsz == 640 and not imgsz != 640",
    "320 < imgsz <= 640",
    "imgsz > -1",
    "backbone.P4.block == 'irmb'",
    "backbone.P4.block in ('keep', 'irmb')",
    "backbone.P4.block not in ['keep', 'repvit']",
    "backbone.P4.width == 0.5 and backbone.P4.channels == 512",
    "backbone.P4.depth >= 3 and backbone.P4.heads == 8 and backbone.P4.window == 0",
    "backbone.P4.depth > backbone.P4_2.depth",
    "backbone.P4_2.block == 'repvit' and backbone.P4_2.width == 1",
    "not backbone.P4_2.se",
    "backbone.P5_2.block == 'keep' and backbone.P5_2.width < 1",
    # an unnamed slot is the skeleton's own
    "neck.topdown.P4.block == 'keep' and neck.topdown.P4.width == 1 and neck.topdown.P4.channels == 512",
    "neck.topdown.P4.depth == 2",
    # what a block does not have is neither below nor above anything
    "not backbone.P4_2.heads < 4",
    "not backbone.P4_2.heads >= 4",
    "backbone.P4_2.heads != 4",
    "not neck.topdown.P4.window <= 7",
    "not backbone.P4.block > 3",
    "imgsz < 1 or backbone.P4.heads > 4",
]
FALSE_AT_640 = [
    "imgsz > 640",
    "backbone.P4.block == 'irmb' and imgsz > 640",
    "backbone.P4_2.heads == 4",
    "backbone.P4_2.window == 0",
    "backbone.P4.block in ('keep',)",
    "1 < backbone.P4.depth < 3",
]


@pytest.mark.parametrize(("text", "expected"), [(t, True) for t in TRUE_AT_640] + [(t, False) for t in FALSE_AT_640])
def test_meaning(text: str, expected: bool) -> None:
    rule = Rule.parse(text, rule_names(SKELETON))
    space = SearchSpace(SKELETON, tuple(SlotChoices(slot) for slot in SKELETON.slots), (rule,))
    assert space.forbidding_rule(ARCHITECTURE, 640) == (rule if expected else None)


@pytest.mark.parametrize(
    ("skeleton", "slot", "block", "heads", "widths"),
    [
        ("yolov9m.yaml", "backbone.P3", "repvit", None, (0.65, 0.75, 1.0)),
        ("yolo11n.yaml", "backbone.P2", "irmb", 12, (0.7, 1.1, 1.0)),
    ],
)
def test_a_width_is_the_factor_as_written_whatever_rounding_made_of_it(skeleton, slot, block, heads, widths) -> None:
    read = read_skeleton(skeleton)
    choices = SlotChoices(read.slot(slot), ("keep", block), widths, (), (heads,) if heads else ())
    rules = {w: Rule.parse(f"{slot}.width == {w} and {slot}.width <= {w}", rule_names(read)) for w in choices.widths}
    for width, rule in rules.items():
        space = SearchSpace(read, (choices,), (rule,))
        placed = place(read.slot(slot), block, width, None, heads, {})
        assert width == 1 or placed.channels / read.slot(slot).row.c2 != width
        forbidden = space.forbidding_rule(Architecture(read.name, (placed,)), 640) is rule
        assert forbidden == (width == float(choices.options[placed][f"{slot}.width"]))
        assert forbidden or heads, "no two factors give the same channels but where heads round them"


def test_the_first_rule_that_forbids_is_named_and_the_image_size_counts() -> None:
    rules = tuple(Rule.parse(t, rule_names(SKELETON)) for t in ("imgsz > 640", "backbone.P4.heads == 8"))
    space = SearchSpace(SKELETON, (), rules)
    assert space.forbidding_rule(ARCHITECTURE, 960) is rules[0]
    assert space.forbidding_rule(ARCHITECTURE, 640) is rules[1]
    assert space.forbidding_rule(space.baseline, 640) is None
    assert rules[0].names == {"imgsz"}
