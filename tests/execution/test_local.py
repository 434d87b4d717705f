"""What only child processes of this host promise: no orphans, no Ctrl-C, no endless restarts."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from harness import WORKER, Ticker, alive, end_of, events_of, heard, wait_until

from nas.errors import UnreachableError
from nas.execution.executor import Attempt, Lost, Result
from nas.execution.local import MAX_STILLBORN, LocalExecutor

Tickers = Callable[..., Ticker]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., LocalExecutor]]:
    made: list[LocalExecutor] = []

    def make(**environment: str) -> LocalExecutor:
        made.append(LocalExecutor([WORKER | environment], WORKER | environment, tmp_path / "logs"))
        return made[-1]

    yield make
    for executor in made:
        executor.close()


@pytest.mark.parametrize("paused", [False, True])
def test_no_worker_outlives_a_killed_parent(ticker: Tickers, tmp_path: Path, paused: bool) -> None:
    workers = [ticker("one"), ticker("two")]
    lane = ticker("lane", "quiet", after=[str(each.folder / "count") for each in workers])
    everyone = [*workers, lane] if paused else workers
    attempts = [json.dumps(asdict(each.attempt)) for each in everyone]
    script = Path(__file__).with_name("parent.py")
    parent = subprocess.Popen([sys.executable, str(script), str(tmp_path), *attempts], start_new_session=True)
    try:
        for each in workers:
            wait_until(lambda each=each: each.count >= 0, "the workers run")
        if paused:
            wait_until((lane.folder / "still").exists, "the lane times")
            assert all(each.still() for each in workers)
        else:
            os.killpg(parent.pid, signal.SIGINT)  # what Ctrl-C in a terminal does
            for each in workers:
                each.wait()
        assert parent.poll() is None
    finally:
        parent.kill()
        parent.wait()
    wait_until(lambda: not any(alive(each.pid) for each in everyone), "the workers end")


def test_a_worker_ends_with_a_parent_that_dies_while_it_writes() -> None:
    worker = [sys.executable, "-m", "nas.execution.worker"]
    done = subprocess.run(worker, input=b'{"key": "a", "ki', stdout=subprocess.DEVNULL, timeout=60, check=False)
    assert done.returncode == 0


def test_a_worker_that_dies_in_the_middle_of_a_message(make: Callable[..., LocalExecutor], tmp_path: Path) -> None:
    executor = make()
    lost = end_of(executor, Attempt("a", "attempts:die", {"folder": str(tmp_path)}))
    assert isinstance(lost, Lost) and "SIGKILL" in lost.reason
    child = int((tmp_path / "pid").read_text())
    wait_until(lambda: not alive(child), "what the attempt had started ends with its worker")


@pytest.mark.parametrize("broken", ["shadow", "interpreter"])
@pytest.mark.parametrize("quiet", [False, True])
def test_workers_that_cannot_begin(make: Callable[..., LocalExecutor], tmp_path: Path, broken: str, quiet: bool) -> None:
    (tmp_path / "nas").mkdir()
    (tmp_path / "nas/__init__.py").write_text("raise ImportError('not this one')")
    environment = {"shadow": {"PYTHONPATH": str(tmp_path)}, "interpreter": {"PYTHONHOME": "/nowhere"}}[broken]
    executor = make(**environment)
    for number in range(MAX_STILLBORN - 1):
        lost = end_of(executor, Attempt(str(number), "attempts:echo", quiet=quiet))
        assert isinstance(lost, Lost) and lost.seconds == 0 and "exit code 1" in lost.reason
    executor.start(Attempt("last", "attempts:echo", quiet=quiet))
    with pytest.raises(UnreachableError, match="before they were ready") as raised:
        events_of(executor, "last")
    assert str(tmp_path / "logs") in raised.value.hint
    log = (tmp_path / "logs" / ("lane.log" if quiet else "worker0.log")).read_text()
    assert "not this one" in log or "nowhere" in log


def test_a_python_that_greets(make: Callable[..., LocalExecutor], tmp_path: Path) -> None:
    """A sitecustomize of the user's writes into the stream of events."""
    (tmp_path / "sitecustomize.py").write_text("print('welcome', flush=True); print('{}', 1, flush=True)")
    executor = make(PYTHONPATH=os.pathsep.join([str(tmp_path), WORKER["PYTHONPATH"]]))
    assert isinstance(end_of(executor, Attempt("a", "attempts:echo")), Result)


def test_modules_in_the_present_folder_are_not_taken(
    make: Callable[..., LocalExecutor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("nas.py", "queue.py", "threading.py"):
        (tmp_path / name).write_text("raise ImportError('a script of the user')")
    monkeypatch.chdir(tmp_path)
    assert isinstance(end_of(make(), Attempt("a", "attempts:echo")), Result)


def test_a_worker_that_dies_idle_is_replaced(make: Callable[..., LocalExecutor]) -> None:
    executor = make()
    first = end_of(executor, Attempt("a", "attempts:echo")).data["pid"]
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: not alive(first) and heard(executor, 0.1) == [], "it ends")
    again = end_of(executor, Attempt("b", "attempts:echo"))
    assert isinstance(again, Lost) or again.data["pid"] != first  # whether its end was heard of in time
    assert isinstance(end_of(executor, Attempt("c", "attempts:echo")), Result)
