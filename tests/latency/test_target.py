from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.errors import InputError, UnreachableError
from nas.latency import found
from nas.latency.runtimes import SESSIONS
from nas.latency.target import KINDS, Target, chosen_because, parse_imgsz

numbers = st.integers(1, 1024)
sides = st.integers(1, 128).map(lambda n: 32 * n)
common = {
    "batch": numbers,
    "imgsz": st.none() | st.tuples(sides, sides),
    "paced_ms": st.none() | st.integers(1, 10_000_000).map(lambda us: us / 1e3),
}
targets = (
    st.builds(Target, st.sampled_from([k for k in KINDS if k.startswith("cpu")]), numbers, **common)
    | st.builds(Target, st.sampled_from([k for k in KINDS if k.startswith("cuda")]), copy=st.booleans(), **common)
    | st.builds(Target, st.just("table"), file=st.text(min_size=1).filter(lambda name: name == name.strip()))
)


@given(targets)
def test_the_full_name_parses_back(target: Target) -> None:
    assert Target.parse(str(target)) == target
    assert Target.parse(str(target.at(96))) == target.at(96)


def test_every_kind_has_its_session() -> None:
    assert set(SESSIONS) == set(KINDS)


@pytest.mark.parametrize(
    ("text", "full", "precision"),
    [
        ("cpu:torch,batch=8,threads=4", "cpu:torch,threads=4,batch=8", "fp32"),
        (" cpu:torch-bf16 , batch=2 ", "cpu:torch-bf16,threads=1,batch=2", "bf16"),
        ("cpu:openvino,imgsz=384x640@paced", "cpu:openvino,threads=1,batch=1,imgsz=384x640@paced=33ms", "fp32"),
        ("cpu:onnxruntime,imgsz=640x640@paced=12.5ms", "cpu:onnxruntime,threads=1,batch=1,imgsz=640@paced=12.5ms", "fp32"),
        ("cuda:torch-fp16", "cuda:torch-fp16,batch=1,copy=out", "fp16"),
        ("cuda:tensorrt-fp16,copy=in", "cuda:tensorrt-fp16,batch=1,copy=in", "fp16"),
    ],
)
def test_short_names(text: str, full: str, precision: str) -> None:
    target = Target.parse(text)
    assert str(target) == full
    assert target.precision == precision
    assert target.stamp()["target"] == full and set(target.packages) < set(target.stamp())


def test_the_image_size_is_filled_in_once() -> None:
    assert str(Target.parse("cpu:torch").at(96).at(64)) == "cpu:torch,threads=1,batch=1,imgsz=96"
    named = Target.parse("cpu:torch,imgsz=64x96").at(640)
    assert (named.height, named.width) == (64, 96)
    assert str(Target.parse("table:a, b@c.csv").at(640)) == "table:a, b@c.csv"


def test_what_a_figure_holds_is_said() -> None:
    def scope(text: str, end2end: bool = False) -> str:
        return Target.parse(text).scope(end2end=end2end)

    plain = "The fused model from a ready input to decoded boxes, NMS left out; pre-processing left out."
    assert scope("cpu:torch") == plain
    assert "final boxes (its head needs no NMS);" in scope("cpu:torch", end2end=True)
    assert "copies to and from the GPU left out" in scope("cuda:torch-fp16")
    assert "copies to and from the GPU included" in scope("cuda:torch-fp16,copy=in")
    assert "each after 20 ms of idleness" in scope("cpu:torch@paced=20ms")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "unknown target ''\n  known: auto, cpu:onnxruntime"),
        ("cpu", "unknown target 'cpu'"),
        ("cpu:onnxrutime", "unknown target 'cpu:onnxrutime'\n  did you mean 'cpu:onnxruntime'?"),
        ("CPU:Torch", "unknown target 'CPU:Torch'\n  did you mean 'cpu:torch'?"),
        ("cpu:onnxruntime-fp16", "on a CPU, ONNX Runtime is not timed in fp16: it would be emulated"),
        ("cpu:torch-fp16", "use cpu:torch or cpu:torch-bf16"),
        ("cuda:torch-int8", "on a GPU, PyTorch is not timed in int8"),
        ("cpu:torch,thread=2", "unknown option 'thread'\n  did you mean 'threads'?"),
        ("cpu:torch,", "unknown option ''\n  known: batch, imgsz, threads"),
        ("cpu:torch,copy=in", "unknown option 'copy'"),
        *(
            (f"cpu:torch,threads={number}", f"threads is '{number}'\n  give a whole number from 1 to 1024")
            for number in ("", "0", "-1", "1.5", "two", "²", "1_0", "1025", "9" * 5000)
        ),
        ("cpu:torch,batch=0", "batch is '0'"),
        ("cpu:torch,batch=1,batch=2", "batch is given twice"),
        ("cuda:torch-fp16,threads=2", "unknown option 'threads'\n  known: batch, copy, imgsz"),
        ("cuda:torch-fp16,copy=both", "copy is 'both'\n  give copy=in"),
        ("cpu:torch@fast", "'@fast' is no pace\n  write @paced"),
        ("cpu:torch@paced=33", "'@paced=33' is no pace"),
        ("cpu:torch@paced=0ms", "'@paced=0ms' is no pace"),
        ("cpu:torch@paced=1000000ms", "is no pace"),
        ("table:", "names no file\n  for example table:jetson.csv"),
        ("cpu:torch,imgsz=big", "imgsz is 'big'\n  give a side"),
        ("cpu:torch,imgsz=640x", "imgsz is '640x'"),
        ("cpu:torch,imgsz=380x640", "imgsz 380x640 is not made of multiples of 32 up to 4096\n  use 384x640"),
        ("cpu:torch,imgsz=0", "use 32"),
        ("cpu:torch,imgsz=9999", "use 4096"),
    ],
)
def test_bad_targets_are_explained(text: str, message: str) -> None:
    with pytest.raises(InputError) as raised:
        Target.parse(text)
    assert message in str(raised.value)


def test_sizes() -> None:
    assert (parse_imgsz("640"), parse_imgsz("384x640")) == ((640, 640), (384, 640))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """Pretends to be a machine with these runtimes, GPUs and this processor."""

    def pretend(runtimes: str, cards: dict | None = None, processor: str = "flags : fma avx2\n") -> None:
        for module in (found, "nas.latency.target"):
            name = module if isinstance(module, str) else module.__name__
            monkeypatch.setattr(f"{name}.installed", lambda runtime: runtime in runtimes.split())
            monkeypatch.setattr(f"{name}.gpus", lambda: cards or {})
        monkeypatch.setattr(found, "_cpu_info", lambda: processor)

    return pretend


GPU = {"0": "NVIDIA H100"}
INTEL = "vendor_id : GenuineIntel\nflags : fma amx_bf16\n"


@pytest.mark.parametrize(
    ("name", "runtimes", "cards", "processor", "kind", "why"),
    [
        ("auto", "onnxruntime openvino", {}, "flags : fma\n", "cpu:onnxruntime", "no NVIDIA GPU found; ONNX Runtime"),
        ("auto", "onnxruntime openvino", {}, INTEL, "cpu:openvino", "OpenVINO on an Intel processor"),
        ("auto", "onnxruntime", {}, INTEL, "cpu:onnxruntime", "no NVIDIA GPU found"),
        ("auto,batch=2", "onnxruntime torch", GPU, INTEL, "cuda:torch-fp16", "NVIDIA H100 found, TensorRT not installed"),
        ("auto", "onnxruntime torch tensorrt", GPU, INTEL, "cuda:tensorrt-fp16", "NVIDIA H100 and TensorRT found"),
        ("auto,threads=2", "onnxruntime torch tensorrt", GPU, "", "cpu:onnxruntime", "GPUs left aside"),
    ],
)
def test_auto_takes_the_best_and_says_why(machine, name, runtimes, cards, processor, kind, why) -> None:
    machine(runtimes, cards, processor)
    assert Target.parse(name).kind == kind
    assert why in chosen_because(name)
    assert chosen_because(kind) == ""
    Target.parse(name).require()


@pytest.mark.parametrize(
    ("text", "runtimes", "message"),
    [
        ("cpu:openvino", "torch", "OpenVINO is not installed\n  pip install 'yolo-placement-search[openvino]', or use"),
        ("cuda:tensorrt-fp16", "torch", "TensorRT is not installed\n  pip install 'yolo-placement-search[tensorrt]'"),
        (
            "cpu:torch-bf16",
            "torch",
            "this processor does not compute in bf16, which would be emulated\n  use --target cpu:torch",
        ),
        ("cpu:openvino-fp16", "openvino", "does not compute in fp16, which would be emulated\n  use --target cpu:openvino"),
    ],
)
def test_what_is_not_there_is_refused_with_what_to_do(machine, text: str, runtimes: str, message: str) -> None:
    machine(runtimes, GPU if text.startswith("cuda") else {})
    with pytest.raises(UnreachableError) as raised:
        Target.parse(text).require()
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("precision", "flags", "native"),
    [
        ("fp32", "", True),
        ("bf16", "flags\t\t: fma avx512_bf16 x", True),
        ("bf16", "flags : fma avx512f", False),
        ("bf16", "Features : fp asimd bf16", True),
        ("fp16", "flags : f16c", False),
        ("fp16", "flags : avx512_fp16", True),
        ("fp16", "", False),
    ],
)
def test_what_a_processor_computes_itself(machine, precision: str, flags: str, native: bool) -> None:
    machine("", {}, f"processor : 0\n{flags}\nprocessor : 1\n")
    assert found.computes(precision) == native


def test_a_table_is_known_by_what_is_in_it(tmp_path: Path) -> None:
    file = tmp_path / "jetson.csv"
    target = Target.parse(f"table:{file}")
    for look in (target.require, target.stamp):
        with pytest.raises(InputError, match=r"jetson\.csv"):
            look()
    file.write_text("id,ms\n")
    first = target.stamp()
    file.write_text("id,ms\na,1\n")
    assert target.stamp() != first and "machine" not in first
