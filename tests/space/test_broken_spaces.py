"""A broken search space YAML: the line, the word and the cure of every fault, all of them at once."""

from pathlib import Path

import pytest

from nas.errors import InputError
from nas.space.reader import read_space

TOP = "skeleton: yolo11n.yaml\nslots:\n"
P4 = TOP + "  backbone.P4:\n    block: [keep, irmb]\n"
FORBID = TOP + "  backbone.P4: {block: [keep, irmb]}\nforbid:\n"
NESTED = TOP + "  backbone.P4: " + "[" * 60 + "]" * 60 + "\n"
LAUGHS = "a: &a [x, x]\nb: &b [*a, *a]\nskeleton: yolo11n.yaml\n"

# (what, YAML, line, word, cure)
FAULTS = [
    ("unknown top key", P4 + "forbit: []\n", 5, "'forbit'", "did you mean 'forbid'?"),
    ("no skeleton", "slots: {backbone.P4: {block: keep}}\n", 1, "no 'skeleton'", "skeleton: yolo11n.yaml"),
    ("skeleton is a number", "\nskeleton: 11\nslots: {}\n", 2, "no 'skeleton'", "skeleton: yolo11n.yaml"),
    ("unknown skeleton", "skeleton: yolo11nn.yaml\n", 1, "'yolo11nn.yaml'", "did you mean 'yolo11n'?"),
    ("absurdly long skeleton", f"skeleton: {'a' * 5000}\n", 1, "no model YAML", "known: "),
    ("skeleton in a folder that is not there", "skeleton: no/yolo11n.yaml\n", 1, "'no/yolo11n.yaml'", "correct the path"),
    ("skeleton of another task", "skeleton: yolo11n-pose.yaml\n", 1, "the last row is Pose, not a head of det", "nas yolo"),
    ("skeleton without a task", "skeleton: yolov8n-world.yaml\n", 1, "the last row is WorldDetect, not", "nas yolo"),
    ("skeleton without slots", "skeleton: yolov6n.yaml\n", 1, "yolov6n.yaml has no slot", "version 5 or later"),
    ("no slots", "skeleton: yolo11n.yaml\n", 1, "no 'slots'", "backbone.P2"),
    ("slots is a list", TOP + "  - backbone.P4\n", 2, "no 'slots'", "backbone.P2"),
    ("unknown slot", TOP + "  backbone.P6: {block: keep}\n", 3, "'backbone.P6' in yolo11n", "did you mean 'backbone.P"),
    ("unknown layer", TOP + "  5: {block: keep}\n", 3, "no slot '5'", "known: backbone.P2"),
    ("true is not layer 1", TOP + "  true: {block: keep}\n", 3, "no slot 'True'", "known: backbone.P2"),
    ("glob without a match", TOP + "  spine.*: {block: keep}\n", 3, "'spine.*'", "known: backbone.P2"),
    ("slot without choices", TOP + "  backbone.P4:\n", 3, "'backbone.P4' holds no choices", "{block: [keep, repvit]}"),
    ("unknown block", TOP + "  backbone.P4: {block: [keep,\n     repvitt]}\n", 4, "'repvitt'", "did you mean 'repvit'?"),
    ("block is a list", TOP + "  backbone.P4: {block: [[keep]]}\n", 3, "['keep'] is not a block", "did you mean 'keep'?"),
    ("unknown word", P4 + "    widht: 1\n", 5, "'widht'", "did you mean 'width'?"),
    ("width 0", P4 + "    width:\n    - 1\n    - 0\n", 7, "'width' of 'backbone.P4': 0 ", "above 0 and up to 16"),
    ("width negative", P4 + "    width: -1\n", 5, "-1", "above 0 and up to 16"),
    ("width text", P4 + "    width: [wide]\n", 5, "'wide'", "above 0 and up to 16"),
    ("width bool", P4 + "    width: true\n", 5, "True", "above 0 and up to 16"),
    ("width nan", P4 + "    width: .nan\n", 5, "nan", "above 0 and up to 16"),
    ("width infinite", P4 + "    width: .inf\n", 5, "inf", "above 0 and up to 16"),
    ("depth 0", P4 + "    depth: [1, 0]\n", 5, "'depth' of 'backbone.P4': 0 ", "a whole number from 1 to 64"),
    ("depth float", P4 + "    depth: 1.5\n", 5, "1.5", "a whole number from 1 to 64"),
    ("depth huge", P4 + "    depth: 1000000000\n", 5, "1000000000", "a whole number from 1 to 64"),
    ("heads 0", P4 + "    heads: 0\n", 5, "'heads' of 'backbone.P4': 0 ", "a whole number from 1 to 128"),
    ("heads huge", P4 + "    heads: 129\n", 5, "'heads' of 'backbone.P4': 129 ", "a whole number from 1 to 128"),
    ("window huge", P4 + "    irmb: {window: 65}\n", 5, "'window' of 'backbone.P4': 65 ", "from 0 to 64"),
    ("kernel huge", P4 + "    irmb: {kernel: 33}\n", 5, "'kernel' of 'backbone.P4': 33 ", "from 1 to 31"),
    ("ratio huge", P4 + "    irmb: {ratio: 1.0e+9}\n", 5, "1000000000.0", "from 0.125 to 16"),
    ("key_dim huge", P4 + "    mobile_mqa: {key_dim: 1025}\n", 5, "1025", "from 1 to 1024"),
    ("kv_stride huge", P4 + "    mobile_mqa: {kv_stride: 17}\n", 5, "17", "from 1 to 16"),
    ("empty choice", P4 + "    depth: []\n", 5, "'depth' of 'backbone.P4' is empty", "give at least one choice"),
    ("null choice", P4 + "    depth:\n", 5, "None", "a whole number from 1 to 64"),
    ("duplicate choice", P4 + "    width: [1, 1.0]\n", 5, "1.0 stands there twice", "remove one"),
    ("duplicate key", P4 + "    block: keep\n", 5, "duplicate key 'block'", "on line 4 already"),
    ("unknown knob", P4 + "    irmb: {windo: 7}\n", 5, "'windo' of irmb", "did you mean 'window'?"),
    ("heads as a knob", P4 + "    irmb: {heads: 2}\n", 5, "'heads' of irmb", "beside block"),
    ("even kernel", P4 + "    irmb: {kernel: [3, 4]}\n", 5, "'kernel' of 'backbone.P4': 4 ", "must be odd"),
    ("knob of a wrong kind", P4 + "    irmb: {se: 1}\n", 5, "'se' of 'backbone.P4': 1 ", "must be true or false"),
    ("knobs are no mapping", P4 + "    irmb: 7\n", 5, "'irmb' holds no knobs", "for example {"),
    ("knobs of an absent block", P4 + "    repvit: {ratio: 2}\n", 5, "'repvit', which slot 'backbone.P4'", "add repvit to"),
    ("alias", LAUGHS, 2, "alias '*a'", "write the value out"),
    ("tag", P4 + "    width: !!python/object:os.system [ls]\n", 5, "python/object:os.system", "remove it"),
    ("tag on a scalar", P4 + "    width: !!python/name:os.system\n", 5, "python/name:os.system", "mend the YAML"),
    ("mapping as a key", TOP + "  {a: b}: keep\n", 3, "a key must be a word", "on that line"),
    ("not YAML", TOP + "  backbone.P4: {block: [keep\n", 4, "expected", "mend the YAML"),
    ("impossible date", P4 + "    width: 2024-99-99\n", 5, "2024-99-99", "in quotes"),
    ("forbid is a text", P4 + "forbid: imgsz > 640\n", 5, "'forbid' is not a list", "one rule per line"),
    ("rule is a number", FORBID + "  - 5\n", 5, "rule '5'", "not a text"),
    ("rule: syntax", FORBID + "  - imgsz >\n", 5, "rule 'imgsz >'", "not a comparison"),
    ("rule: assignment", FORBID + "  - imgsz = 640\n", 5, "rule 'imgsz = 640'", "not a comparison"),
    ("rule: unknown name", FORBID + "  - imgsz > 1\n  - imgsize > 640\n", 6, "'imgsize'", "did you mean 'imgsz'?"),
    ("rule: unknown slot", FORBID + "  - backbone.P9.depth > 1\n", 5, "'backbone.P9.depth'", "did you mean 'backbone.P"),
    ("rule: import", FORBID + "  - __import__('os').system('ls')\n", 5, "__import__", "is not allowed in a rule"),
    ("rule: call", FORBID + "  - len(imgsz) > 3\n", 5, "'len(imgsz)'", "is not allowed in a rule"),
    ("rule: attribute", FORBID + "  - imgsz.__class__ == 1\n", 5, "unknown name 'imgsz.__class__'", "imgsz"),
    ("rule: attribute of text", FORBID + "  - '''a''.__class__ == 1'\n", 5, "__class__", "is not allowed in a rule"),
    ("rule: lambda", FORBID + "  - '(lambda: 1)() == 1'\n", 5, "lambda", "is not allowed in a rule"),
    ("rule: comprehension", FORBID + "  - '[x for x in (1, 2)]'\n", 5, "for x in", "is not allowed in a rule"),
    ("rule: subscript", FORBID + "  - imgsz[0] == 1\n", 5, "imgsz[0]", "is not allowed in a rule"),
    ("rule: power", FORBID + "  - imgsz > 9**9**9\n", 5, "9 ** 9 ** 9", "is not allowed in a rule"),
    ("rule: endless number", FORBID + f"  - imgsz > 1{'0' * 5000}\n", 5, "longer than 500", "longer"),
    ("rule: is", FORBID + "  - imgsz is 640\n", 5, "imgsz is 640", "only ==, !="),
    ("rule: f-string", FORBID + "  - f'{imgsz}' == '640'\n", 5, "{imgsz}", "is not allowed in a rule"),
    ("rule: or without a name", FORBID + "  - imgsz == 640 or 960\n", 5, "'960' compares nothing", "in (value, value)"),
    ("rule: nothing compared", FORBID + "  - \"'irmb'\"\n", 5, "compares nothing", "name == value"),
    ("rule: imgsz alone", FORBID + "  - backbone.P4.depth > 1 and imgsz\n", 5, "'imgsz' compares nothing", "name == value"),
    ("rule: block alone", FORBID + "  - backbone.P4.block\n", 5, "'backbone.P4.block' compares nothing", "name == value"),
    ("rule: not of a depth", FORBID + "  - not backbone.P4.depth\n", 5, "'backbone.P4.depth' compares nothing", "name =="),
    ("rule: not of a number", FORBID + "  - imgsz > 1 and not -1\n", 5, "'-1' compares nothing", "name == value"),
    ("rule: deep", FORBID + f"  - {'(' * 240}imgsz{')' * 240}\n", 5, "((((", "not a comparison"),
]


@pytest.mark.parametrize(("text", "line", "word", "cure"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_a_fault_names_its_line_the_word_and_the_cure(tmp_path: Path, text: str, line: int, word: str, cure: str) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_space(path)
    told = str(caught.value)
    here = [row for row in told.splitlines() if row.startswith(f"{path}:{line}: ")]
    assert here, told
    assert any(word in row for row in here), told
    assert cure in told


WHOLE_FILE = [
    ("nested too deep", NESTED.encode(), "nested more than 50 deep"),
    ("over 1 MB", b"# " + b"x" * 1_000_000, "over 1000 kB"),
    ("a list", b"- skeleton\n", "holds no 'key: value' lines"),
    ("empty", b"", "holds no 'key: value' lines"),
    ("binary", bytes(range(128, 256)), "not text in UTF-8"),
    ("null bytes", b"skeleton: \0\n", "special characters are not allowed"),
]


@pytest.mark.parametrize(("content", "reason"), [f[1:] for f in WHOLE_FILE], ids=[f[0] for f in WHOLE_FILE])
def test_a_file_that_is_no_search_space_at_all(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "space.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_space(path)
    assert str(path) in caught.value.message
    assert reason in caught.value.message
    assert caught.value.hint


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").touch()
    with pytest.raises(InputError, match=r"did you mean 'space\.yaml'"):
        read_space(tmp_path / "spcae.yaml")
    with pytest.raises(InputError, match="give the path of a YAML file"):
        read_space(tmp_path)


def test_all_faults_come_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(
        "skeleton: yolo11n.yaml\n"
        "slotz: {}\n"
        "slots:\n"
        "  backbone.P4:\n"
        "    block: [keep, repvitt, rimb]\n"
        "    width: [0, wide]\n"
        "    depth: []\n"
        "    irmb: {kernel: 4, windo: 7}\n"
        "  neck.P9: {block: nothing}\n"
        "forbid:\n"
        "  - imgsize > 3\n"
        "  - imgsz > 9**9**9\n",
        encoding="utf-8",
    )
    with pytest.raises(InputError) as caught:
        read_space(path)
    lines = [int(row.removeprefix(f"{path}:").split(":")[0]) for row in caught.value.message.splitlines()]
    # 8 three times: a wrong kernel, an unknown knob, and the block is not in the list
    assert lines == [2, 5, 5, 6, 6, 7, 8, 8, 8, 9, 9, 11, 12]


def test_a_slot_with_too_many_combinations_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    many = list(range(1, 61))
    path.write_text(P4 + f"    depth: {many}\n    heads: {many}\n    irmb: {{window: {many}}}\n", encoding="utf-8")
    with pytest.raises(InputError, match=r":2: slot 'backbone.P4' has 219,600 combinations"):
        read_space(path)


BROKEN_SKELETONS = [
    ("no head", "backbone:\n  - [-1, 1, Conv, [16, 3, 2]]\n", 1, "no 'head' rows"),
    ("row too short", "backbone:\n  - [-1, 1, Conv]\nhead:\n  - [0, 1, Detect, [nc]]\n", 2, "row is not"),
    ("channels left out", "backbone:\n  - [-1, 1, Conv, []]\nhead:\n  - [0, 1, Detect, [nc]]\n", 2, "Conv"),
    ("channels a word", "backbone:\n  - [-1, 1, Conv, [wide]]\nhead:\n  - [0, 1, Detect, [nc]]\n", 2, "Conv"),
    ("source out of range", "backbone:\n  - [-1, 1, Conv, [8]]\nhead:\n  - [7, 1, Conv, [8]]\n", 4, "Conv"),
    ("repeats a word", "backbone:\n  - [-1, many, Conv, [8]]\nhead:\n  - [0, 1, Detect, [nc]]\n", 2, "Conv"),
    (
        "scales are no numbers",
        "scales: {n: [a]}\nbackbone:\n  - [-1, 1, Conv, [8]]\nhead:\n  - [0, 1, Conv, [8]]\n",
        1,
        "scales",
    ),
    (
        "another task",
        "backbone:\n  - [-1, 1, C2f, [8]]\nhead:\n  - [0, 1, C2f, [8]]\n  - [[1], 1, OBB, [nc, 1]]\n",
        5,
        "the last row is OBB, not a head of detection or segmentation (nas searches these two; models of other tasks build, "
        "train and export with: nas yolo)",
    ),
    ("nc is a word", "nc: x\nbackbone:\n  - [-1, 1, Conv, [8]]\nhead:\n  - [0, 1, Conv, [8]]\n", 1, "nc"),
]


@pytest.mark.parametrize(("text", "line", "word"), [f[1:] for f in BROKEN_SKELETONS], ids=[f[0] for f in BROKEN_SKELETONS])
def test_a_broken_skeleton_names_its_own_line(tmp_path: Path, text: str, line: int, word: str) -> None:
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "space.yaml").write_text("skeleton: mine.yaml\nslots: {backbone.P4: {block: keep}}\n", encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_space(tmp_path / "space.yaml")
    told = str(caught.value)
    assert f"{tmp_path / 'mine.yaml'}:{line}: " in told
    assert word in told


@pytest.mark.parametrize(
    "activation", ["__import__('os').system('true')", "nn.SiLU().__class__", "nn.Sequential()", "print(1)", "5", "[nn.SiLU()]"]
)
def test_an_unknown_activation_is_refused_with_file_and_line(tmp_path: Path, activation: str) -> None:
    stock = "backbone:\n  - [-1, 1, Conv, [8]]\nhead:\n  - [0, 1, C2f, [8]]\n"
    (tmp_path / "mine.yaml").write_text(f"nc: 3\nactivation: {activation}\n{stock}", encoding="utf-8")
    (tmp_path / "space.yaml").write_text("skeleton: mine.yaml\nslots: {neck.*: {block: keep}}\n", encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_space(tmp_path / "space.yaml")
    assert f"{tmp_path / 'mine.yaml'}:2: activation" in str(caught.value)
    assert "nn.SiLU()" in str(caught.value)


@pytest.mark.parametrize("activation", ["nn.SiLU()", "torch.nn.LeakyReLU(0.1)", "nn.ReLU(inplace=True)"])
def test_known_activations_are_read(tmp_path: Path, activation: str) -> None:
    (tmp_path / "mine.yaml").write_text(
        f"activation: {activation}\nbackbone:\n  - [-1, 1, Conv, [8]]\n"
        "head:\n  - [-1, 1, C2f, [8]]\n  - [[-1], 1, Detect, [nc]]\n",
        encoding="utf-8",
    )
    (tmp_path / "space.yaml").write_text("skeleton: mine.yaml\nslots: {'neck.*': {block: keep}}\n", encoding="utf-8")
    assert read_space(tmp_path / "space.yaml").skeleton.extras["activation"] == activation
