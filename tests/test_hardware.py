"""GPUs as a stand-in for the driver's tool lists them."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nas import hardware

H100S = "".join(
    f"GPU {i}: NVIDIA H100 80GB HBM3 (UUID: GPU-{i}aaa-bbb)\n  MIG 1g Device 0: (UUID: MIG-{i})\n" for i in range(3)
)


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Installs an `nvidia-smi` that runs a shell script."""

    def install(script: str) -> None:
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)
        hardware._listed_gpus.cache_clear()

    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    yield install
    hardware._listed_gpus.cache_clear()


@pytest.mark.parametrize(
    ("chosen", "usable"),
    [
        (None, ["0", "1", "2"]),
        ("", []),
        ("-1", []),
        ("2", ["2"]),
        ("2, 0", ["2", "0"]),
        ("1,7,0", ["1"]),
        ("GPU-1aaa,MIG-2", ["GPU-1aaa", "MIG-2"]),
        ("all", []),
    ],
)
def test_gpus_that_may_be_used(
    driver: Callable, monkeypatch: pytest.MonkeyPatch, chosen: str | None, usable: list[str]
) -> None:
    driver(f"cat <<END\n{H100S}END")
    if chosen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert list(hardware.gpus()) == usable and hardware.cuda_devices() == len(usable)
    assert set(hardware.gpus().values()) <= {"NVIDIA H100 80GB HBM3", "MIG-2"}
    masks = [e["CUDA_VISIBLE_DEVICES"] for e in hardware.worker_environment(4, "cuda")]
    assert masks == ((usable or [""]) * 4)[:4]
    assert {e["CUDA_VISIBLE_DEVICES"] for e in hardware.worker_environment(4, "cpu")} == {""}


@pytest.mark.parametrize("script", ["echo 'GPU 0: half dead'; exit 9", "echo 'No devices were found'", "exec /nowhere"])
def test_a_driver_without_gpus(driver: Callable, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    driver(script)
    assert hardware.cuda_devices() == 0
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,GPU-1")
    hardware._listed_gpus.cache_clear()
    assert hardware.cuda_devices() == 0


def test_workers_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "cores", lambda: 8)
    monkeypatch.setattr(hardware, "_free_memory", lambda: 2**40)
    assert hardware.default_workers(0) == 8 and hardware.default_workers(3) == 3
    monkeypatch.setattr(hardware, "_free_memory", lambda: 7 * hardware.WORKER_BYTES // 2)
    assert hardware.default_workers(0) == 3 and hardware.default_workers(3) == 3
    monkeypatch.setattr(hardware, "_free_memory", lambda: 0)
    assert hardware.default_workers(0) == 1
    assert [hardware.threads_per_worker(n, "cpu") for n in (1, 3, 8, 20)] == [8, 2, 1, 1]
    environments = hardware.worker_environment(2, "cpu")
    assert [e["OMP_NUM_THREADS"] for e in environments] == ["4", "4"]
    assert hardware.worker_environment(1, "cpu", threads=1)[0]["OMP_NUM_THREADS"] == "1"
    assert environments[0]["YOLO_OFFLINE"] == "1" and environments[0]["YOLO_AUTOINSTALL"] == "False"


def test_how_busy_the_gpus_are(driver: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    driver(f"""case "$1" in
-L) cat <<END
{H100S}END
;;
*) echo "$@" >> "$0.asked"; echo 90; echo 50 ;;
esac""")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2")
    clock = [0.0]
    meter = hardware.GpuMeter(10.0, lambda: clock[0])
    assert meter.latest is None and meter.mean is None
    for clock[0] in (0.0, 5.0, 10.0):
        before = meter._look
        meter.update()
        if meter._look is not None and meter._look is not before:
            meter._look.wait(10)
    clock[0] = 19.0
    meter.update()
    assert meter.latest == meter.mean == pytest.approx(0.7)
    assert len(meter._seen) == 2  # at 0 and at 10
    asked = Path(f"{shutil.which('nvidia-smi')}.asked").read_text().splitlines()
    assert asked == ["--query-gpu=utilization.gpu --format=csv,noheader,nounits --id=0,2"] * 2


def test_trials_that_share_a_gpu(driver: Callable) -> None:
    driver(f"cat <<END\n{H100S}END")
    assert [len(hardware.gpu_places(share)) for share in (1.0, 0.5, 0.25, 0.3)] == [3, 6, 12, 9]
    masks = [e["CUDA_VISIBLE_DEVICES"] for e in hardware.worker_environment(6, "cuda", gpus_per_trial=0.5)]
    assert masks == ["0", "1", "2"] * 2


def test_trials_of_several_gpus(driver: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of one trial are alike, and no parts of a GPU."""
    driver(f"cat <<END\n{H100S}GPU 3: NVIDIA L4 (UUID: GPU-3aaa)\nGPU 4: NVIDIA L4 (UUID: GPU-4aaa)\nEND")
    assert [hardware.gpu_places(count) for count in (2, 3, 4)] == [["0,1", "3,4"], ["0,1,2"], []]
    assert hardware.most_gpus_alike() == 3
    masks = [e["CUDA_VISIBLE_DEVICES"] for e in hardware.worker_environment(2, "cuda", gpus_per_trial=2)]
    assert masks == ["0,1", "3,4"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,2,1,0")
    assert hardware.gpu_places(2) == ["2,1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-0,MIG-1")
    assert hardware.gpu_places() == ["MIG-0", "MIG-1"] and hardware.most_gpus_alike() == 1
