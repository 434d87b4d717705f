"""What every row of the catalog becomes elsewhere: traced, exported to ONNX, compiled, captured; and its memory."""

from __future__ import annotations

import copy
import io
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from block_cases import SIZES, every_case, every_row, image, make
from torch import Tensor, nn


def export(block: nn.Module, size: tuple[int, int], dynamic: bool) -> onnxruntime.InferenceSession:
    buffer = io.BytesIO()
    axes = {"x": {0: "n", 2: "h", 3: "w"}, "y": {0: "n", 2: "h", 3: "w"}} if dynamic else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            block,
            (image(*size, n=1),),
            buffer,
            dynamo=False,
            opset_version=18,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes=axes,
        )
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(buffer.getvalue(), settings, providers=["CPUExecutionProvider"])


def assert_same_in_onnx(session: onnxruntime.InferenceSession, block: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        expected = block(x).numpy()
    (y,) = session.run(None, {"x": x.numpy()})
    assert y.shape == expected.shape
    assert np.abs(y - expected).max() <= 1e-4 * np.abs(expected).max()


@every_case
def test_onnx_of_any_size(name, options):
    block = make(name, options, depth=1).fuse()
    session = export(block, (14, 21), dynamic=True)  # traced where no window needs padding
    for h, w in ((14, 21), (9, 5), (1, 1)):
        assert_same_in_onnx(session, block, image(h, w, 2))


@every_case
def test_onnx_of_one_size(name, options):
    block = make(name, options, depth=1)
    for size in ((14, 7), (5, 9), (2, 2)):
        assert_same_in_onnx(export(block, size, dynamic=False), block, image(*size, 1))


@every_case
@pytest.mark.parametrize("fused", [False, True])
def test_a_trace_holds_for_every_size(name, options, fused):
    block = make(name, options)
    block = block.fuse() if fused else block
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(block, image(14, 21, 1))
        for size in SIZES:
            torch.testing.assert_close(traced(image(*size)), block(image(*size)), rtol=1e-5, atol=1e-5)


def assert_compiles(block: nn.Module, backend: str, sizes: list[tuple[int, int]]) -> None:
    """One graph without breaks, of its training form forwards and backwards and of its inference form forwards.

    The training form at one size: for a second, Inductor fails on symbolic strides of what attention saves for its
    backward pass (pytorch#185510).
    """
    torch.compiler.reset()
    eager = copy.deepcopy(block.train())
    compiled = torch.compile(block, backend=backend, fullgraph=True)
    x = image(*sizes[0])
    y, expected = compiled(x), eager(x)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    y.square().mean().backward()
    expected.square().mean().backward()
    for p, q in zip(block.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-3)
    torch.compiler.reset()
    block = eager.eval().fuse()
    compiled = torch.compile(block, backend=backend, fullgraph=True)
    with torch.no_grad():
        for size in sizes:
            torch.testing.assert_close(compiled(image(*size)), block(image(*size)), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@every_row
def test_compiles_into_one_graph(name):
    assert_compiles(make(name, {}, depth=1), "aot_eager", [(7, 6)])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@every_case
def test_compiles_with_inductor(name, options):
    assert_compiles(make(name, options, depth=1), "inductor", [(7, 6), (9, 12)])  # the second compiles for every size


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a CUDA device")
@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_is_captured_in_a_cuda_graph(name, options, dtype):
    block = make(name, options).fuse().to("cuda", dtype)
    x = image(12, 16).to("cuda", dtype)
    with torch.no_grad():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries allocate their workspaces on the first calls
            for _ in range(3):
                block(x)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = block(x)
        x.copy_(image(12, 16).flip(0).to("cuda", dtype))
        graph.replay()
        torch.testing.assert_close(y, block(x), rtol=1e-2, atol=1e-2)


MEMORY = """
import sys, torch
from pathlib import Path
from block_cases import CASES, image, make
from torch.nn.attention import SDPBackend, sdpa_kernel

def peak():  # VmHWM, since ru_maxrss begins at what the parent process held
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

def run(name, options, side):
    block = make(name, options, depth=1).train()
    block(image(side, side, 1)).sum().backward()

torch.set_num_threads(1)
small = {"heads": 2, "key_dim": 8}
cases = [case for case in CASES if case not in [("mobile_mqa", {}), ("mqa_elan", {})]]
cases += [("mobile_mqa", small), ("mqa_elan", small)]
for case in cases:
    run(*case, 8)
before = peak()
if sys.argv[1] == "written out":
    with sdpa_kernel(SDPBackend.MATH):
        run("mobile_mqa", small, 80)
else:
    for case in cases:
        run(*case, 80)
print(peak() - before)
"""


@pytest.mark.slow
def test_no_block_holds_a_matrix_of_all_pairs_of_pixels():
    """Peak memory of a forward and backward pass over 80 x 80 pixels; attention written out shows that this measures it."""
    pairs = 4 * 80**4

    def taken(what: str) -> int:
        command = [sys.executable, "-c", MEMORY, what]
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert taken("every block") < pairs / 2
    assert taken("written out") > pairs
