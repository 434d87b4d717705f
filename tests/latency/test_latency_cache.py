import json
import subprocess
import sys
from pathlib import Path

import pytest

from nas.latency import cache as module
from nas.latency.cache import MAX_SPREAD, LatencyCache, as_price, model_key
from nas.latency.measure import Latency
from nas.latency.target import Target

CPU = Target("cpu:onnxruntime")


def price(ms: float, spread: float = 0.02) -> dict:
    return as_price(Latency(ms, ms, ms * (1 + spread), ms * 1.1, spread, 50), {"params": 2_600_000, "gmacs": 3.25})


def test_round_trip(tmp_path: Path) -> None:
    cache = LatencyCache(tmp_path / "new" / "größe", CPU)
    assert cache.get("a") is None
    cache.put("a", price(2.0))
    cache.put("b", price(3.0))
    cache.put("a", price(1.0))
    again = LatencyCache(tmp_path / "new" / "größe", CPU)
    assert again.get("a") == cache.get("a") == price(1.0)
    assert again.get("b") == {
        "ms": 3.0,
        "low": 3.0,
        "high": 3.0 * 1.02,
        "p90": 3.0 * 1.1,
        "spread": 0.02,
        "runs": 50,
        "rough": False,
        "cpu_ms": None,
        "throttled": False,
        "noisy": False,
        "params": 2_600_000,
        "gmacs": 3.25,
        "source": "measured",
    }


def test_a_figure_of_a_busy_moment_is_not_kept(tmp_path: Path) -> None:
    cache = LatencyCache(tmp_path, CPU)
    cache.put("a", price(2.0, MAX_SPREAD))
    cache.put("b", price(2.0, MAX_SPREAD + 0.01))
    assert cache.get("b") == price(2.0, MAX_SPREAD + 0.01)
    again = LatencyCache(tmp_path, CPU)
    assert again.get("a") is not None and again.get("b") is None


@pytest.mark.parametrize(
    "torn", [b'{"key": "b", "price": {"ms', b"\xff\xfe\x00", b"[1]\n3\n{}\n\n", b'{"key": [], "price": 1}\n']
)
def test_a_torn_line_costs_itself_alone(tmp_path: Path, torn: bytes) -> None:
    cache = LatencyCache(tmp_path, CPU)
    cache.put("a", price(2.0))
    with cache.path.open("ab") as file:
        file.write(torn)
    second = LatencyCache(tmp_path, CPU)
    assert second.get("a") == price(2.0) and second.get("b") is None
    second.put("b", price(3.0))
    third = LatencyCache(tmp_path, CPU)
    assert third.get("a") == price(2.0) and third.get("b") == price(3.0)


def test_two_processes_write_at_once(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from nas.latency.cache import LatencyCache; "
        "from nas.latency.target import Target; c = LatencyCache(Path(sys.argv[1]), Target('cpu:onnxruntime'))\n"
        "for i in range(300): c.put(sys.argv[2] + str(i), {'ms': 1.0 + i, 'spread': 0.0, 'rough': False})"
    )
    writers = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path), name]) for name in "ab"]
    assert [writer.wait() for writer in writers] == [0, 0]
    cache = LatencyCache(tmp_path, CPU)
    assert all(cache.get(f"{name}{i}") == {"ms": 1.0 + i, "spread": 0.0, "rough": False} for name in "ab" for i in range(300))


@pytest.mark.parametrize("what", ["threads", "batch", "target", "versions", "machine", "measuring"])
def test_what_a_latency_depends_on_does_not_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    LatencyCache(tmp_path, CPU).put("a", price(2.0))
    changed = {"threads": Target(CPU.kind, threads=2), "batch": Target(CPU.kind, batch=2), "target": Target("cpu:torch")}
    if what == "measuring":
        monkeypatch.setattr(module, "VERSION", module.VERSION + 1)
    if what == "versions":
        monkeypatch.setattr("nas.latency.target.version", lambda package: "0.0.1")
    if what == "machine":
        monkeypatch.setattr("nas.latency.target.machine_name", lambda: "another")
    assert LatencyCache(tmp_path, changed.get(what, CPU)).get("a") is None


def test_what_another_machine_measured_is_kept_as_its_own(tmp_path: Path) -> None:
    """A search whose lane has moved to a host that is alike uses its figure; other runs find it as that host's."""
    one, other = ({**CPU.stamp(), "machine": f"a processor ({host})"} for host in ("one", "other"))
    cache = LatencyCache(tmp_path, CPU, stamp=one)
    cache.put("a", price(2.0))
    cache.put("b", price(3.0), other)
    assert cache.get("b") == price(3.0)
    for stamp, known in ((one, ("a",)), (other, ("b",)), (None, ())):
        again = LatencyCache(tmp_path, CPU, stamp=stamp)
        assert [key for key in "ab" if again.get(key)] == list(known)


def test_gpus_do_not_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = Target("cuda:torch-fp16")
    for gpu in ("GPU A", "GPU B"):
        monkeypatch.setattr("nas.latency.target.gpus", lambda gpu=gpu: {"0": gpu})
        cache = LatencyCache(tmp_path, target)
        assert cache.get("a") is None
        cache.put("a", price(2.0))
    assert len(list(tmp_path.iterdir())) == 2


def test_a_place_that_cannot_be_written_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        cache = LatencyCache(folder, CPU)
        cache.put("a", price(2.0))
        assert cache.get("a") == price(2.0)


def test_model_keys() -> None:
    model = {"nc": 3, "backbone": [[-1, 1, "Conv", [16, 3, 2]]], "head": []}
    assert model_key(model, 64) == model_key(json.loads(json.dumps(dict(reversed(model.items())))), 64)
    assert len({model_key(model, 64), model_key(model, 96), model_key(model | {"nc": 4}, 64)}) == 3


@pytest.mark.parametrize("doubt", ["rough", "noisy"])
def test_a_figure_that_was_cut_short_or_is_in_doubt_is_for_this_run_alone(tmp_path: Path, doubt: str) -> None:
    cache = LatencyCache(tmp_path, CPU)
    cache.put("a", price(9.0) | {doubt: True})
    assert cache.get("a") is not None
    assert LatencyCache(tmp_path, CPU).get("a") is None
