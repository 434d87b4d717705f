"""Faults that befall a whole search, made to happen: what it says, what it keeps, and that it goes on afterwards."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nas.dataset.builtin import builtin_dataset
from nas.dataset.description import read_dataset

pytestmark = pytest.mark.slow
CLI = [sys.executable, "-c", "from nas.cli import main; main()"]
SPACE = """\
skeleton: yolo11n.yaml
slots:
  backbone.P5: {block: [keep, repvit, irmb], width: [0.25, 0.5, 1.0]}
"""
WORDS = ["--data", "small.yaml", "--imgsz", "32", "--epochs", "2", "--workers", "1", "--allow-noisy", "--sampler", "random"]


def small_data(folder: Path) -> None:
    """A data set of the folder's own, in real files."""
    full = read_dataset(builtin_dataset())
    for split, images in (("train", full.train[:40]), ("val", full.val[:10])):
        for kind in ("images", "labels"):
            (folder / "data" / kind / split).mkdir(parents=True)
        for image in images:
            label = Path(str(image).replace("/images/", "/labels/")).with_suffix(".txt")
            shutil.copy(image, folder / "data" / "images" / split)
            shutil.copy(label, folder / "data" / "labels" / split)
    names = json.dumps(list(full.names))
    (folder / "small.yaml").write_text(f"path: {folder / 'data'}\ntrain: images/train\nval: images/val\nnames: {names}\n")


class Home:
    """A folder to search in."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run = folder, folder / "results" / "search"

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [*CLI, *arguments]
        return subprocess.Popen(command, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def nas(self, *arguments: str, code: int = 0) -> str:
        """stdout and stderr of a command that ends with `code`, without a traceback."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=600)
        assert process.returncode == code, (process.returncode, out, err[-3000:])
        assert "Traceback" not in out + err
        return out + err

    def search(self, budget: str, *more: str, code: int = 0) -> str:
        return self.nas("search", "--space", "space.yaml", *WORDS, "--budget", budget, *more, code=code)

    def states(self) -> list[str]:
        rows = (self.run / "trials.csv").read_text().splitlines()
        column = rows[0].split(",").index("state")
        return [state for row in rows[1:] if (state := row.split(",")[column]) != "rejected"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A search of two trials that has ended."""
    home = Home(tmp_path_factory.mktemp("ein Heim"))
    small_data(home.folder)
    (home.folder / "space.yaml").write_text(SPACE)
    home.search("2trials")
    return home


@pytest.fixture
def home(finished: Home, tmp_path: Path) -> Home:
    """A copy of it."""
    folder = tmp_path / "home"
    shutil.copytree(finished.folder / "results", folder / "results")
    shutil.copy(finished.folder / "small.yaml", folder)
    (folder / "space.yaml").write_text(SPACE)
    config = folder / "results" / "search" / "run.yaml"
    config.write_text(config.read_text().replace(str(finished.folder), str(folder)))
    shutil.copytree(finished.folder / "data", folder / "data")
    yaml = folder / "small.yaml"
    yaml.write_text(yaml.read_text().replace(str(finished.folder), str(folder)))
    return Home(folder)


def wait_for(true, what: str) -> None:
    deadline = time.monotonic() + 120
    while not true():
        if time.monotonic() > deadline:
            pytest.fail(f"waited in vain: {what}")
        time.sleep(0.05)


def test_a_changed_space_is_refused_with_the_difference(home: Home) -> None:
    for file in (home.folder / "space.yaml", home.run / "space.yaml"):
        text = file.read_text()
        file.write_text(text.replace("[0.25, 0.5, 1.0]", "[0.25, 0.5]"))
        said = home.nas("search", "--resume", "search", "--add-budget", "1trials", code=2)
        assert "the space has changed" in said
        assert "backbone.P5 width: 0.25, 0.5, was 0.25, 0.5, 1.0" in said
        file.write_text("# another comment\n" + text)
    (home.folder / "space.yaml").unlink()
    assert "3 done" in home.nas("search", "--resume", "search", "--add-budget", "1trials")


def test_changed_data_are_refused_with_the_difference(home: Home) -> None:
    images = sorted((home.folder / "data" / "images" / "train").iterdir())
    shutil.copy(images[0], images[0].with_name("new one.png"))
    shutil.copy(images[1], images[0])
    label = home.folder / "data" / "labels" / "train" / f"{images[2].stem}.txt"
    label.write_text(label.read_text() + "0 0.5 0.5 0.1 0.1\n")
    images[3].unlink()
    said = home.nas("search", "--resume", "search", "--add-budget", "1trials", code=2)
    assert "small.yaml: has changed since results/search began" in said
    assert "1 image of train new: train/new one.png" in said
    assert f"1 image of train changed: train/{images[0].name}" in said
    assert f"1 image of train labelled otherwise: train/{images[2].name}" in said
    assert f"1 image of train gone: train/{images[3].name}" in said


def test_another_machine_is_refused_and_other_versions_are_said(home: Home) -> None:
    path = home.run / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"machine": manifest["machine"] | {"machine": "Cray-1"}}))
    said = home.nas("search", "--resume", "search", "--add-budget", "1trials", code=2)
    assert "has measured latencies on Cray-1, now " in said and "--from results/search" in said
    path.write_text(json.dumps(manifest | {"versions": manifest["versions"] | {"torch": "1.0"}}))
    said = home.nas("search", "--resume", "search", "--add-budget", "1trials")
    assert "began with torch 1.0, now " in said and "3 done" in said
    assert "began with torch 1.0, now " in (home.run / "search.log").read_text()


def test_status_and_a_second_search_while_one_runs_and_after_kill_9(home: Home) -> None:
    assert "stopped: budget spent" in home.nas("status")
    searching = home.start("search", "--resume", "search", "--add-budget", "50trials")
    try:
        wait_for(lambda: " running, process" in home.nas("status") and "explore" in home.nas("status"), "it runs")
        assert f"process {searching.pid} on" in home.nas("status", "search")
        said = home.nas("search", "--resume", "search", code=2)
        assert f"in use by process {searching.pid} on" in said
        watching = home.start("status", "--watch")
        wait_for(lambda: sum(state == "done" for state in home.states()) > 2, "another trial is done")
        searching.send_signal(signal.SIGKILL)
        searching.wait()
        told, _ = watching.communicate(timeout=60)
        assert " running, process" in told and f"process {searching.pid}" in told.splitlines()[-2]
    finally:
        searching.kill()
    said = home.nas("status")
    assert "was killed" in said and "nas search --resume results/search" in said
    before = home.states().count("done")
    said = home.nas("search", "--resume", "search", "--budget", f"{before + 1}trials")
    assert f"{before + 1} done" in said
    assert not list(Path("/proc").glob(f"{searching.pid}/stat"))


def test_a_store_that_another_process_locks_is_waited_for(home: Home) -> None:
    """SQLite's own lock, held for some seconds by somebody who looks into the file with a tool of theirs."""
    searching = home.start("search", "--resume", "search", "--add-budget", "2trials")
    wait_for(lambda: "explore" in home.nas("status"), "it runs")
    other = sqlite3.connect(home.run / "study.db", timeout=60)
    other.execute("BEGIN EXCLUSIVE")
    time.sleep(8)
    other.rollback()
    other.close()
    out, err = searching.communicate(timeout=300)
    assert searching.returncode == 0, err
    assert "4 done" in out


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 60 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_stops_the_search_and_loses_nothing(home: Home, small_disk: Path) -> None:
    shutil.copytree(home.run, small_disk / "search", ignore=shutil.ignore_patterns("trials", "*.pt", "*.html", "*.png"))
    shutil.rmtree(home.run)
    home.run.symlink_to(small_disk / "search")
    searching = home.start("search", "--resume", "search", "--add-budget", "20trials")
    wait_for(lambda: "explore" in home.nas("status"), "it runs")
    ballast = small_disk / "ballast"
    full = threading.Event()

    def fill() -> None:
        """Whatever room there is, is taken, again and again."""
        with ballast.open("ab", buffering=0) as file:
            while not full.wait(0.01):
                for size in (65536, 4096, 1):
                    try:
                        while True:
                            file.write(b"x" * size)
                    except OSError:
                        continue

    thread = threading.Thread(target=fill)
    thread.start()
    try:
        out, err = searching.communicate(timeout=300)
    finally:
        full.set()
        thread.join()
    assert searching.returncode in {2, 4}, err
    assert "Traceback" not in out + err and "Logging error" not in out + err
    assert "No space left" in err or "disk is full" in err or "full" in err, err
    done = home.states().count("done")
    ballast.unlink()
    said = home.nas("doctor", "search", code=2)  # which finds the disk too small
    assert "integrity check finds nothing" in said
    said = home.nas("search", "--resume", "search", "--budget", f"{max(done, 2) + 2}trials")
    assert f"{max(done, 2) + 2} done" in said


def test_a_clock_that_jumps(home: Home, tmp_path: Path) -> None:
    """The clock on the wall goes back a day and forth two, all the time: nothing is decided by it."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import itertools, time\n"
        "true, jumps = time.time, itertools.cycle((0, -86400, 86400))\n"
        "time.time = lambda: true() + next(jumps)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])}
    line = [*CLI, "search", "--resume", "search", "--add-budget", "2trials"]
    done = subprocess.run(line, cwd=home.folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "4 done" in done.stdout
    run = json.loads((home.run / "front.json").read_text())["run"]
    assert 0 < run["wall_seconds"] < 600
    attempts = [attempt for row in read_attempts(home.run) for attempt in row]
    assert all(attempt["outcome"] == "done" and 0 < attempt["seconds"] < 300 for attempt in attempts)


def read_attempts(run: Path) -> list[list[dict]]:
    with sqlite3.connect(run / "study.db") as database:
        rows = database.execute("SELECT value_json FROM trial_user_attributes WHERE key = 'attempts'").fetchall()
    return [json.loads(row[0]) for row in rows]
