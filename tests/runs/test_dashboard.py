"""optuna-dashboard opens the study of a run."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from nas.config import RunConfig
from nas.execution.simulate import Faults
from nas.runs.store import Store
from nas.simulate.play import Play
from tests.simulate.tables import small


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read()


def test_the_dashboard_shows_the_trials_of_a_run(tmp_path: Path) -> None:
    space = small(tmp_path)
    config = RunConfig("t", "t", "6trials", "lat", sampler="random", max_latency_ms=4.0, confirm=0)
    Play(space, config, Store(tmp_path, create=True), tau=0.7, faults=Faults(), folder=tmp_path).run()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = [str(Path(sys.executable).parent / "optuna-dashboard"), f"sqlite:///{tmp_path}/study.db", "--port", str(port)]
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as server:
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    page = get(f"http://127.0.0.1:{port}/dashboard")
                    break
                except urllib.error.URLError:
                    assert server.poll() is None and time.monotonic() < deadline, server.stderr and server.stderr.read()
                    time.sleep(0.1)
            assert b"<html" in page
            (study,) = json.loads(get(f"http://127.0.0.1:{port}/api/studies"))["study_summaries"]
            told = json.loads(get(f"http://127.0.0.1:{port}/api/studies/{study['study_id']}"))
        finally:
            server.kill()
    trials = told["trials"]
    done = [trial for trial in trials if trial["state"] == "Complete"]
    assert len(done) == 6 and len(trials) >= 6
    assert all(len(trial["values"]) == 2 and trial["params"] for trial in done)
    assert told["objective_names"] == ["mAP50-95", "latency ms"]
    assert told["directions"] == ["maximize", "minimize"]
