"""The entrance exam: ours pass it, and each property that a block may lack is told in plain words."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.blocks.catalog import CATALOG, BlockSpec, Knob
from nas.blocks.common import BlockBase, ConvNorm
from nas.blocks.exam import admit, examine
from nas.errors import InputError
from nas.space.reader import read_space

KERNEL = {"kernel": Knob(3, "", low=1, high=9)}


class Sound(nn.Module):
    """Passes; every faulty block below lacks one thing."""

    def __init__(self, c1: int, c2: int, depth: int = 1, *, heads: int = 4, kernel: int = 3) -> None:
        super().__init__()
        self.enter = nn.Conv2d(c1, c2, 1, bias=False)
        self.norm = nn.BatchNorm2d(c2)
        self.parts = nn.Sequential(*(nn.Conv2d(c2, c2, kernel, padding=kernel // 2, groups=heads) for _ in range(depth)))
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.parts(self.norm(self.enter(x))))


class Whole(BlockBase):
    """Passes: built of our parts, with a branch that starts at nothing, a frozen parameter, a list and dropout."""

    def __init__(self, c1: int, c2: int, depth: int = 1) -> None:
        super().__init__(c1, c2, depth, lambda _: nn.Sequential(ConvNorm(c2, c2, 3), nn.Dropout(0.5)))
        self.gain = nn.Parameter(torch.zeros(()))
        self.fixed = nn.Parameter(torch.ones(c2, 1, 1), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x + self.gain * self.units(x) * self.fixed


class Single(Sound):
    """Passes though it works in float32 alone, where `fuse()` is compared less strictly."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float64:
            raise RuntimeError("float32 only")
        return super().forward(x)

    def fuse(self) -> None:
        self.fused = True


class Squeezed(Sound):
    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(F.max_pool2d(super().forward(x), 2, ceil_mode=True), scale_factor=2)


class Narrow(Sound):
    def __init__(self, c1: int, c2: int, depth: int = 1, **options: int) -> None:
        super().__init__(c1, c1, depth, **options)


class Shallow(Sound):
    def __init__(self, c1: int, c2: int, depth: int = 1, **options: int) -> None:
        if depth > 1:
            raise ValueError("one is enough")
        super().__init__(c1, c2, depth, **options)


class Flat(Sound):
    def __init__(self, c1: int, c2: int, depth: int = 1, **options: int) -> None:
        super().__init__(c1, c2, 1, **options)


class Dead(Sound):
    def __init__(self, c1: int, c2: int, depth: int = 1, **options: int) -> None:
        super().__init__(c1, c2, depth, **options)
        self.scale = nn.Parameter(torch.ones(c2))


class Cut(Sound):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


class Spread(Sound):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y / y.std((2, 3), keepdim=True)  # of one pixel: NaN


class Greedy(Sound):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(2))


class Eager(Sound):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.act(x))


class Residual(Sound):
    def forward(self, x: Tensor) -> Tensor:
        y = self.parts(self.norm(self.enter(x)))
        return self.act(y) + y


class Pair(Sound):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x), x


class Doubled(Sound):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).double()


class Crowd(Sound):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(0, keepdim=True))


class Viewing(Sound):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y.view(len(y), -1).view(y.shape)


class Lossy(Sound):
    def fuse(self) -> None:
        self.norm = nn.Identity()


class Another(Sound):
    def fuse(self) -> nn.Module:
        return nn.Sequential(self)


class Secret(Sound):
    def __init__(self, c1: int, c2: int, depth: int = 1, **options: int) -> None:
        super().__init__(c1, c2, depth, **options)
        self.secret = torch.rand(c2, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.secret


class Shy(Sound):
    def __init__(self, c1: int, c2: int, depth: int = 1, **options: int) -> None:
        super().__init__(c1, c2, depth, **options)
        self.doubled = 2 * self.enter.weight


class Hoarder(Sound):
    def fuse(self) -> None:
        if not isinstance(self.norm, nn.Identity):
            scale = self.norm.weight / (self.norm.running_var + self.norm.eps).sqrt()
            self.shift = (self.norm.bias - self.norm.running_mean * scale).detach().reshape(-1, 1, 1)
            self.enter.weight.data *= scale.reshape(-1, 1, 1, 1)
            self.norm = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.enter(x))
        return self.act(self.parts(y + self.shift if hasattr(self, "shift") else y))


class Foreign(Sound):
    def __init__(self, c1: int, c2: int, depth: int = 1, **options: int) -> None:
        super().__init__(c1, c2, depth, **options)
        self.norm.bias.data = torch.from_numpy(np.random.default_rng().random(c2, dtype=np.float32))


class Restless(Sound):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x), 0.5)


class Strict(Sound):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return torch.zeros(y.shape).index_add_(0, torch.arange(len(y)), y)


class Branching(Sound):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if x.sum() == 0 else 2 * y


class Exotic(Sound):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.special.bessel_j0(x).mean((1, 2, 3), keepdim=True)


class Touchy(Sound):
    def __init__(self, c1: int, c2: int, depth: int = 1, *, heads: int = 4, kernel: int = 3) -> None:
        super().__init__(c1, c2, depth, heads=heads, kernel=kernel)
        if heads == 1:
            raise ValueError("one head is none")


class Exploding(Sound):
    def __init__(self, c1: int, c2: int, depth: int = 1, **options: int) -> None:
        super().__init__(c1, c2, depth, **options)
        self.root = nn.Parameter(torch.zeros(c2, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.root.abs().sqrt()


def spec(kind: type, **fields: object) -> BlockSpec:
    return BlockSpec(kind.__name__.lower(), kind.__name__, f"{__name__}:{kind.__name__}", "", **fields)


HEADS = {"default_heads": lambda _: 4, "heads_divide": True}


@pytest.mark.parametrize("name", CATALOG)
def test_ours_pass(name: str) -> None:
    report = examine(CATALOG[name], heads=(3, 8))
    assert report.findings == ()
    assert report.checks > 25


@pytest.mark.parametrize("passing", [spec(Sound, **HEADS), spec(Whole), spec(Single)], ids=lambda spec: spec.row)
def test_sound_blocks_pass(passing: BlockSpec) -> None:
    assert examine(passing).findings == ()


SIZES = ("8 x 8", "7 x 5", "13 x 20")
DEEP = ("with c1=16, c2=32, depth=2", "with c1=32, c2=32, depth=3", "at depth 3")
# block -> what each finding begins with and holds, in order; there are no others
FAULTY = [
    (Squeezed, ["at 7 x 5 the output is (2, 32, 8, 6), expected (2, 32, 7, 5)", "at 5 x 8 ", "at 1 x 1 ", "at 16 x 9 "]),
    (Narrow, ["at 8 x 8 the output is (2, 16, 8, 8), expected (2, 32, 8, 8)"]),
    (Shallow, [f"raises {at}: ValueError: one is enough (test_exam.py:" for at in DEEP]),
    (Flat, ["depth changes nothing: at 1 and at 3 it has 2,912 parameters and equal outputs"]),
    (Dead, ["parameter 'scale' never receives a gradient"]),
    (Cut, ["no parameter ever receives a gradient"]),
    (Spread, ["at 1 x 1 the output holds NaN or infinity"]),
    (Greedy, ["changes its input in place (at 8 x 8)"]),
    (Eager, ["with its activations in place, as Ultralytics sets them, it changes its input"]),
    (Residual, ["with its activations in place, as Ultralytics sets them, the output is another by up to"]),
    (Pair, ["gives tuple, not one tensor"]),
    (Doubled, ["the output is torch.float64 where the input is torch.float32"]),
    (Crowd, ["alone in a batch, an image gets another output by up to"]),
    (Viewing, ["raises in channels_last layout (reshape() where view() fails): RuntimeError: view size is not"]),
    (Lossy, ["after fuse() the output is another by up to"]),
    (Another, ["fuse() gives another module: it must change the block in place"]),
    (Secret, ["a new block with the same state_dict gives another output by up to"]),
    (Hoarder, ["a new fused block with the same state_dict gives another output by up to"]),
    (Shy, ["raises when copied, as trainings and exports do: RuntimeError: Only Tensors created explicitly by the user"]),
    (Foreign, ["'norm.bias' differs between two blocks made from one seed: draw from torch's own generator"]),
    (Restless, ["a second pass in eval mode gives another output by up to"]),
    (Strict, ["raises under bfloat16 autocast: RuntimeError: index_add_(): self (Float) and source (BFloat16)"]),
    (Branching, [f"exported to ONNX at {size}, the output in onnxruntime is another by up to " for size in SIZES]),
    (Exotic, [f"raises when exported to ONNX at {size}: UnsupportedOperatorError: Exporting" for size in SIZES]),
    (Exploding, ["the gradient of 'root' holds NaN or infinity in training mode"]),
]  # fmt: skip


@pytest.mark.parametrize(("faulty", "begin"), FAULTY, ids=[kind.__name__ for kind, _ in FAULTY])
def test_what_a_block_lacks_is_told(faulty: type, begin: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    found = examine(spec(faulty)).findings
    assert capfd.readouterr() == ("", "")
    for finding, expected in zip(found, begin, strict=True):
        assert finding.startswith(f"{faulty.__name__}: {expected}"), found
        assert "\n" not in finding


def test_knobs_and_heads_are_tried_where_the_catalog_or_the_space_puts_them() -> None:
    assert examine(spec(Sound, knobs=KERNEL, **HEADS), {"kernel": [5, 7]}, heads=[3]).findings == ()
    even = examine(spec(Sound, knobs={"kernel": Knob(3, "", low=2, high=9)}), {"kernel": [4]})
    size = "at 7 x 5 the output is (2, 32, 8, 6), expected (2, 32, 7, 5)"
    assert even.findings == (f"Sound: with kernel=2: {size}", f"Sound: with kernel=4: {size}")
    (one,) = examine(spec(Touchy, **HEADS)).findings
    assert one.startswith("Touchy: raises with heads=1 at 32 channels: ValueError: one head is none (test_exam.py:")
    rounded = examine(spec(Sound, **HEADS), heads=[5])
    assert rounded.findings == ()  # at 40 channels
    apart = examine(spec(Sound, default_heads=lambda _: 4), heads=[5]).findings
    assert [finding.partition(": ")[2].partition(":")[0] for finding in apart] == ["raises with heads=5 at 32 channels"]


def test_all_findings_of_all_blocks_come_at_once(tmp_path, monkeypatch) -> None:
    with pytest.raises(InputError) as caught:
        admit([spec(Dead), spec(Sound), spec(Cut)])
    assert [line.partition(":")[0] for line in caught.value.message.splitlines()] == ["Dead", "Cut"]
    monkeypatch.setitem(CATALOG, "sound", spec(Sound, knobs=KERNEL))
    (tmp_path / "space.yaml").write_text(
        "skeleton: yolo11n.yaml\nslots:\n  '*': {block: [sound], sound: {kernel: [3, 5]}}\n"
        "  backbone.P3: {block: [keep]}\n  neck.*: {sound: {kernel: 4}}\n"
    )
    with pytest.raises(InputError, match="Sound: with kernel=4: at 7 x 5 the output is"):
        admit([CATALOG["sound"]], read_space(tmp_path / "space.yaml"))


def test_an_exam_leaves_torch_as_it_was() -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    examine(spec(Sound))
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
