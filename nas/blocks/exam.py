"""The entrance exam: what every block must do before a search spends anything on it. Ours pass it in the tests, a user's
before a search and by `nas space check --blocks my_blocks.py`.

Each property that does not hold is told in one line, with the values at which it does not.
"""

from __future__ import annotations

import copy
import math
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import getfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nas.blocks.catalog import BlockSpec, Knob, KnobValue
from nas.errors import InputError
from nas.space.architecture import round_channels
from nas.space.search_space import SearchSpace

C1, C2 = 16, 32
SIZE = (8, 8)
SIZES = ((7, 5), (5, 8), (1, 1), (16, 9))
ONNX_SIZES = (SIZE, (7, 5), (13, 20))
# What Ultralytics makes work in place in every model it builds.
IN_PLACE = (nn.Hardswish, nn.LeakyReLU, nn.ReLU, nn.ReLU6, nn.SiLU)


@dataclass(frozen=True)
class Report:
    """How an exam went: one line per finding, none for a block that passes."""

    row: str
    findings: tuple[str, ...]
    checks: int
    seconds: float


class Finding(Exception):  # noqa: N818  (no error of the program: a property that a block lacks)
    """A property that does not hold, in words."""


def admit(specs: Sequence[BlockSpec], space: SearchSpace | None = None) -> list[Report]:
    """Examine blocks, also at the values of their knobs and the head counts that a space may choose.

    Raises:
        InputError: one line per finding.
    """
    reports = [examine(spec, *_chosen(spec, space)) for spec in specs]
    if findings := [finding for report in reports for finding in report.findings]:
        raise InputError("\n".join(findings))
    return reports


def examine(spec: BlockSpec, knobs: Mapping[str, Sequence[KnobValue]] | None = None, heads: Sequence[int] = ()) -> Report:
    """Examine a block of stride 1 with its default knobs, at the bounds of each knob, and at the values of `knobs` and `heads`.

    Leaves torch's random state and threads as they were.
    """
    began, threads = time.perf_counter(), torch.get_num_threads()
    exam = _Exam(spec)
    torch.set_num_threads(1)  # so little work only waits for a second one
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")  # of the tracer, about what the comparison with onnxruntime answers
            exam.run(knobs or {}, heads)
    finally:
        torch.set_num_threads(threads)
    return Report(spec.row, tuple(dict.fromkeys(exam.findings)), exam.checks, time.perf_counter() - began)


def _chosen(spec: BlockSpec, space: SearchSpace | None) -> tuple[dict[str, list[KnobValue]], list[int]]:
    """What a space may choose for a block, over all slots that may hold it."""
    slots = [choices for choices in space.slots if spec.name in choices.blocks] if space else []
    knobs: dict[str, list[KnobValue]] = {}
    for choices in slots:
        for knob, values in choices.knobs.get(spec.name, {}).items():
            knobs.setdefault(knob, []).extend(values)
    return knobs, [count for choices in slots for count in choices.heads]


class _Exam:
    """One block under examination."""

    def __init__(self, spec: BlockSpec) -> None:
        self.spec, self.findings, self.checks = spec, list[str](), 0
        self.kind = spec.load()
        self.x = image()
        self.file = Path(getfile(self.kind))

    def run(self, knobs: Mapping[str, Sequence[KnobValue]], heads: Sequence[int]) -> None:
        with self.check(f"with c1={C1}, c2={C2}, depth=1"):
            self.forward(self.block(), image())
        if self.findings:
            return  # everything else would only say so again
        self.shapes()
        # Who fails at odd sizes has been told so; is there anything else?
        size, onnx_sizes = (SIZES[0], ONNX_SIZES) if not self.findings else (SIZE, ONNX_SIZES[:1])
        self.x = image(size)
        self.look(
            (self.depth, "at depth 3"),
            (self.gradients, "in a backward pass"),
            (self.training, "in training mode"),
            (self.half, "under bfloat16 autocast"),
        )
        if self.look((self.repeating, "when made again")):  # otherwise there is nothing to compare with
            self.look(
                (self.batches, "at batch 1"),
                (self.in_place, "with its activations in place, as Ultralytics sets them"),
                (self.layout, "in channels_last layout (reshape() where view() fails)"),
                (self.fusing, "in fuse()"),
                (self.saving, "where a state_dict is loaded"),
                (self.copying, "when copied, as trainings and exports do"),
            )
            self.onnx(onnx_sizes)
        self.choices(knobs, heads)

    def look(self, *checks: tuple[Callable[[], None], str]) -> bool:
        """Make checks, each with the words for where it raises; whether none found anything."""
        before = len(self.findings)
        for check, where in checks:
            with self.check(where):
                check()
        return len(self.findings) == before

    @contextmanager
    def check(self, where: str) -> Iterator[None]:
        """A property under test: what it raises becomes a finding."""
        self.checks += 1
        try:
            yield
        except Finding as finding:
            self.findings.append(f"{self.spec.row}: {finding}")
        except Exception as error:  # a user's block may raise what it likes
            what = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(self.file)]
            at = f" ({self.file.name}:{lines[-1]})" if lines else ""
            self.findings.append(f"{self.spec.row}: raises {where}: {what}{at}")

    def block(self, c1: int = C1, c2: int = C2, depth: int = 1, **options: Any) -> nn.Module:
        """The block with weights drawn from seed 0, in eval mode."""
        torch.manual_seed(0)
        with torch.enable_grad():  # as models are built
            return self.kind(c1, c2, depth, **options).eval()

    def forward(self, block: nn.Module, x: Tensor, c2: int = C2) -> Tensor:
        """The output for `x`, if it is one finite map of the right shape and type and `x` is left alone."""
        before, size = x.clone(), f"{x.shape[2]} x {x.shape[3]}"
        y = block(x)
        if not isinstance(y, Tensor):
            raise Finding(f"gives {type(y).__name__}, not one tensor")
        expected = (x.shape[0], c2, *x.shape[2:])
        if tuple(y.shape) != expected:
            raise Finding(f"at {size} the output is {tuple(y.shape)}, expected {expected}")
        if y.dtype != x.dtype and not torch.is_autocast_enabled("cpu"):
            raise Finding(f"the output is {y.dtype} where the input is {x.dtype}")
        if not torch.isfinite(y).all():
            raise Finding(f"at {size} the output holds NaN or infinity")
        if not torch.equal(x, before):
            raise Finding(f"changes its input in place (at {size}), which other layers of a YOLO still read")
        return y

    @torch.no_grad()
    def shapes(self) -> None:
        for c1, c2, depth in ((C2, C2, 1), (C2, C1, 1), (C1, C2, 2), (C2, C2, 3)):
            with self.check(f"with c1={c1}, c2={c2}, depth={depth}"):
                self.forward(self.block(c1, c2, depth), image(c=c1), c2)
        for size in SIZES:
            with self.check(f"at {size[0]} x {size[1]}"):
                self.forward(self.block(), image(size))

    @torch.no_grad()
    def batches(self) -> None:
        """An image's output does not depend on who stands beside it in the batch."""
        block, one = self.block(), self.x[:1]
        self.compare(
            self.forward(block, one), self.forward(block, self.x)[:1], 1e-4, "alone in a batch, an image gets another output"
        )

    @torch.no_grad()
    def depth(self) -> None:
        """More depth is another function."""
        one, three = self.block(depth=1), self.block(depth=3)
        alike = parameters(one) == parameters(three) and torch.equal(one(self.x), three(self.x))
        if alike:
            raise Finding(f"depth changes nothing: at 1 and at 3 it has {parameters(one):,} parameters and equal outputs")

    def gradients(self) -> None:
        """Every parameter learns: at the start, or with every parameter moved a little, in eval or in training mode."""
        dead = [name for name, p in self.block().named_parameters() if p.requires_grad]
        for moved, training in ((False, False), (True, False), (True, True)):
            if not dead:
                return
            block = (self.shaken() if moved else self.block()).train(training)
            y = self.forward(block, self.x)
            if not y.requires_grad:
                raise Finding("no parameter ever receives a gradient: its output is cut off from them")
            torch.autograd.backward((y * torch.randn_like(y)).sum())
            learning = {name for name, p in block.named_parameters() if p.grad is not None and (p.grad != 0).any()}
            dead = [name for name in dead if name not in learning]
        if dead:
            more = f", nor do {len(dead) - 3} more" if len(dead) > 3 else ""
            names = ", ".join(f"'{name}'" for name in dead[:3])
            raise Finding(f"parameter {names} never receives a gradient{more}")

    def training(self) -> None:
        """A step of training."""
        block = self.block().train()
        y = self.forward(block, self.x.clone().requires_grad_())
        if y.requires_grad:
            torch.autograd.backward(y.square().mean())
        bad = [name for name, p in block.named_parameters() if p.grad is not None and not torch.isfinite(p.grad).all()]
        if bad:
            raise Finding(f"the gradient of '{bad[0]}' holds NaN or infinity in training mode")

    @torch.no_grad()
    def layout(self) -> None:
        """channels_last is only a layout; Ultralytics turns it on by itself."""
        y = self.shaken()(self.x)
        other = self.shaken().to(memory_format=torch.channels_last)
        self.compare(
            other(self.x.to(memory_format=torch.channels_last)), y, 1e-4, "in channels_last layout the output is another"
        )

    def in_place(self) -> None:
        """Ultralytics makes activations work in place, which must change nothing."""
        block, x = self.shaken(), self.x.clone().requires_grad_() * 1
        expected = block(self.x)
        for module in block.modules():
            if type(module) in IN_PLACE:
                module.inplace = True  # type: ignore[assignment]
        told = "with its activations in place, as Ultralytics sets them,"
        y = block(x)
        if not torch.equal(x, self.x):
            raise Finding(f"{told} it changes its input, which other layers of a YOLO still read")
        self.compare(y, expected, 1e-4, f"{told} the output is another")
        if y.requires_grad:
            torch.autograd.backward(y.square().mean())

    @torch.no_grad()
    def half(self) -> None:
        """bfloat16 autocast, as proxies are trained on a GPU."""
        with torch.autocast("cpu", torch.bfloat16):
            self.forward(self.block(), self.x)

    @torch.no_grad()
    def fusing(self) -> None:
        """`fuse()`, where there is one, changes the block and not its outputs."""
        if not callable(getattr(self.kind, "fuse", None)):
            return
        try:
            block, x, tolerance = self.shaken().double(), self.x.double(), 1e-9
            y = block(x)
        except RuntimeError:  # it works in float32 alone
            block, x, tolerance = self.shaken(), self.x, 1e-4
            y = block(x)
        told = block.fuse()  # type: ignore[operator]
        if told is not None and told is not block:
            raise Finding("fuse() gives another module: it must change the block in place")
        self.compare(block(x), y, tolerance, "after fuse() the output is another")

    @torch.no_grad()
    def saving(self) -> None:
        """Checkpoints hold a block as its state_dict, of its inference form too: that is all that outputs may depend on."""
        for form in ("", "fused "):
            block = self.shaken()
            torch.manual_seed(1)
            other = self.kind(C1, C2, 1).eval()
            for each in (block, other):
                if form and callable(getattr(each, "fuse", None)):
                    each.fuse()  # type: ignore[operator]
            other.load_state_dict(block.state_dict(), strict=True)
            otherwise = f"a new {form}block with the same state_dict gives another output"
            self.compare(other(self.x), block(self.x), 1e-6, otherwise)

    @torch.no_grad()
    def copying(self) -> None:
        """Trainings and exports copy whole models."""
        block = self.shaken()
        self.compare(copy.deepcopy(block)(self.x), block(self.x), 1e-6, "a copy gives another output")

    @torch.no_grad()
    def repeating(self) -> None:
        """Equal seeds make equal weights, and equal weights equal outputs."""
        block, state = self.block(), self.block().state_dict()
        for name, value in block.state_dict().items():
            if not torch.equal(value, state[name]):
                raise Finding(f"'{name}' differs between two blocks made from one seed: draw from torch's own generator")
        self.compare(block(self.x), block(self.x), 0, "a second pass in eval mode gives another output")

    @torch.no_grad()
    def onnx(self, sizes: Sequence[tuple[int, int]]) -> None:
        """The inference form exported to ONNX gives the same in ONNX Runtime, at each of several sizes."""
        for size in sizes:
            with self.check(f"when exported to ONNX at {size[0]} x {size[1]}"):
                block, x = self.shaken(), image(size)[:1]
                if callable(getattr(block, "fuse", None)):
                    block.fuse()  # type: ignore[operator]
                otherwise = f"exported to ONNX at {size[0]} x {size[1]}, the output in onnxruntime is another"
                self.compare(in_onnxruntime(block, x), block(x), 1e-4, otherwise)

    @torch.no_grad()
    def choices(self, knobs: Mapping[str, Sequence[KnobValue]], heads: Sequence[int]) -> None:
        """Every knob builds at its bounds and at the values asked for, and so does every head count."""
        trials: list[tuple[dict[str, Any], int]] = [
            ({name: value}, C2) for name, knob in self.spec.knobs.items() for value in _values(knob, knobs.get(name, ()))
        ]
        if self.spec.default_heads is not None:
            for count in dict.fromkeys((self.spec.default_heads(C2), 1, 2, 4, *heads)):
                trials.append(({"heads": count}, round_channels(C2, count if self.spec.heads_divide else 1)))
        for options, c2 in trials:
            at = ", ".join(f"{name}={value}" for name, value in options.items())
            with self.check(f"with {at} at {c2} channels"):
                try:
                    self.forward(self.block(c2=c2, **options), self.x, c2)
                except Finding as finding:
                    raise Finding(f"with {at}: {finding}") from None

    def shaken(self) -> nn.Module:
        """The block with every weight and statistic moved away from what its initialisation makes of it."""
        block = self.block()
        with torch.no_grad():
            for p in block.parameters():
                if p.is_floating_point():
                    p.add_(torch.randn_like(p), alpha=0.1)
            for module in block.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                    nn.init.normal_(module.running_mean, std=0.3)
                    nn.init.uniform_(module.running_var, 0.25, 1.75)  # type: ignore[arg-type]
        return block

    def compare(self, y: Tensor, expected: Tensor, tolerance: float, otherwise: str) -> None:
        """`y` equals `expected` up to `tolerance` of the largest output."""
        if y.shape != expected.shape:
            raise Finding(f"{otherwise}: its shape is {tuple(y.shape)}, not {tuple(expected.shape)}")
        difference, largest = float((y - expected).abs().max()), float(expected.abs().max())
        if not difference <= tolerance * max(largest, 1.0):
            raise Finding(f"{otherwise} by up to {difference:.2g}, of outputs up to {largest:.2g}")


def image(size: tuple[int, int] = SIZE, n: int = 2, c: int = C1) -> Tensor:
    """Seeded normal noise (n, c, height, width)."""
    return torch.randn(n, c, *size, generator=torch.Generator().manual_seed(size[0] * 100 + size[1]))


def parameters(block: nn.Module) -> int:
    return sum(p.numel() for p in block.parameters())


def in_onnxruntime(block: nn.Module, x: Tensor) -> Tensor:
    """The output for `x` of a block's ONNX export, which is traced with other values: no branch may depend on them."""
    import onnxruntime  # noqa: PLC0415  (half a second that only an exam pays)

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 3
    with tempfile.TemporaryDirectory(prefix="nas-") as folder:
        path = str(Path(folder) / "block.onnx")
        with _silent():
            traced = (torch.zeros_like(x),)
            torch.onnx.export(block, traced, path, dynamo=False, opset_version=18, input_names=["x"], output_names=["y"])
        session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


@contextmanager
def _silent() -> Iterator[None]:
    """Nothing reaches stdout: an export that fails prints its whole graph there, from C++."""
    sys.stdout.flush()
    stdout, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)
        os.close(nowhere)


def _values(knob: Knob, chosen: Sequence[KnobValue]) -> list[KnobValue]:
    """The values at which a knob is tried: both of a flag, the finite bounds of a number, and those asked for."""
    if knob.kind is bool:
        return [True, False]
    bounds: list[KnobValue] = [knob.kind(bound) for bound in (knob.low, knob.high) if math.isfinite(bound)]
    if knob.odd:
        bounds = [bound if int(bound) % 2 else int(bound) + (1 if bound == knob.low else -1) for bound in bounds]
    return list(dict.fromkeys((*bounds, *chosen)))
