"""A whole search on a Ray cluster, whose head dies in the middle, and which goes on in another one."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import can_hide, nodes, ray_processes
from harness import wait_until

from nas.dataset.builtin import builtin_dataset
from nas.dataset.description import read_dataset
from nas.execution.ray.address import Door
from nas.execution.ray.cluster import offer
from nas.latency.cache import LatencyCache
from nas.latency.target import Target
from nas.runs.folder import read_config, read_manifest

CLI = [sys.executable, "-c", "from nas.cli import main; main()"]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with a small dataset."""
    full = read_dataset(builtin_dataset())
    (tmp_path / "train.txt").write_text("\n".join(map(str, full.train[:40])))
    (tmp_path / "val.txt").write_text("\n".join(map(str, full.val[:10])))
    names = json.dumps(list(full.names))
    (tmp_path / "small.yaml").write_text(f"path: {tmp_path}\ntrain: train.txt\nval: val.txt\nnames: {names}\n")
    return tmp_path


def begin(home: Path, *words: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [*CLI, "search", *words], cwd=home, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def end(search: subprocess.Popen[str]) -> tuple[int, str]:
    out, err = search.communicate(timeout=300)
    assert "Traceback" not in err
    return search.returncode, out + err


def test_what_is_no_cluster_is_said_before_anything_is_written(home: Path) -> None:
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.2", 0))
        dead = f"127.0.0.2:{taken.getsockname()[1]}"
        for address, code, words in (
            ("head", 2, "--address head: not the address of a Ray cluster"),
            (dead, 5, f"no Ray cluster answers at {dead}: connection refused"),
        ):
            found, told = end(begin(home, "--data", "small.yaml", "--address", address))
            assert (found, words in told) == (code, True), told
    assert not (home / "results").exists()


@pytest.mark.slow
def test_a_search_survives_its_cluster(home: Path) -> None:
    log = home / "results" / "search" / "search.log"
    tiny = "--data small.yaml --imgsz 32 --epochs 1 --confirm 0 --allow-noisy --budget 500trials".split()
    with nodes(2) as first:
        search = begin(home, "--address", first.address, *tiny)
        wait_until(lambda: log.is_file() and log.read_text().count("done: ") >= 2, "two trials are done")
        first.kill_head()
        code, told = end(search)
    assert code == 5, told[-3000:]
    assert f"the Ray cluster at {first.address} is gone" in told and "ray::" not in told and "raylet" not in told
    done = len((home / "results" / "search" / "trials.csv").read_text().splitlines()) - 1
    code, told = end(begin(home, "--resume", "search"))
    assert code == 5 and f"no Ray cluster answers at {first.address}" in told
    with nodes(2) as second:
        code, told = end(begin(home, "--resume", "search", "--address", second.address, "--budget", f"{done + 2}trials"))
    assert code == 0, told
    rows = (home / "results" / "search" / "trials.csv").read_text().splitlines()
    assert sum(",done," in row for row in rows) >= 4
    assert (home / "results" / "search" / "trials" / "0000" / "weights.pt").is_file()
    assert f"address: {second.address}" in (home / "results" / "search" / "run.yaml").read_text()


@pytest.mark.slow
@pytest.mark.skipif(not can_hide(), reason="may not hide files from a process")
def test_a_search_on_a_host_that_sees_none_of_our_files(home: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    there = tmp_path_factory.mktemp("there")
    cache = Path(os.environ["NAS_CACHE"])
    tiny = "--data small.yaml --imgsz 32 --epochs 1 --confirm 0 --allow-noisy --budget 3trials".split()
    with nodes(0) as found:
        found.add_stranger(there, home, cache)
        wait_until(lambda: offer(found.address).nodes[1:], "the stranger is there")
        code, told = end(begin(home, "--address", found.address, *tiny))
    assert code == 0, told[-3000:]
    run = home / "results" / "search"
    rows = (run / "trials.csv").read_text().splitlines()
    assert sum(",done," in row for row in rows) == 3
    assert "epoch 1" in (run / "trials" / "0000" / "worker.log").read_text()
    assert (run / "trials" / "0000" / "weights.pt").stat().st_size > 1e6
    assert not list((there / "elsewhere" / "files").rglob("weights.pt"))
    assert list((there / "images").glob("pixels-32-*.npy"))


def standing() -> list[int]:
    """Actors of any cluster that stand still."""
    found = []
    for pid in ray_processes(b"ray::Actor"):
        with contextlib.suppress(OSError):
            found += [pid] if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T" else []
    return found


@pytest.mark.slow
@pytest.mark.skipif(not can_hide(), reason="may not hide files from a process")
def test_latency_is_measured_on_the_host_that_offers_it_and_kept_as_its_own(
    home: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, cache = tmp_path_factory.mktemp("there"), tmp_path_factory.mktemp("cache")
    shutil.copytree(os.environ["NAS_CACHE"], cache, dirs_exist_ok=True, ignore=shutil.ignore_patterns("latency"))
    monkeypatch.setenv("NAS_CACHE", str(cache))
    tiny = "--data small.yaml --imgsz 32 --epochs 1 --confirm 0 --allow-noisy --budget 3trials".split()
    run = home / "results" / "search"
    with nodes(1) as found:
        stranger = found.add_stranger(there, home, cache, name="far", latency=1)
        wait_until(lambda: offer(found.address).nodes[2:], "the stranger is there")
        code, told = end(begin(home, "--address", found.address, *tiny))
        assert code == 0, told[-3000:]
        assert re.search(r"latency is measured on cpu:\S+.*, on 127\.0\.0\.4 \(.*\(far\)\), a host of the cluster", told), told
        assert "lane: 127.0.0.4" in (run / "run.yaml").read_text()
        config, _ = read_config(run)
        stamp, target = read_manifest(run)["machine"], Target.parse(config.target)
        assert stamp["machine"].endswith("(far)") and stamp["machine"] != target.stamp()["machine"]
        rows = list(csv.DictReader((run / "trials.csv").open()))
        assert sum(row["state"] == "done" for row in rows) == 3
        # what is kept for other runs (of a quiet moment) is kept as that host's, and nothing as this one's
        its_own = LatencyCache(cache / "latency", target, None, stamp).path
        assert set((cache / "latency").glob("*")) <= {its_own}
        assert not (there / "latency").exists()
        assert "on 127.0.0.4" in (run / "pareto.html").read_text()

        # killed in the middle of a measurement
        search = begin(home, "--resume", "search", "--budget", "500trials")
        wait_until(standing, "a training stands still")
        search.kill()
        search.communicate()
        wait_until(lambda: not ray_processes(b"ray::Actor") and not ray_processes(b"ray::LaneActor"), "nothing of it is left")
        stranger.kill()
        wait_until(lambda: not offer(found.address).nodes[2:], "the stranger has left")
        code, told = end(begin(home, "--resume", "search"))
        assert code == 5 and "latency was measured on 127.0.0.4: no host of the Ray cluster at" in told, told

        # another one, which is alike
        found.add_stranger(there, home, cache, name="farther", latency=1)
        wait_until(lambda: offer(found.address).nodes[2:], "another one is there")
        code, told = end(begin(home, "--resume", "search", "--budget", "4trials"))
        assert code == 0 and "lane: 127.0.0.5" in (run / "run.yaml").read_text(), told
        code, told = end(begin(home, "--resume", "search", "--executor", "local", "--add-budget", "1trials"))
        assert code == 2 and "has measured latencies on" in told, told


@pytest.mark.slow
def test_a_search_by_ray_client_and_one_that_is_killed(home: Path) -> None:
    pytest.importorskip("grpc")
    log = home / "results" / "search" / "search.log"
    tiny = "--data small.yaml --imgsz 32 --epochs 1 --confirm 0 --allow-noisy".split()
    with nodes(1, ray_client_server_port=25004):
        address = "ray://127.0.0.2:25004"
        wait_until(lambda: Door("127.0.0.2", 25004).knock() is None, "its port is open")
        code, told = end(begin(home, "--address", address, *tiny, "--budget", "2trials"))
        assert code == 0, told[-3000:]
        rows = (home / "results" / "search" / "trials.csv").read_text().splitlines()
        assert sum(",done," in row for row in rows) == 2
        search = begin(home, "--resume", "search", "--budget", "500trials")
        wait_until(lambda: log.read_text().count("done: ") >= 3, "a trial is done")
        search.kill()
        search.communicate()
        wait_until(lambda: not ray_processes(b"ray::Actor"), "nothing of it is left")
