"""The command line as people use it: every bad input gets one clear line and exit code 2, and nothing is left behind."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nas.cli import main
from nas.config import RunConfig
from nas.dataset.description import Dataset
from nas.errors import StartError

BAD_SPACE = "skeleton: yolo11n.yaml\nslots: {backbone.P9: {block: [keep]}, backbone.P4: {block: [keep, repvitt]}}\n"


def nas(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the console script's function in a process of its own."""
    code = "from nas.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["search", "--budget", "64"], ["'64' has no unit", "64gpu-h"]),
        (["search", "--budget", "0gpu-h"], ["greater than 0"]),
        (["search", "--budget", "3parsecs"], ["unknown unit"]),
        (["search", "--max-latency", "2"], ["'2' has no unit", "2ms"]),
        (["search", "--max-latency", "-1ms"], ["greater than 0"]),
        (["search", "--max-latency=-1ms"], ["greater than 0"]),
        (["search", "--max-params", "3"], ["'3' has no unit", "3M"]),
        (["search", "--max-macs", "4Q"], ["unknown unit", "4G"]),
        (["search", "--max-size", "10"], ["'10' has no unit", "10MB"]),
        (["search", "--dry-run", "--budget", "64"], ["'64' has no unit"]),
        (["search", "--dry-run", "--resume", "search"], ["--dry-run is for a new search"]),
        (["search", "data=coco8.yaml"], ["did you mean --data coco8.yaml?"]),
        (["search", "budget=2h"], ["did you mean --budget 2h?"]),
        (["search", "--data", "absent.yaml"], ["absent.yaml"]),
        (["search", "--data", "broken.yaml"], ["broken.yaml"]),
        (["search", "--data", "."], ["."]),
        (["search", "--space", "yolo11n-block"], ["did you mean 'yolo11n-blocks'?"]),
        (["search", "--space", "bad.yaml"], ["bad.yaml:2", "backbone.P9", "did you mean 'backbone.P5'", "'repvit'"]),
        (["search", "--target", "cpu:onnxruntim"], ["did you mean 'cpu:onnxruntime'?"]),
        (["search", "--target", "cpu:torch,threads=0"], ["threads"]),
        (["search", "--device", "tpu"], ["unknown device 'tpu'"]),
        (["search", "--sampler", "tpee"], ["did you mean 'tpe'?"]),
        (["search", "--executor", "slurm"], ["unknown executor"]),
        (["search", "--imgsz", "100"], ["not a multiple of 32", "use 96"]),
        (["search", "--imgsz", "big"], ["'big' is not a valid integer"]),
        (["search", "--workers", "0"], ["workers is 0"]),
        (["search", "--gpus-per-trial", "1.5"], ["--gpus-per-trial 1.5", "a whole number: 1 or 2"]),
        (["search", "--epochs", "0"], ["epochs is 0"]),
        (["search", "--seed", "-1"], ["seed is -1"]),
        (["train", "nowhere"], ["nowhere"]),
        (["train", "--epochs", "0"], ["a whole number from 1 on"]),
        (["front", "nowhere", "--sensitivity"], ["nowhere"]),
        (["search", "--rungs", "9"], ["5 epochs allow 1 to 5"]),
        (["search", "--set", "lr=0.1"], ["did you mean 'lr0'?"]),
        (["search", "--set", "lr0=fast"], ["not a number"]),
        (["search", "--weights", "yolo11n.pt"], ["yolo11n.pt: no such file", "nas downloads nothing"]),
        (["search", "--weights", "old/best.pt"], ["old/best.pt: no such file", "correct the path"]),
        (["search", "--weights", "broken.yaml"], ["broken.yaml: not a checkpoint", ".pt"]),
        (["search", "--name", "../up"], ["not a plain folder name"]),
        (["search", "--add-budget", "1h"], ["--resume"]),
        (["search", "--resume", "nothing"], ["no run 'nothing'"]),
        (["serch"], ["did you mean 'search'?"]),
        (["search", "--bugdet", "2h"], ["--budget"]),
        (["front"], ["no runs in"]),
        (["front", "nothing"], ["no run 'nothing'"]),
        (["doctor", "nothing"], ["no run 'nothing'"]),
        (["doctor", "n" * 300], ["File name too long"]),
        (["export", "--pick", "knee"], ["no runs in"]),
        (["export"], ["--pick"]),
        (["space", "check", "bad.yaml"], ["bad.yaml:2"]),
        (["space", "show", "yolo11x1.yaml"], ["yolo11x1"]),
        (["search", "--target", "cpu:torch-fp16"], ["use cpu:torch or cpu:torch-bf16"]),
        (["search", "--target", "table:absent.csv"], ["absent.csv", "measure.py"]),
        (["latency", "yolo11x1.yaml"], ["yolo11x1"]),
        (["latency", "nothing"], ["no run 'nothing'"]),
        (["latency", "--target", "cpu:torch", "yolo11n.yaml", "--imgsz", "100"], ["imgsz 100", "use 96"]),
        (["latency", "yolo11n.yaml", "--imgsz", "64", "--target", "cpu:torch,imgsz=96"], ["names another image size"]),
        (["latency", "yolo11n.yaml", "--pick", "knee"], ["is a model, not a run"]),
        (["latency", "measure", "--targt", "auto"], ["--target"]),
    ],
)
def test_bad_input_gets_a_clear_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    words: list[str],
) -> None:
    (tmp_path / "broken.yaml").write_text("train: [unclosed\n")
    (tmp_path / "bad.yaml").write_text(BAD_SPACE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["nas", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capfd.readouterr()
    assert (ended.value.code, told.out) == (2, ""), told.err
    assert "Traceback" not in told.err and len(told.err.splitlines()) <= 3
    for word in words:
        assert word in told.err
    assert {path.name for path in tmp_path.iterdir()} == {"broken.yaml", "bad.yaml"}


@pytest.mark.parametrize(
    ("arguments", "imitate"),
    [
        (["--imitate", "--budget", "5trials"], True),
        (["--imitate", "--budget", "1h"], True),
        (["--from-scratch", "--budget", "1h"], False),
        (["--budget", "1h"], None),  # to be decided by what the budget buys
        (["--budget", "5trials"], False),
    ],
)
@pytest.mark.parametrize("dry", [False, True])
def test_who_says_whether_to_imitate_is_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], imitate: bool | None, dry: bool
) -> None:
    def begun(*given: object, **_: object) -> None:
        asked.extend(each.imitate for each in given if isinstance(each, RunConfig))
        raise StartError("far enough", "none")

    asked: list[bool | None] = []
    dataset = Dataset(Path("d.yaml"), tmp_path, ("cell",), (), (), (), "digest", (), ())
    monkeypatch.setattr("nas.asked.dataset_of", lambda *_: dataset)
    monkeypatch.setattr("nas.api.run_session", begun)
    monkeypatch.setattr("nas.dry_run.forecast", begun)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["nas", "search", "--space", "demo", *arguments, *["--dry-run"] * dry])
    with pytest.raises(SystemExit):
        main()
    assert asked == [imitate]


@pytest.mark.slow
def test_the_latency_of_a_model_is_told_with_its_interval_and_scope(tmp_path: Path) -> None:
    done = nas("latency", "yolo26n.yaml", "--target", "cpu:torch,imgsz=32x64", "--allow-noisy", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    name, found, *noisy, scope, size = done.stdout.splitlines()
    assert name == "yolo26n.yaml on cpu:torch,threads=1,batch=1,imgsz=32x64"
    assert re.fullmatch(r"\S+ ms \(\S+ to \S+\), p90 \S+ ms, \d+ runs", found) and len(noisy) < 2
    assert scope == "The fused model from a ready input to final boxes (its head needs no NMS); pre-processing left out."
    assert "parameters, " in size and "G multiply-adds" in size
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="this machine has a GPU")
@pytest.mark.parametrize("arguments", [["--device", "cuda"], ["--target", "cuda:torch-fp16", "--max-latency", "2ms"]])
def test_a_gpu_that_is_not_there_is_said_before_anything_is_written(tmp_path: Path, arguments: list[str]) -> None:
    done = nas("search", *arguments, cwd=tmp_path)
    assert done.returncode == 5, done.stderr
    assert "no CUDA device" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_no_arguments_are_answered_with_the_help(tmp_path: Path) -> None:
    done = nas(cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith("Usage:")


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        (["--max-latency", "1us"], ["the fastest takes", "raise --max-latency, lower --imgsz"]),
        pytest.param(
            ["--max-params", "10K"],
            ["the smallest has", "raise --max-params, or take a smaller skeleton"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["--max-macs", "100K"],
            ["the cheapest takes", "raise --max-macs, lower --imgsz"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["--max-size", "10kB", "--max-latency", "1s"],
            ["the smallest file has", "raise --max-size, or take"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_nothing_feasible_is_said_before_any_training(tmp_path: Path, limit: list[str], words: list[str]) -> None:
    done = nas("search", "--space", "demo", "--imgsz", "32", "--allow-noisy", "--budget", "1min", *limit, cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    for word in ("the fastest takes", *words):
        assert word in done.stderr
    assert "done" not in (tmp_path / "results" / "search" / "search.log").read_text()


def test_a_folder_that_cannot_be_written_is_said_and_nothing_is_half_written(tmp_path: Path) -> None:
    # A file in the place of results/ stops every user, also root, whom permissions do not stop.
    (tmp_path / "results").write_text("not a folder")
    done = nas("search", "--space", "demo", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "results" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "results").read_text() == "not a folder"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_write_protected_folder_is_said(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    done = nas("search", "--space", "demo", cwd=tmp_path)
    tmp_path.chmod(0o700)
    assert done.returncode == 2
    assert "cannot write" in done.stderr


@pytest.mark.parametrize("name", ["demo", "yolo11n-blocks", "yolov8s.yaml", "yolo26n.yaml"])
def test_space_show_lists_every_slot(tmp_path: Path, name: str) -> None:
    done = nas("space", "show", name, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for slot in ("backbone.P4", "neck.topdown.P3", "neck.bottomup.P5"):
        assert slot in done.stdout


def test_a_wheel_finds_its_spaces_and_data_in_any_folder(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    wheels, site, empty = tmp_path / "wheels", tmp_path / "site", tmp_path / "an empty folder"
    subprocess.run([*pip, "wheel", "--no-build-isolation", "--no-deps", "-w", wheels, root], check=True, capture_output=True)
    wheel = next(wheels.glob("*.whl"))
    subprocess.run([*pip, "install", "--no-deps", "--target", site, wheel], check=True, capture_output=True)
    empty.mkdir()
    code = (
        "import nas, pathlib; from nas.space.reader import find_space, read_space; "
        "from nas.dataset.builtin import builtin_dataset; from nas.dataset.description import read_dataset; "
        "print(pathlib.Path(nas.__file__).parent, read_space(find_space('demo')).source, read_dataset(builtin_dataset()).nc)"
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, "-c", code], cwd=empty, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == [str(site / "nas"), str(site / "nas/search_spaces/demo.yaml"), "8"], done.stderr
