"""`nas doctor`: faults that are made to happen are found, and mended where that harms nobody."""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from test_session import PRICE, SPACE, Instant, good

from nas import session
from nas.cli import cli
from nas.config import RunConfig
from nas.dataset.description import read_dataset
from nas.doctor import cluster, machine
from nas.doctor import examine as examining
from nas.doctor.finding import Finding, guarded
from nas.doctor.machine import Imported
from nas.doctor.run import examine_run
from nas.execution import security
from nas.latency.target import Target
from nas.review.progress import Quiet
from nas.runs import folder as folders
from nas.runs.store import Store
from nas.runs.trials import TrialFolders

HOLD = """
import sys, time
from pathlib import Path
from nas.runs.folder import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""
# Changes pages until SQLite has to write some to the file, then is gone.
CUT_OFF = """
import os, sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("PRAGMA cache_size=1")
database.execute("BEGIN")
database.execute("UPDATE trial_user_attributes SET value_json = '\\"lost\\"'")
os.kill(os.getpid(), 9)
"""
HOURS_AGO = time.time() - 3 * 3600


@pytest.fixture(scope="module")
def ended(tmp_path_factory) -> Path:
    """A run that has ended, in `results/search` of a folder with its data."""
    home = tmp_path_factory.mktemp("dätä und runs")
    for split, count in (("train", 150), ("val", 2)):
        for kind, suffix, text in (("images", "jpg", "pixels"), ("labels", "txt", "0 0.5 0.5 0.2 0.2\n")):
            (home / kind / split).mkdir(parents=True)
            for index in range(count):
                (home / kind / split / f"{index}.{suffix}").write_text(text)
    (home / "train.txt").write_text("".join(f"images/train/{index}.jpg\n" for index in range(150)))
    (home / "data.yaml").write_text("train: train.txt\nval: images/val\nnames: [cell]\n")
    (home / "space.yaml").write_text(SPACE)
    folder = home / "results" / "search"
    folder.mkdir(parents=True)
    dataset = read_dataset(home / "data.yaml")
    config = RunConfig(str(home / "data.yaml"), "space", "12trials", str(Target.parse("cpu:torch").at(640)), sampler="random")
    folders.write_space(folder, home / "space.yaml")
    folders.write_config(folder, config, "nas search")
    folders.write_manifest(folder, dataset.digest, dataset.names, Target.parse(config.target).stamp())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "open_executor", lambda config, folder: Instant(good))
        run = session.run_session(folder, config, dataset, Quiet(), "nas search")
    for record in run.front:
        weights = TrialFolders(folder).weights(record.trial)
        weights.parent.mkdir(parents=True)
        weights.write_text("weights")
    run.report()
    return home


@pytest.fixture
def run(ended, tmp_path, monkeypatch) -> Path:
    """A copy of that run, to be damaged; its data stay where they are. The present folder is the one around `results`."""
    folder = Path("results") / "search"
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ended / folder, folder)
    monkeypatch.setenv("NAS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return folder


def look(run: Path, *, repair: bool = False) -> list[Finding]:
    """All that is found of a run but what is well."""
    return [f for f in examine_run(run, with_data=True, repair=repair) if f.verdict != "ok" or f.repaired]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def nas_doctor(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli, ["doctor", *arguments], catch_exceptions=False)
    return done.exit_code, done.output


@pytest.fixture
def quick(monkeypatch):
    """No child process that imports torch."""
    monkeypatch.setattr(machine, "imported", lambda: Imported({"torch": "2"}, {}, {"error": "no driver"}))
    monkeypatch.setattr(machine, "gpus", dict)


# --- the command ---


def test_the_command_offline_without_a_home_results_or_a_cluster(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]  # closed from here on
    folder = tmp_path / "ein Ordner ü"
    folder.mkdir()
    environment = os.environ | {"HOME": "/proc/home", "NAS_CACHE": "/proc/nas cache", "RAY_ADDRESS": f"127.0.0.1:{port}"}
    code = "import sys\nfrom nas.cli import main\ntry: main()\nfinally: print({'torch', 'ray'} & sys.modules.keys())"
    done = subprocess.run(
        [sys.executable, "-c", code, "doctor"], cwd=folder, env=environment, capture_output=True, text=True, timeout=200
    )
    *lines, conclusion, loaded = done.stdout.splitlines()
    assert done.returncode == 2, done.stderr
    assert done.stderr == "" and loaded == "set()"
    assert [line for line in lines if line.startswith("FAULT")] == [
        f"FAULT  ray        RAY_ADDRESS 127.0.0.1:{port}: Connection refused",
        "FAULT  disk       cache: /proc cannot be written: No such file or directory",
    ]
    assert lines[0].startswith("ok     packages   Python ") and "ultralytics 8." in lines[0]
    assert conclusion.startswith("2 faults")
    assert list(folder.iterdir()) == []


def test_a_sound_run_and_the_exit_codes(run, quick, monkeypatch):
    before = files(run)
    code, said = nas_doctor("search", "--repair")
    assert code == 0 and "FAULT" not in said and said.endswith("1 note.\n")  # no GPU
    assert "12 done" in said and "150 train" in said
    assert files(run) == before
    code, said = nas_doctor("--address", "127.0.0.1:x")
    assert code == 2 and "no address of a cluster" in said
    monkeypatch.setattr(machine, "gpus", lambda: {"0": "NVIDIA H200"})
    code, said = nas_doctor()
    assert (
        code == 5 and "FAULT  gpu        the driver lists 1 x NVIDIA H200, but torch does not compute on it: no driver" in said
    )


def test_a_check_that_fails_itself_is_a_fault_and_hides_nothing(run, quick, monkeypatch):
    monkeypatch.setattr(examining, "cluster", lambda address: {}["a bug"])
    code, said = nas_doctor()
    assert code == 2 and "FAULT  ray        could not be checked: KeyError: 'a bug'" in said
    assert "12 done" in said
    assert [f.lines[0] for f in guarded("x", lambda: [Finding("x", "ok", "\udcff")])] == ["ok     x          \\udcff"]


# --- a run ---


def test_a_damaged_store_is_a_fault_and_stays_as_it_is(run, quick):
    with (run / "study.db").open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 3 * 4096)
    before = files(run)
    code, said = nas_doctor("search", "--repair")
    assert code == 2
    assert "study.db is damaged" in said and ".recover" in said
    assert files(run) == before
    (run / "study.db").write_bytes(b"no database" * 1000)
    assert [(f.name, f.verdict) for f in look(run)] == [("store", "fault")]


def test_damaged_files_are_each_named(run):
    for name in ("run.yaml", "manifest.json", "space.yaml"):
        (run / name).write_text("{")
    found = look(run)
    assert [f.verdict for f in found] == ["fault"] * 4
    # the last is the store's, which lies where run.yaml says
    assert all(name in f.seen for name, f in zip(("run.yaml", "manifest.json", "space.yaml", "run.yaml"), found, strict=True))


def test_the_mark_of_a_dead_process_is_removed_and_only_that(run):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    mark = run / "holder.json"
    mark.write_text(json.dumps({"pid": dead.pid, "host": platform.node()}))
    assert [(f.verdict, f.repair.done) for f in look(run)] == [("note", "holder.json removed")]
    assert mark.exists()
    assert [f.repaired for f in look(run, repair=True)] == [True]
    assert not mark.exists()
    for who in ({"pid": dead.pid, "host": "elsewhere"}, {"pid": os.getpid(), "host": platform.node()}, {}):
        mark.write_text(json.dumps(who))
        (run / "front.csv").unlink(missing_ok=True)
        found = look(run, repair=True)
        assert [f.name for f in found] == ["run"] and "may hold it" in found[0].seen
        assert mark.exists() and not (run / "front.csv").exists()


def test_a_run_that_is_held_is_not_touched(run):
    old = run / ".front.csv.999999.tmp"
    old.write_text("half")
    os.utime(old, (HOURS_AGO, HOURS_AGO))
    (run / "pareto.html").unlink()
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(run)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        before = files(run)
        found = list(examine_run(run, with_data=False, repair=True))
        assert f"held by process {holder.pid} on" in found[0].seen
        assert not any(f.repaired or f.repair for f in found)
        assert [f.cure for f in found if f.verdict == "note"] == ["not touched while somebody may hold the run"]
        assert files(run) == before
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    assert [f.repair.done for f in look(run, repair=True)] == [
        "holder.json removed",
        "all result files written anew from the store",
        "these files removed",
    ]
    assert not old.exists() and (run / "pareto.html").exists()
    assert look(run) == []


def test_what_is_left_over_is_removed_and_what_is_lost_is_written_anew(run):
    before = files(run)
    trials = TrialFolders(run)
    with_state = [trials.state(number) for number in (3, 4)]
    for path in with_state:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("state")
    repeat = trials.state(3, repeat=1)
    repeat.write_text("a training that goes on")
    own, fresh, old = (run / f".x.{pid}.tmp" for pid in (os.getpid(), 999_998, 999_999))
    for path in (own, fresh, old):
        path.write_text("half")
    for path in (own, old):
        os.utime(path, (HOURS_AGO, HOURS_AGO))
    for name in ("front.csv", "pareto.png", "winner.yaml"):
        (run / name).unlink()
    with_damage = files(run)
    assert [f.seen.split(" (")[0] for f in look(run)] == [
        "front.csv, pareto.png, winner.yaml missing",
        "states of trainings that have ended: 2",
        f"temporary files of ended processes in {run}: 1",
    ]
    assert files(run) == with_damage
    assert [f.repaired for f in look(run, repair=True)] == [True] * 3
    left = files(run)
    assert {path: left.pop(str(path.relative_to(run))) for path in (own, fresh, repeat)}
    assert left.keys() == before.keys()
    assert (left["front.csv"], left["winner.yaml"]) == (before["front.csv"], before["winner.yaml"])
    assert look(run) == []


def test_a_training_that_goes_on_keeps_its_state(run):
    Store(run, create=False).promote(5)
    kept, left = (TrialFolders(run).state(number) for number in (5, 3))
    for path in (kept, left):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("state")
    assert "states of trainings that have ended: 1" in look(run, repair=True)[-1].seen
    assert kept.exists() and not left.exists()


def test_a_write_that_was_cut_off_is_rolled_back(run):
    whole = Store(run, create=False).entries
    done = subprocess.run([sys.executable, "-c", CUT_OFF, str(run / "study.db")])
    assert done.returncode == -9 and (run / "study.db-journal").read_bytes()[:1] > b"\0"
    before = files(run)
    assert [(f.name, f.verdict) for f in look(run)] == [("store", "note")]
    assert files(run) == before
    assert [(f.name, f.repaired) for f in look(run, repair=True)] == [("store", True)]
    assert not (run / "study.db-journal").exists()
    assert Store(run, create=False).entries == whole


def test_what_a_killed_search_leaves_open_is_named_with_the_way_on(run):
    store = Store(run, create=False)
    number = next(entry.number for entry in store.entries if entry.state == "done")
    store.start(number)
    weights = next(run.glob("trials/*/weights.pt"))
    weights.unlink()
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["versions"]["optuna"] = "4.0"
    manifest["machine"]["machine"] = "another machine"
    (run / "manifest.json").write_text(json.dumps(manifest))
    versions, other, open_, lost = look(run)
    assert "optuna 4.0, now " in versions.seen and "another machine, now " in other.seen
    assert open_.seen.startswith("1 still marked as running") and f"nas search --resume {run}" in open_.cure
    assert "the weights of 1 of" in lost.seen
    assert {f.verdict for f in (versions, other, open_, lost)} == {"note"}


def test_data(run, ended, tmp_path, quick):
    home = tmp_path / "data"
    shutil.copytree(ended, home, ignore=shutil.ignore_patterns("results"))
    yaml = str(home / "data.yaml")
    assert nas_doctor("search", "--data", yaml)[0] == 0  # a copy is the same data
    (home / "images" / "train" / "7.jpg").unlink()
    code, said = nas_doctor("--data", yaml)
    assert code == 0 and "1 tolerated: " in said and "7.jpg: no such image; the image is left out" in said
    code, said = nas_doctor("search", "--data", yaml)
    assert code == 2 and "has changed since" in said
    shutil.rmtree(home / "labels")
    code, said = nas_doctor("--data", yaml)
    assert code == 2 and "has a label file" in said, said
    config = (run / "run.yaml").read_text().replace(str(ended), str(tmp_path / "moved"))
    (run / "run.yaml").write_text(config)
    assert [(f.name, f.verdict) for f in look(run)] == [("data", "note")]


# --- the machine ---


def test_packages_that_fail_hang_or_crash_are_named(tmp_path, monkeypatch):
    for name, text in (("pkg_bad", "raise ImportError('libGL.so.1\\n is missing')"), ("pkg_loud", "print('{}')")):
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "pkg_crash.py").write_text("import os; os._exit(7)")
    (tmp_path / "pkg_hang.py").write_text("import time; time.sleep(600)")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    monkeypatch.setattr(machine, "OPTIONAL", ())
    monkeypatch.setattr(machine, "PACKAGES", ("click", "pkg_bad", "pkg_crash", "never"))
    found = machine.imported()
    assert list(found.versions) == ["click"]
    assert found.errors == {
        "pkg_bad": "ImportError: libGL.so.1 is missing",
        "pkg_crash": "its process ended with code 7",
    }
    monkeypatch.setattr(machine, "PACKAGES", ("pkg_loud", "pkg_hang", "never"))
    assert machine.imported(seconds=3).errors["pkg_hang"] == "nothing came of it within 3 s"


@pytest.mark.parametrize(
    ("listed", "cuda", "verdict", "words"),
    [
        ([], {"error": "no driver"}, "note", "no NVIDIA GPU: proxies train on the CPU"),
        (["H200"], {"names": ["H200"]}, "ok", "1 x H200; torch computes on it"),
        (["H200"] * 2, {"names": ["H200"] * 2}, "ok", "2 x H200; torch computes on each"),
        (["H200"] * 2, {"names": ["H200"]}, "fault", "does not compute on them: it sees 1"),
        (["H200"], {"error": "AssertionError: Torch not compiled with CUDA enabled"}, "fault", "not compiled with CUDA"),
        (["H200"], None, "fault", "torch cannot be imported"),
        ([], {"names": ["H200"]}, "note", "nvidia-smi does not list it"),
    ],
)
def test_the_driver_against_torch(monkeypatch, listed, cuda, verdict, words):
    monkeypatch.setattr(machine, "gpus", lambda: {str(i): name for i, name in enumerate(listed)})
    monkeypatch.setattr(machine, "_refusal", str)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (found,) = machine.graphics(cuda)
    assert found.verdict == verdict and words in found.seen
    assert verdict != "fault" or found.exit_code == 5


def test_a_driver_that_does_not_answer(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'; exit 9\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(machine, "gpus", dict)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (found,) = machine.graphics({"error": "no driver"})
    assert found.verdict != "ok" and found.seen == "nvidia-smi lists none: NVIDIA-SMI has failed"


def test_a_disk_that_is_full(tmp_path):
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("needs the right to mount")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount")
    try:
        (found,) = machine.disk("results", tmp_path / "results", "")
        assert found.verdict == "fault" and "0.0 GB free" in found.seen
        (tmp_path / "full").write_bytes(bytes(2**16))
        (found,) = machine.disk("results", tmp_path / "results", "")
        assert found.seen.endswith("cannot be written: No space left on device")
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_cluster_and_its_token(tmp_path, monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))

    def verdicts(address: str) -> list[str]:
        return [f.verdict for f in cluster.cluster(address)]

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for address in (f"127.0.0.1:{port}", f"ray://localhost:{port}"):
            assert verdicts(address) == ["ok"]
        monkeypatch.setattr(cluster.socket, "create_connection", lambda *_, **__: server.dup())
        assert verdicts(f"10.0.0.1:{port}") == ["ok", "fault"]  # no token
        monkeypatch.setattr(security, "CURRENT", tmp_path / "current")
        assert verdicts("auto") == ["fault"]
        security.CURRENT.write_text(f"10.0.0.1:{port}\n")
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("secret")
        assert verdicts("auto") == ["ok", "ok"]
        assert verdicts(f"10.0.0.1:{port}") == ["ok", "fault"]  # ray shows its token there only if told to
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        assert verdicts(f"10.0.0.1:{port}") == verdicts(f"127.0.0.1:{port}") == ["ok", "ok"]
        (tmp_path / ".ray" / "auth_token").unlink()
        assert verdicts(f"10.0.0.1:{port}") == verdicts(f"127.0.0.1:{port}") == ["ok", "fault"]


def test_the_cache_keeps_what_can_be_read(run, quick):
    line = json.dumps({"key": "k", "price": PRICE})
    path = Path("cache/latency/cpu-torch-0.jsonl")
    part = Path("cache/images/pixels-640-0.part")
    for file, text in ((path, f"\n{line}\n\n{line[:20]}\n\0\0\n"), (part, "half")):
        file.parent.mkdir(parents=True)
        file.write_text(text)
    assert "2 latencies" in nas_doctor("--repair")[1]
    assert part.exists() and line[:20] + "\n" in path.read_text()  # a search may be writing them
    for file in (path, part):
        os.utime(file, (HOURS_AGO, HOURS_AGO))
    assert "--repair mends 2 of them" in nas_doctor()[1]
    assert "2 repaired" in nas_doctor("--repair")[1]
    assert path.read_text() == f"{line}\n" and not part.exists()
