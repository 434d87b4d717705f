"""A real search from the command line, killed in the middle and resumed; its winner trained by Ultralytics itself."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from ultralytics import YOLO

from nas.dataset.builtin import builtin_dataset
from nas.dataset.description import read_dataset

SEARCH = ["--space", "demo", "--imgsz", "64", "--epochs", "2", "--budget", "5trials", "--workers", "2", "--max-latency", "1s"]
SEARCH += ["--confirm", "0", "--allow-noisy"]  # a busy test machine is no reason to find nothing
CLI = [sys.executable, "-c", "from nas.cli import main; main()"]


def finished(folder: Path) -> dict[int, float]:
    """Trial -> mAP of its first training, of what is done; read with plain Optuna from the database."""
    path = folder / "study.db"
    if not path.is_file():
        return {}
    study = optuna.load_study(study_name="rung0", storage=f"sqlite:///{path}")
    return {t.number: t.user_attrs["results"][0]["map"] for t in study.get_trials(states=[TrialState.COMPLETE])}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dataset YAML over the first 60 training images of the built-in set; its path has a space and an ü."""
    home = tmp_path_factory.mktemp("a größer home")
    full = read_dataset(builtin_dataset())
    (home / "train.txt").write_text("\n".join(map(str, full.train[:60])))
    (home / "val.txt").write_text("\n".join(map(str, full.val[:20])))
    names = json.dumps(list(full.names))
    (home / "small.yaml").write_text(f"path: {home}\ntrain: train.txt\nval: val.txt\nnames: {names}\n")
    return home


@pytest.fixture(scope="module")
def run(home: Path) -> Path:
    """The run folder after kill -9 in the middle and a resume."""
    folder = home / "results" / "search"
    with (home / "first.log").open("w") as log:
        search = subprocess.Popen([*CLI, "search", "--data", "small.yaml", *SEARCH], cwd=home, stdout=log, stderr=log)
    deadline = time.monotonic() + 300
    while not (before := finished(folder)) and search.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    assert before, (home / "first.log").read_text()
    children = [int(pid) for pid in subprocess.run(["pgrep", "-P", str(search.pid)], capture_output=True).stdout.split()]
    search.send_signal(signal.SIGKILL)
    search.wait()
    before = finished(folder)
    assert 0 < len(before) < 5
    assert len(children) >= 2
    while any(_alive(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(_alive(pid) for pid in children)

    again = [*CLI, "search", "--resume", "search"]
    with (home / "second.log").open("w") as log:
        search = subprocess.Popen(again, cwd=home, stdout=log, stderr=log)
    while "explore" not in (home / "second.log").read_text() and search.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    search.send_signal(signal.SIGINT)  # Ctrl-C: what runs ends, the front is written, and the rest waits
    assert search.wait(300) == 130, (home / "second.log").read_text()
    assert "--resume" in (home / "second.log").read_text()
    assert (folder / "front.csv").exists()
    interrupted = finished(folder)
    assert {number: interrupted[number] for number in before} == before
    assert len(interrupted) < 5

    done = subprocess.run(again, cwd=home, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    after = finished(folder)
    assert len(after) == 5
    assert {number: after[number] for number in before} == before
    return folder


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not (stat.is_file() and stat.read_text().rpartition(")")[2].split()[0] == "Z")


def test_the_run_folder_is_complete(run: Path) -> None:
    for name in ("run.yaml", "space.yaml", "manifest.json", "study.db", "trials.csv", "front.csv", "front.json"):
        assert (run / name).stat().st_size > 0
    for name in ("pareto.png", "pareto.html", "winner.yaml", "winner.pt", "search.log"):
        assert (run / name).stat().st_size > 0
    assert not (run / "holder.json").exists()
    trials = (run / "trials.csv").read_text().splitlines()
    assert trials[1].startswith("0,a761acd8f8,done,")  # the unmodified skeleton is trial 0
    front = json.loads((run / "front.json").read_text())
    assert front["records"]


def test_no_architecture_was_trained_twice(run: Path) -> None:
    study = optuna.load_study(study_name="rung0", storage=f"sqlite:///{run / 'study.db'}")
    ids = [t.user_attrs["architecture"]["id"] for t in study.get_trials(states=[TrialState.COMPLETE])]
    assert len(ids) == len(set(ids))


@pytest.mark.slow
def test_front_and_export_read_the_run(run: Path, home: Path) -> None:
    table = subprocess.run([*CLI, "front"], cwd=home, capture_output=True, text=True, timeout=120)
    assert table.returncode == 0, table.stderr
    assert "baseline" in table.stdout
    shown = subprocess.run([*CLI, "front", "search", "--format", "csv"], cwd=home, capture_output=True, text=True, timeout=120)
    assert shown.stdout == (run / "front.csv").read_text()
    for pick in ("knee", "a761acd8f8"):
        done = subprocess.run([*CLI, "export", "search", "--pick", pick], cwd=home, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        files = [home / line for line in done.stdout.splitlines()]
        assert [file.suffix for file in files] == [".yaml", ".pt"]
        assert all(file.is_file() for file in files)
    missing = subprocess.run([*CLI, "export", "--pick", "neee"], cwd=home, capture_output=True, text=True, timeout=120)
    assert missing.returncode == 2
    assert "knee" in missing.stderr


@pytest.mark.slow
def test_the_latency_of_a_trial_is_measured_again(run: Path, home: Path) -> None:
    words = ["latency", "search", "--pick", "0", "--target", "cpu:torch", "--allow-noisy"]
    done = subprocess.run([*CLI, *words], cwd=home, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("a761acd8f8, trial 0 of results/search on cpu:torch,threads=1,batch=1,imgsz=64\n")


def test_weights_are_kept_of_the_front_and_the_baseline_alone(run: Path) -> None:
    shown = json.loads((run / "front.json").read_text())["records"]
    kept = {int(path.parent.name) for path in run.glob("trials/*/weights.pt")}
    assert kept == {record["trial"] for record in shown}
    assert not list(run.glob("trials/*/*.safetensors"))
    yolo = YOLO(run / "trials" / f"{min(kept):04d}" / "weights.pt")
    assert yolo.task == "detect"


@pytest.mark.slow
def test_the_winner_trains_reloads_and_exports_in_ultralytics(run: Path, home: Path) -> None:
    train = (
        "import nas.yolo; from ultralytics import YOLO; "
        f"YOLO({str(run / 'winner.yaml')!r}).train(data='small.yaml', epochs=1, imgsz=64, batch=8, workers=0, plots=False, "
        f"project={str(home / 'runs')!r}, name='winner', verbose=False)"
    )
    subprocess.run([sys.executable, "-c", train], cwd=home, check=True, capture_output=True, timeout=300)
    check = (
        "from ultralytics import YOLO; import onnxruntime, numpy as np, torch, sys; "
        "best = sys.argv[1]; path = YOLO(best).export(format='onnx', imgsz=64, simplify=False); "
        "model = YOLO(best).model.fuse(verbose=False).eval(); assert model.is_fused(); "
        "x = np.random.default_rng(0).random((1, 3, 64, 64), dtype=np.float32); "
        "a = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider']).run(None, {'images': x})[0]; "
        "b = model(torch.from_numpy(x))[0].detach().numpy(); "
        "assert np.abs(a - b).max() <= 1e-4 * np.abs(b).max(), np.abs(a - b).max()"
    )
    best = str(home / "runs" / "winner" / "weights" / "best.pt")
    done = subprocess.run([sys.executable, "-c", check, best], cwd=home, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_without_data_the_built_in_set_is_searched_and_resumed(tmp_path: Path) -> None:
    words = ["--space", "demo", "--imgsz", "32", "--epochs", "1", "--budget", "1trials", "--quiet", "--allow-noisy"]
    done = subprocess.run([*CLI, "search", *words], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    again = [*CLI, "search", "--resume", "search", "--add-budget", "1trials", "--quiet"]
    done = subprocess.run(again, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(finished(tmp_path / "results" / "search")) == 2


@pytest.mark.slow
def test_images_that_nobody_can_read_end_a_search_before_it_costs_anything(tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(builtin_dataset().parent, data)
    for image in read_dataset(data / "data.yaml").train[::20]:
        image.write_bytes(b"no image")
    words = ["--data", "data/data.yaml", "--space", "demo", "--imgsz", "32", "--epochs", "1", "--budget", "9trials"]
    done = subprocess.run([*CLI, "search", *words], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2, done.stderr
    told = done.stderr.strip().splitlines()[-2:]
    assert "images cannot be read" in told[0] and "repair or remove them" in told[1]
    assert not (tmp_path / "results" / "search").exists()
