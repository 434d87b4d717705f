import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.errors import InputError
from nas.latency.runtimes import SESSIONS
from nas.latency.target import Target

numbers = st.integers(1, 1024)
targets = st.builds(Target, st.sampled_from([k for k in SESSIONS if k.startswith("cpu")]), numbers, numbers) | st.builds(
    Target, st.just("cuda:torch-fp16"), batch=numbers
)


@given(targets)
def test_the_full_name_parses_back(target: Target) -> None:
    assert Target.parse(str(target)) == target


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("auto", "cpu:onnxruntime,threads=1,batch=1"),
        (" auto , batch=2", "cpu:onnxruntime,threads=1,batch=2"),
        ("cpu:torch,batch=8,threads=4", "cpu:torch,threads=4,batch=8"),
        ("cuda:torch-fp16", "cuda:torch-fp16,batch=1"),
    ],
)
def test_short_names(text: str, full: str) -> None:
    target = Target.parse(text)
    assert str(target) == full
    assert target.kind in SESSIONS
    assert target.precision == ("fp16" if target.device == "cuda" else "fp32")
    assert target.stamp()["target"] == full and set(target.packages) < set(target.stamp())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "unknown target ''\n  known: cpu:onnxruntime"),
        ("cpu", "unknown target 'cpu'"),
        ("cpu:onnxrutime", "unknown target 'cpu:onnxrutime'\n  did you mean 'cpu:onnxruntime'?"),
        ("CPU:Torch", "unknown target 'CPU:Torch'\n  did you mean 'cpu:torch'?"),
        ("cpu:torch,thread=2", "unknown option 'thread'\n  did you mean 'threads'?"),
        ("cpu:torch,", "unknown option ''\n  known: batch, threads"),
        *(
            (f"cpu:torch,threads={number}", f"threads is '{number}'\n  give a whole number from 1 to 1024")
            for number in ("", "0", "-1", "1.5", "two", "²", "1_0", "1025", "9" * 5000)
        ),
        ("cpu:torch,batch=0", "batch is '0'"),
        ("cpu:torch,batch=1,batch=2", "batch is given twice"),
        ("cuda:torch-fp16,threads=2", "unknown option 'threads'\n  known: batch"),
    ],
)
def test_bad_targets_are_explained(text: str, message: str) -> None:
    with pytest.raises(InputError) as raised:
        Target.parse(text)
    assert message in str(raised.value)
