"""A user's block file: what its classes are taken for, and every way in which it can be wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

import nas
from nas.blocks import user
from nas.blocks.catalog import CATALOG, ROWS, BlockSpec, Knob
from nas.blocks.exam import examine
from nas.blocks.register import as_data, from_data, register, ultralytics_names
from nas.errors import InputError
from nas.latency.cache import model_key
from nas.runs.folder import block_files, read_blocks, write_blocks, write_space
from nas.space.architecture import Architecture, model_yaml, place
from nas.space.reader import read_space
from nas.space.skeleton import read_skeleton

HEAD = "import nas\nfrom torch import nn\n"


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def source(arguments: str = "c1, c2, depth=1", mark: str = "", name: str = "MyBlock") -> str:
    """A file with one class; `mark` are the arguments of `@nas.block`."""
    return f"{HEAD}@nas.block({mark})\nclass {name}(nn.Module):\n  def __init__(self, {arguments}):\n    super().__init__()\n"


def one(folder: Path, *how: str, **named: str) -> BlockSpec:
    return nas.load_blocks(written(folder / "one.py", source(*how, **named)))[0]


def test_a_file_is_a_module_of_nas_user_and_its_blocks_stand_in_the_catalog(blocks: Path) -> None:
    (spec,) = nas.load_blocks(blocks)
    assert CATALOG["my_block"] is ROWS["MyBlock"] is spec
    assert (spec.source, spec.paper, spec.heads_divide) == ("nas.user.my_blocks:MyBlock", "Ours, 2026", True)
    assert spec.knobs == {
        "ratio": Knob(2.0, "width of the middle", float, low=0.5, high=4),
        "fast": Knob(False, "", bool, low=-float("inf")),
    }
    assert [spec.default_heads(channels) for channels in (8, 12, 10, 3)] == [4, 4, 2, 3]
    assert spec.load().__module__ == "nas.user.my_blocks"
    assert nas.user.my_blocks.MyBlock is spec.load()
    assert examine(spec).findings == ()


def test_the_block_of_the_readme_passes_the_exam(tmp_path: Path) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    text = readme.partition("## Your own blocks")[2].partition("```python\n")[2].partition("```")[0]
    (spec,) = nas.load_blocks(written(tmp_path / "my_blocks.py", text))
    assert (spec.name, spec.has_heads, list(spec.knobs)) == ("my_block", True, ["ratio", "fast"])
    assert examine(spec).findings == ()


@pytest.mark.parametrize(
    ("name", "word"), [("MyBlock", "my_block"), ("SEBlock", "se_block"), ("Mobile2MQA", "mobile2_mqa"), ("X", "x")]
)
def test_names_in_spaces_are_snake_case(tmp_path: Path, name: str, word: str) -> None:
    assert one(tmp_path, name=name).name == word


def test_knobs_are_what_annotations_and_defaults_say(tmp_path: Path) -> None:
    knobs = "a=3, b=2.5, c=True, d: float = 2, e: 'float' = 1, f=None, g='relu', h=nn.ReLU, i: int | None = 5"
    spec = one(tmp_path, f"c1, c2, depth=1, *, {knobs}", "name='other'")
    assert {name: (knob.kind, knob.default) for name, knob in spec.knobs.items()} == {
        "a": (int, 3),
        "b": (float, 2.5),
        "c": (bool, True),
        "d": (float, 2),
        "e": (float, 1),
        "i": (int, 5),
    }
    assert spec.name == "other"
    assert not spec.has_heads


def test_heads_come_from_the_mark_or_the_signature(tmp_path: Path) -> None:
    assert one(tmp_path, "c1, c2, depth=1, *, heads=None", "heads=6, heads_divide=False").default_heads(8) == 6


WITH = "c1, c2, depth=1, *, {}"
# what, file, line that is named, words
FAULTS = [
    ("syntax", "import nas\nclass (:\n", 2, "SyntaxError"),
    ("null byte", "import nas\n\0\n", 0, "SyntaxError: source code string cannot contain null bytes"),
    ("raises", HEAD + "1 / 0\n", 3, "ZeroDivisionError: division by zero"),
    ("raises below", HEAD + "def f():\n    raise KeyError('a\\nb')\nf()\n", 4, "KeyError: 'a\\nb'"),
    ("ends the process", HEAD + "raise SystemExit(3)\n", 3, "SystemExit: 3"),
    ("misses a module", "import nas\nimport helpers_beside\n", 2, "No module named 'helpers_beside'"),
    ("another block file", "import nas\n\nimport nas.user.other\n", 3, "needs the user block file other.py"),
    ("no block", HEAD + "class A(nn.Module): pass\n", 0, "holds no block"),
    ("a block of elsewhere", HEAD + "from nas.blocks.repvit import RepViT\n", 0, "holds no block"),
    ("an heir of a block", HEAD + "class A(nn.Module): __nas_block__ = 1\nclass B(A): pass\ndel A\n", 0, "holds no block"),
    ("no module", HEAD + "@nas.block\nclass A: pass\n", 3, "which is no torch.nn.Module"),
    ("a function", HEAD + "@nas.block(name='a')\ndef f(): pass\n", 3, "which is no torch.nn.Module"),
    ("no channels", source("dim, *, ratio=2"), 3, "the arguments of MyBlock are (dim, ratio)"),
    ("positional", source("c1, c2, depth=1, ratio=2"), 3, "'ratio' of MyBlock is not keyword-only"),
    ("no default", source("c1, c2, depth=1, *, ratio"), 3, "'ratio' of MyBlock has no default"),
    ("heads of none", source(mark="heads=2"), 3, "its __init__ takes no heads"),
    ("heads unsaid", source(WITH.format("heads=None")), 3, "does not say how many heads"),
    ("heads 0", source(WITH.format("heads=None"), "heads=0"), 3, "does not say how many heads"),
    ("a knob of nothing", source(mark="knobs={'r': nas.Knob(1, '')}"), 3, "knob 'r' is no keyword-only argument of MyBlock"),
    ("default too high", source(WITH.format("r=9"), "knobs={'r': nas.Knob(9, '', high=4)}"), 0, "default 9 must be from 1 to"),
    ("default of another kind", source(WITH.format("r: int = 2.5")), 0, "its default 2.5 must be a whole number"),
    ("a knob that rules know", source(WITH.format("width=2")), 0, "cannot be called 'width'"),
    ("called keep", source(mark="name='keep'"), 0, "cannot be called 'keep'"),
    ("called depth", source(mark="name='depth'"), 0, "cannot be called 'depth'"),
    ("called badly", source(mark="name='My Block'"), 0, "'My Block' is not a block name"),
    ("called as ours", source(mark="name='repvit'"), 0, "there is a block 'repvit' already, of nas itself"),
    ("a class of ours", source(mark="name='mine'", name="RepViT"), 0, "a block class 'RepViT' already, of nas itself"),
    ("a class of Ultralytics", source(mark="name='mine'", name="C2f"), 0, "'C2f' is a name of Ultralytics"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line", "words"), [fault[1:] for fault in FAULTS], ids=[fault[0] for fault in FAULTS])
def test_a_faulty_file_is_told_with_its_line_and_leaves_nothing(tmp_path: Path, text: str, line: int, words: str) -> None:
    path, before = written(tmp_path / "faulty.py", text), (dict(CATALOG), dict(ROWS))
    with pytest.raises(InputError) as caught:
        nas.load_blocks(path)
    assert caught.value.message.startswith(f"{path}:{line}: " if line else str(path))
    assert words in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint
    assert before == (CATALOG, ROWS)
    assert nas.load_blocks(written(path, source()))[0].name == "my_block"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("absent.py", "No such file"),
        ("my-blocks.py", "called like a Python module"),
        (".", "no file of at most"),
        ("/dev/zero", "no file of at most"),
        ("huge.py", "no file of at most 1000 kB"),
        ("a\0b.py", "null byte"),
    ],
)
def test_a_file_that_cannot_be_one(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "my-blocks.py").touch()
    (tmp_path / "huge.py").write_text("#" * 1_000_001)
    with pytest.raises(InputError, match=words):
        nas.load_blocks(tmp_path / name)


def test_files_that_clash(blocks: Path, tmp_path: Path) -> None:
    nas.load_blocks(blocks)
    (tmp_path / "b").mkdir()
    stem = written(tmp_path / "b" / "my_blocks.py", blocks.read_text() + "\n")
    with pytest.raises(InputError, match=f"another my_blocks.py is loaded already, {blocks}"):
        nas.load_blocks(stem)
    again = written(tmp_path / "more_blocks.py", blocks.read_text())
    with pytest.raises(InputError, match=r"there is a block 'my_block' already, from my_blocks\.py"):
        nas.load_blocks(again)
    row = written(tmp_path / "third.py", blocks.read_text().replace("nas.block(", "nas.block(name='third', "))
    with pytest.raises(InputError, match=r"there is a block class 'MyBlock' already, from my_blocks\.py"):
        nas.load_blocks(row)
    assert [spec.name for spec in CATALOG.values() if spec.digest] == ["my_block"]


def test_a_file_runs_once_and_leaves_no_bytecode(blocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACE", str(tmp_path / "trace"))
    (tmp_path / "copy").mkdir()
    copy = written(tmp_path / "copy" / "my_blocks.py", blocks.read_text())
    monkeypatch.chdir(tmp_path)
    assert nas.load_blocks(blocks, "my_blocks.py", copy) == nas.load_blocks(blocks)
    assert (tmp_path / "trace").read_text() == f"{blocks}\n"
    assert not (tmp_path / "__pycache__").exists()


def test_without_its_file_a_module_of_nas_user_names_it() -> None:
    with pytest.raises(InputError, match=r"needs the user block file my_blocks\.py") as caught:
        __import__("nas.user.my_blocks")
    assert "nas.load_blocks('my_blocks.py')" in caught.value.hint
    assert "--blocks my_blocks.py" in caught.value.hint


def test_a_block_file_can_be_used_without_nas_loading_it(blocks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a user's own tests: an import marks the classes, and registers nothing."""
    monkeypatch.syspath_prepend(blocks.parent)
    try:
        import my_blocks

        assert my_blocks.MyBlock(8, 16)(torch.zeros(1, 8, 4, 4)).shape == (1, 16, 4, 4)
    finally:
        sys.modules.pop("my_blocks", None)
    assert "my_block" not in CATALOG


def test_names_of_ultralytics_are_read_without_it() -> None:
    from ultralytics.nn import tasks

    assert {name for name in vars(tasks) if not name.startswith("__")} <= ultralytics_names()


# What a run folder keeps


def test_blocks_as_data(blocks: Path) -> None:
    (spec,) = nas.load_blocks(blocks)
    assert from_data(json.loads(json.dumps(as_data(spec), allow_nan=False))) == spec


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", 3),
        ("file", "../my_blocks.py"),
        ("file", "my_blocks.txt"),
        ("heads", "4"),
        ("heads", 0),
        ("heads", True),
        ("knobs", 3),
        ("knobs", {"ratio": {}}),
        ("knobs", {"ratio": {"default": 2, "doc": "", "kind": "str", "low": None, "high": None, "odd": False}}),
        ("knobs", {"ratio": {"default": 2, "doc": "", "kind": "int", "low": "a", "high": None, "odd": False}}),
        ("digest", None),
    ],
)
def test_a_damaged_description_is_told(blocks: Path, tmp_path: Path, key: str, value: object) -> None:
    specs = nas.load_blocks(blocks)
    write_blocks(tmp_path, specs, [blocks])
    assert read_blocks(tmp_path) == specs
    path = tmp_path / "blocks" / "blocks.json"
    (data,) = json.loads(path.read_text())
    for damaged in ([data | {key: value}], {"a": 1}, [3], {k: v for k, v in data.items() if k != key}):
        path.write_text(json.dumps(damaged))
        with pytest.raises(InputError, match=r"blocks\.json: damaged"):
            read_blocks(tmp_path)


def test_a_description_cannot_take_names_that_are_taken(blocks: Path) -> None:
    (spec,) = nas.load_blocks(blocks)
    hostile = as_data(spec) | {"name": "theirs", "row": "Conv"}
    with pytest.raises(InputError, match="'Conv' is a name of Ultralytics"):
        register([from_data(hostile)])
    other = as_data(spec) | {"digest": "0"}
    with pytest.raises(InputError, match="there is a block 'my_block' already"):
        register([from_data(other)])


def test_a_runs_copy_must_be_what_it_was(blocks: Path, tmp_path: Path) -> None:
    write_blocks(tmp_path, nas.load_blocks(blocks), [blocks])
    (copy,) = block_files(tmp_path)
    assert copy.read_text() == blocks.read_text()
    copy.write_text("print('hello')\n")
    with pytest.raises(InputError, match="has changed since the run began"):
        block_files(tmp_path)
    copy.unlink()
    with pytest.raises(InputError, match="No such file"):
        block_files(tmp_path)


SPACE = """\
skeleton: yolo11n.yaml
blocks: [my_blocks.py]
slots:
  backbone.P4: {block: [keep, my_block], my_block: {ratio: [1, 2]}}
"""


def test_a_space_that_lists_a_file_does_not_run_it(blocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACE", str(tmp_path / "trace"))
    space = written(tmp_path / "space.yaml", SPACE)
    with pytest.raises(InputError) as caught:
        read_space(space)
    assert caught.value.message.startswith(f"{space}:2: needs the block file 'my_blocks.py'")
    assert f"add --blocks {blocks}" in caught.value.message
    assert "\n" not in caught.value.message
    assert not (tmp_path / "trace").exists()
    nas.load_blocks(blocks)
    assert read_space(space).size == 3
    blocks.write_text(blocks.read_text() + "\n")  # no longer what was loaded
    with pytest.raises(InputError, match="needs the block file"):
        read_space(space)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("blocks: my_blocks.py", "'blocks' is not a list of files"),
        ("blocks: [1]", "'blocks' is not a list of files"),
        ("blocks: [absent.py]", "absent.py: No such file"),
    ],
)
def test_faulty_lists_of_files(tmp_path: Path, line: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_space(written(tmp_path / "space.yaml", SPACE.replace("blocks: [my_blocks.py]", line)))


def test_words_of_a_users_block_are_checked_as_ours(blocks: Path, tmp_path: Path) -> None:
    nas.load_blocks(blocks)
    text = SPACE.replace("[keep, my_block]", "[keep, my_blok]").replace("ratio: [1, 2]", "ratio: [1, 9], fastt: true")
    text += "forbid: [backbone.P4.fast, backbone.P4.fas]\n"
    with pytest.raises(InputError) as caught:
        read_space(written(tmp_path / "space.yaml", text))
    for words in ("did you mean 'my_block'?", "9 must be from 0.5 to 4", "did you mean 'fast'?", "name 'backbone.P4.fas'"):
        assert words in caught.value.message
    assert "compares nothing" not in caught.value.message  # `fast` is a flag, known since the file was loaded


@pytest.mark.parametrize(
    "text",
    [
        SPACE,
        SPACE.replace("blocks: [my_blocks.py]", "blocks:\n- my_blocks.py  # mine\n"),
        SPACE.replace("blocks: [my_blocks.py]", "blocks: [\n  my_blocks.py,\n]"),
        "{blocks: [my_blocks.py], skeleton: yolo11n.yaml, slots: {backbone.P4: {block: my_block, my_block: {ratio: [1, 2]}}}}",
    ],
)
@pytest.mark.parametrize("skeleton", ["yolo11n.yaml", "my skeleton.yaml"])
def test_a_runs_space_lists_the_runs_own_files(blocks: Path, tmp_path: Path, text: str, skeleton: str) -> None:
    spec = nas.load_blocks(blocks)
    if skeleton != "yolo11n.yaml":
        stock = model_yaml(read_skeleton("yolo11n.yaml"), Architecture("yolo11n"))
        written(tmp_path / skeleton, json.dumps(stock))
    space = written(tmp_path / "space.yaml", text.replace("yolo11n.yaml", skeleton))
    folder = tmp_path / "run"
    folder.mkdir()
    write_space(folder, space)
    write_blocks(folder, spec, [blocks])
    blocks.unlink()
    (tmp_path / skeleton).unlink(missing_ok=True)
    kept = read_space(folder / "space.yaml")
    assert kept.skeleton.name == Path(skeleton).stem
    assert kept.slots[0].knobs == {"my_block": {"ratio": (1.0, 2.0)}}


# In models


def model(file: Path, **options: object) -> dict:
    nas.load_blocks(file)
    skeleton = read_skeleton("yolo11n.yaml")
    placement = place(skeleton.slot("backbone.P4"), "my_block", 0.5, 2, None, options)
    return model_yaml(skeleton, Architecture("yolo11n", (placement,)), nc=3)


def test_a_model_with_a_users_block_builds_trains_and_fuses(blocks: Path) -> None:
    from nas.yolo.build import build, inference_form

    torch.manual_seed(0)
    built = build(model(blocks, ratio=1.0))
    stage = built.model[6]
    assert (stage.type, stage.i, type(stage.block).__module__) == ("MyBlock", 6, "nas.user.my_blocks")
    x = torch.rand(1, 3, 64, 64)
    assert built.train()(x)["scores"].requires_grad
    fused = inference_form(built, export=False)
    assert fused.is_fused()  # though the block has no fuse()
    torch.testing.assert_close(fused(x)[0], built.eval()(x)[0], rtol=1e-4, atol=1e-3)


def test_an_unloaded_row_is_told_and_not_guessed(blocks: Path) -> None:
    from nas.yolo.build import build

    data = model(blocks)
    del CATALOG["my_block"], ROWS["MyBlock"]
    with pytest.raises(InputError, match="layer 6: unknown module 'MyBlock'") as caught:
        build(data)
    assert "--blocks" in caught.value.hint


def test_wrong_arguments_of_a_users_row_name_the_layer(blocks: Path) -> None:
    from nas.yolo.build import build

    for options, words in (
        ({"ratio": 9}, "MyBlock: ratio must be from 0.5 to 4, not 9"),
        ({"heads": 0}, "MyBlock: heads must be a whole number from 1 on, not 0"),
        ({"act": 1}, "unknown knob 'act' of MyBlock"),
        ({"heads": 128}, "MyBlock raises ValueError: 128 heads need as many channels"),
    ):
        data = model(blocks)
        data["backbone"][6][3][1] = options
        with pytest.raises(InputError) as caught:
            build(data)
        assert caught.value.message.startswith("layer 6: ")
        assert words in caught.value.message


def test_a_users_block_may_stand_in_the_skeleton_itself(blocks: Path, tmp_path: Path) -> None:
    from nas.asked import admit_blocks

    written(tmp_path / "mine.yaml", json.dumps(model(blocks)))
    space = written(tmp_path / "space.yaml", "skeleton: mine.yaml\nslots: {backbone.P5: {block: [keep, repvit]}}\n")
    admit_blocks([CATALOG["my_block"]], read_space(space))
    space = written(tmp_path / "space.yaml", "skeleton: yolo11n.yaml\nslots: {backbone.P5: {block: [keep, repvit]}}\n")
    with pytest.raises(InputError, match=r"no slot of .* may hold a block of my_blocks.py"):
        admit_blocks([CATALOG["my_block"]], read_space(space))


def test_a_checkpoint_holds_a_users_block_without_its_class(blocks: Path, tmp_path: Path) -> None:
    from ultralytics.nn.tasks import torch_safe_load

    from nas.yolo.build import build
    from nas.yolo.checkpoints import save_checkpoint
    from nas.yolo.weights import read_weights

    path = tmp_path / "best.pt"
    built = build(model(blocks, ratio=1.0, fast=True)).eval()
    save_checkpoint(built, path, ["a", "b", "c"])
    assert not [name for name in torch.serialization.get_unsafe_globals_in_checkpoint(path) if name.startswith("nas")]
    loaded = torch_safe_load(str(path), safe_only=True)[0]["model"].float()
    assert type(loaded.model[6].block) is type(built.model[6].block)
    x = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(loaded(x)[0], built(x)[0], rtol=0.05, atol=1.0)  # kept in half precision, boxes in pixels
    spec = CATALOG.pop("my_block")
    del ROWS["MyBlock"], nas.user.FILES["my_blocks"], sys.modules["nas.user.my_blocks"]
    for load in (lambda: torch_safe_load(str(path)), lambda: read_weights(path)):
        with pytest.raises(InputError, match=r"needs the user block file my_blocks\.py"):
            load()
    register([spec])  # described, as in a run that is only looked at
    with pytest.raises(InputError, match=r"needs the user block file my_blocks\.py"):
        torch_safe_load(str(path))
    user._loaded.clear()
    del CATALOG["my_block"], ROWS["MyBlock"]
    blocks.write_text(blocks.read_text().replace("nn.Conv2d(c1, c2, 1)", "nn.Conv2d(c1, c2, 3, padding=1)"))
    nas.load_blocks(blocks)
    with pytest.raises(InputError, match="block 'MyBlock' cannot be rebuilt: RuntimeError: ") as caught:
        torch_safe_load(str(path))
    assert caught.value.hint == "load the my_blocks.py that it was made with"


def test_an_edited_file_is_another_model_to_the_latency_cache(blocks: Path) -> None:
    data = model(blocks)
    key = model_key(data, 64)
    stock = model_key(model_yaml(read_skeleton("yolo11n.yaml"), Architecture("yolo11n")), 64)
    ROWS["MyBlock"] = from_data(as_data(ROWS["MyBlock"]) | {"digest": "0" * 64})
    assert model_key(data, 64) != key
    assert model_key(model_yaml(read_skeleton("yolo11n.yaml"), Architecture("yolo11n")), 64) == stock
