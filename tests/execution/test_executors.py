"""The contract of executors, kept by each of them."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import WORKER, Ticker, alive, end_of, events_of, heard, room, wait_until

from nas.execution.executor import Attempt, Event, Executor, Failed, Lost, Progress, Result
from nas.execution.local import LocalExecutor
from nas.execution.simulate import SIMULATE, Clock, Faults, SimulatedExecutor
from nas.execution.watch import Watched

Make = Callable[[int], Executor]
Tickers = Callable[..., Ticker]


def on_ray(logs: Path, workers: int, *, offered: bool) -> Executor:
    """An executor on one Ray that serves all of them."""
    from nas.execution.ray.executor import RayExecutor, ray

    if not ray.is_initialized():
        quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
        ray.init(address="local", num_cpus=8, resources={"latency": 2}, **quiet)
    return RayExecutor(WORKER, WORKER, logs, workers=workers, offered=offered)


def no_ray() -> None:
    """Whoever connects to a cluster, or begins none, finds no Ray here."""
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()


@pytest.fixture(scope="module", autouse=True)
def ended() -> Iterator[None]:
    yield
    no_ray()


ON_A_NODE = pytest.param("ray, the lane on a node", marks=pytest.mark.slow)
BY_CLIENT = pytest.param("ray client, the lane on a node", marks=pytest.mark.slow)


@pytest.fixture(scope="module", params=["local", "ray", ON_A_NODE, BY_CLIENT])
def make(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Make]:
    """Makes an executor of so many workers."""
    logs = tmp_path_factory.mktemp("logs")
    if request.param == "local":
        yield lambda workers: LocalExecutor([WORKER] * workers, WORKER, logs)
        return
    if "client" in request.param:
        pytest.importorskip("grpc")
        from cluster import nodes

        from nas.execution.ray.executor import RayExecutor

        no_ray()
        with nodes(0, num_cpus=8, resources={"latency": 2}, ray_client_server_port=25001):
            settings = {"address": "ray://127.0.0.2:25001", "offered": True}
            yield lambda workers: RayExecutor(WORKER, WORKER, logs, workers=workers, **settings)
        return
    yield lambda workers: on_ray(logs, workers, offered=request.param != "ray")


@pytest.fixture(scope="module")
def shared(make: Make) -> Iterator[Executor]:
    executor = make(2)
    room(executor, 2)
    yield executor
    executor.close()


@pytest.fixture
def executor(shared: Executor) -> Iterator[Executor]:
    """Two workers that are free before and after each test."""
    yield shared
    room(shared, 2)
    assert (shared.free, shared.lane_free) == (2, True)
    assert heard(shared, 0) == []


class Kind:
    """How attempts of one kind of executor are made to end in each way: `local` and `ray` run them, `simulate` plays them."""

    def __init__(self, name: str, open_: Callable[[str], Executor]) -> None:
        self.name, self.open = name, open_

    def attempt(self, key: str, seconds: float = 0.0, fate: str = "result") -> Attempt:
        """One that takes so long and then ends so; on `simulate` it is the executor that decides that."""
        if self.name == "simulate":
            return Attempt(key, SIMULATE, {"seconds": seconds, "data": {"seed": 7}}, seed=7)
        how = {"result": "echo", "lost": "fail", "failed": "fail"}[fate]
        payload = {"result": {"seconds": seconds}, "lost": {"how": "exit"}, "failed": {"how": "bare"}}[fate]
        return Attempt(key, f"attempts:{how}", payload, seed=7)


@pytest.fixture(scope="module", params=["local", "ray", ON_A_NODE, "simulate"])
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kind]:
    """Opens executors of two workers in which attempts end as told."""
    logs = tmp_path_factory.mktemp("logs")
    if request.param == "simulate":
        faults = {"result": Faults(), "failed": Faults(fail=1), "lost": Faults(lose=1)}
        yield Kind("simulate", lambda fate: SimulatedExecutor(Clock(), 2, faults[fate], 0))
        return
    if request.param == "local":
        yield Kind("local", lambda _: LocalExecutor([WORKER] * 2, WORKER, logs))
        return
    yield Kind("ray", lambda _: on_ray(logs, 2, offered=request.param != "ray"))


@pytest.mark.parametrize(("fate", "type_"), [("result", Result), ("failed", Failed), ("lost", Lost)])
def test_the_life_of_an_attempt_on_each_executor(kind: Kind, fate: str, type_: type) -> None:
    """Start, one end of its kind and nothing after it, stop, and all free again: what the study relies on everywhere."""
    executor = kind.open(fate)
    with contextlib.closing(executor):
        room(executor, 2)
        assert (executor.free, executor.lane_free) == (2, True)
        executor.start(kind.attempt("a", 0.2, fate))
        executor.start(kind.attempt("stopped", 600))
        assert executor.free == 0
        with pytest.raises(RuntimeError):
            executor.start(kind.attempt("c"))
        executor.poll(0)
        assert executor.stop("unknown") == 0
        assert executor.stop("stopped") >= 0 and executor.stop("stopped") == 0
        event = events_of(executor, "a")["a"][-1]
        assert type(event) is type_ and event.seconds >= 0
        assert not isinstance(event, Result) or event.data["seed"] == 7
        assert heard(executor, 0.1) == []
        room(executor, 2)
        executor.start(kind.attempt("a", 0.1, fate))  # a key may come again once its attempt has ended
        assert type(events_of(executor, "a")["a"][-1]) is type_
    executor.close()


def quiet_begins(executor: Executor, attempt: Attempt, folder: Path) -> None:
    """Start a quiet attempt and wait until it times."""
    executor.start(attempt)
    assert not executor.lane_free

    def still() -> bool:
        assert heard(executor, 0.02) == []
        return (folder / "still").exists()

    wait_until(still, "quiet")


@pytest.mark.parametrize("quiet", [False, True])
def test_an_attempt_reports_and_ends_once(executor: Executor, quiet: bool) -> None:
    began = time.monotonic()
    executor.start(Attempt("a", "attempts:echo", {"steps": 3, "seconds": 0.2}, seed=7, quiet=quiet))
    *reports, result = events_of(executor, "a")["a"]
    assert [(type(e), e.data) for e in reports] == [(Progress, {"step": i, "of": [3]}) for i in range(3)]
    assert isinstance(result, Result) and result.data["seed"] == 7
    assert result.data["payload"] == {"steps": 3, "seconds": 0.2}
    assert 0 <= reports[0].seconds <= reports[-1].seconds <= result.seconds
    assert 0.2 <= result.seconds <= time.monotonic() - began
    assert heard(executor, 0.1) == []


def test_so_many_at_once(executor: Executor, ticker: Tickers) -> None:
    tickers = [ticker("one"), ticker("two")]
    for left, each in zip((1, 0), tickers, strict=True):
        executor.start(each.attempt)
        assert executor.free == left
    for each in tickers:
        each.wait()
    with pytest.raises(RuntimeError, match="free"):
        executor.start(Attempt("three", "attempts:echo"))
    tickers[0].end()
    events_of(executor, "one")
    tickers[1].wait()
    assert isinstance(end_of(executor, Attempt("three", "attempts:echo")), Result)
    tickers[1].end()
    assert isinstance(events_of(executor, "two")["two"][0], Result)


def test_a_worker_stays_warm(executor: Executor) -> None:
    seen = [end_of(executor, Attempt(str(i), "attempts:echo")).data for i in range(4)]
    assert len({(data["pid"], data["loaded"]) for data in seen}) <= 2
    lane = [end_of(executor, Attempt(str(i), "attempts:echo", quiet=True)).data for i in range(2)]
    assert lane[0] == lane[1] and lane[0]["pid"] not in {data["pid"] for data in seen}


@pytest.mark.parametrize(
    ("kind", "payload", "reason", "detail"),
    [
        ("attempts:fail", {"how": "input"}, "the data is gone", "bring it back"),
        ("attempts:fail", {"how": "memory"}, "out of memory", "MemoryError"),
        ("attempts:fail", {"how": "long"}, "ValueError: first line", "second line"),
        ("attempts:fail", {"how": "bare"}, "ValueError: ", "in fail"),
        ("attempts:gone", {}, "AttributeError: module 'attempts' has no attribute 'gone'", "Traceback"),
        ("no_such_module:f", {}, "ModuleNotFoundError: No module named 'no_such_module'", "Traceback"),
        *(
            ("attempts:tell", {"what": what, "as": way}, f"TypeError: an attempt tells {message}", "Traceback")
            for way in ("result", "progress")
            for what, message in {
                "nan": "plain JSON: Out of range float values are not JSON compliant",
                "object": "plain JSON: Object of type object is not JSON serializable",
                "nothing": "a mapping, not NoneType",
                "text": "a mapping, not str",
            }.items()
        ),
    ],
)
def test_what_an_attempt_raises_is_its_end(executor: Executor, kind: str, payload: dict, reason: str, detail: str) -> None:
    event = end_of(executor, Attempt("a", kind, payload))
    assert isinstance(event, Failed) and event.seconds >= 0
    assert event.reason.startswith(reason) and "\n" not in event.reason
    assert detail in event.detail


def test_an_attempt_may_print_and_may_ask_for_quiet_without_a_lane(executor: Executor, ticker: Tickers) -> None:
    assert end_of(executor, Attempt("a", "attempts:shout")).data == {"quiet": False}
    asks = ticker("asks", "quiet")
    asks.end()
    assert end_of(executor, Attempt("b", "attempts:quiet", asks.attempt.payload)).data == {}


@pytest.mark.parametrize("quiet", [False, True])
def test_any_text_of_any_size(executor: Executor, quiet: bool) -> None:
    payload = {"text": "größer → 模型 \U0001f600 \ud800 \x00\n\u2028", "large": "ä" * 1_000_000, "deep": [[{"": None}]]}
    assert end_of(executor, Attempt("schlüssel\n", "attempts:echo", payload, quiet=quiet)).data["payload"] == payload


@pytest.mark.parametrize("quiet", [False, True])
def test_a_killed_worker_loses_its_attempt_alone(executor: Executor, ticker: Tickers, quiet: bool) -> None:
    victim, other = ticker("victim", "quiet" if quiet else "tick"), ticker("other")
    executor.start(other.attempt)
    other.wait()
    if quiet:
        quiet_begins(executor, victim.attempt, victim.folder)
        assert other.still()
    else:
        executor.start(victim.attempt)
        victim.wait()
    os.kill(victim.pid, signal.SIGKILL)
    (lost,) = events_of(executor, "victim")["victim"]
    assert isinstance(lost, Lost) and lost.reason and lost.seconds > 0
    other.wait()
    again = end_of(executor, Attempt("again", "attempts:echo", quiet=quiet))
    assert isinstance(again, Result) and again.data["pid"] != victim.pid
    other.end()
    assert isinstance(events_of(executor, "other")["other"][0], Result)


def test_an_attempt_that_leaves_loses_its_worker(executor: Executor) -> None:
    assert isinstance(end_of(executor, Attempt("a", "attempts:fail", {"how": "exit"})), Lost)
    assert isinstance(end_of(executor, Attempt("b", "attempts:echo")), Result)


@pytest.mark.parametrize("quiet", [False, True])
def test_stop(executor: Executor, ticker: Tickers, quiet: bool) -> None:
    stopped, other = ticker("stopped", "quiet" if quiet else "tick"), ticker("other")
    executor.start(other.attempt)
    other.wait()
    if quiet:
        quiet_begins(executor, stopped.attempt, stopped.folder)
    else:
        executor.start(stopped.attempt)
        stopped.wait()
        executor.poll(0)
    pid = stopped.pid
    assert executor.stop("unknown") == 0
    assert 0 < executor.stop("stopped") < time.monotonic()
    assert executor.stop("stopped") == 0
    room(executor)
    assert (executor.free, executor.lane_free) == (1, True)
    wait_until(lambda: not alive(pid), "the stopped worker ends")
    other.wait()
    assert heard(executor, 0.1) == []
    assert isinstance(end_of(executor, Attempt("stopped", "attempts:echo", quiet=quiet)), Result)
    other.end()
    events_of(executor, "other")


@pytest.mark.parametrize("fails", [False, True])
def test_workers_stand_still_while_the_lane_times(executor: Executor, ticker: Tickers, fails: bool) -> None:
    running, lane = ticker("running"), ticker("lane", "quiet", fails=fails)
    executor.start(running.attempt)
    running.wait()
    quiet_begins(executor, lane.attempt, lane.folder)
    with pytest.raises(RuntimeError, match="lane"):
        executor.start(Attempt("second", "attempts:echo", quiet=True))
    assert running.still()
    # what starts now waits too, however much it has to carry
    executor.start(Attempt("late", "attempts:echo", {"text": "x" * 1_000_000}))
    assert heard(executor, 0.3) == []
    lane.end()
    events = events_of(executor, "lane", "late")
    assert isinstance(events["lane"][0], Failed if fails else Result)
    assert isinstance(events["late"][0], Result)
    running.wait()
    running.end()
    events_of(executor, "running")


def test_what_hangs_is_ended_with_its_children_and_what_beats_is_not(executor: Executor, ticker: Tickers) -> None:
    watched = Watched(executor, silent=1.5)
    hanging, slow = ticker("hanging", "hang"), ticker("slow", "beats")
    watched.start(hanging.attempt)
    watched.start(slow.attempt)
    wait_until((hanging.folder / "pid").exists, "it hangs")
    pids = [int(pid) for pid in (hanging.folder / "pid").read_text().split()]
    found: list[Event] = []
    wait_until(lambda: found.extend(watched.poll(0.5)) or any(e.key == "hanging" for e in found), "it is ended")
    (lost,) = (event for event in found if event.key == "hanging")
    assert isinstance(lost, Lost) and lost.reason.startswith("no sign of life") and lost.seconds > 1
    wait_until(lambda: not any(map(alive, pids)), "it and its child end")
    assert all(isinstance(event, Progress) and event.data == {} for event in found if event.key == "slow")
    slow.end()
    assert isinstance(events_of(watched, "slow")["slow"][-1], Result)
    assert isinstance(end_of(watched, Attempt("again", "attempts:echo")), Result)


def test_what_an_attempt_prints_goes_to_its_own_log(executor: Executor, tmp_path: Path) -> None:
    log = tmp_path / "a folder" / "worker.log"
    end_of(executor, Attempt("quiet", "attempts:echo", log=str(log)))
    assert not log.exists()
    for key in "ab":
        end_of(executor, Attempt(key, "attempts:shout", log=str(log)))
    assert log.read_text().count("raw\n") == 2
    end_of(executor, Attempt("c", "attempts:shout"))
    assert log.read_text().count("raw\n") == 2


def test_one_that_stands_still_can_be_stopped_or_lost(executor: Executor, ticker: Tickers) -> None:
    stopped, killed, lane = ticker("stopped"), ticker("killed"), ticker("lane", "quiet")
    for each in (stopped, killed):
        executor.start(each.attempt)
        each.wait()
    quiet_begins(executor, lane.attempt, lane.folder)
    pids = stopped.pid, killed.pid
    assert executor.stop("stopped") > 0
    os.kill(killed.pid, signal.SIGKILL)
    assert isinstance(events_of(executor, "killed")["killed"][0], Lost)
    wait_until(lambda: not any(map(alive, pids)), "both end")
    lane.end()
    assert isinstance(events_of(executor, "lane")["lane"][0], Result)


def test_close_in_the_middle_leaves_nothing_behind(make: Make, ticker: Tickers) -> None:
    executor = make(2)
    room(executor, 2)
    running, lane = ticker("running"), ticker("lane", "quiet")
    idle = end_of(executor, Attempt("idle", "attempts:echo")).data["pid"]
    executor.start(running.attempt)
    running.wait()
    quiet_begins(executor, lane.attempt, lane.folder)
    assert running.still()
    executor.close()
    wait_until(lambda: not any(map(alive, (idle, running.pid, lane.pid))), "no process is left")
    executor.close()
