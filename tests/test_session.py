"""A session over an executor that answers at once: what lies in the run folder while it goes on and whatever ends it."""

from __future__ import annotations

import csv
import json
import signal
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from nas import outcome, session
from nas.config import Budget, RunConfig
from nas.dataset.description import Dataset
from nas.errors import InputError, StoppedError
from nas.execution.executor import Attempt, Event, Failed, Result
from nas.latency.target import Target
from nas.outcome import TABLES_SECONDS, TABLES_SHARE, Tables
from nas.review.progress import Quiet
from nas.runs import folder as folders
from nas.runs.ledger import Ledger
from nas.runs.store import Store
from nas.space.reader import read_space
from nas.status import FACT, follow

SPACE = """
skeleton: yolo11n.yaml
slots:
  backbone.P4: {block: [keep, repvit, irmb], width: [0.5, 0.75, 1.0]}
  backbone.P5: {block: [keep, repvit], width: [0.5, 1.0]}
"""
PRICE = {
    "ms": 1.0,
    "low": 1.0,
    "high": 1.0,
    "p90": 1.0,
    "spread": 0.01,
    "runs": 9,
    "params": 5,
    "gmacs": 1.0,
    "rough": True,
    "noisy": False,
}


@dataclass
class Instant:
    """Prices everything alike and ends trainings as `end` says."""

    end: Callable[[int, Attempt], Event]
    trained: int = 0
    events: list[Event] = field(default_factory=list)
    free = 1
    lane_free = True

    def start(self, attempt: Attempt) -> None:
        if attempt.quiet:
            self.events.append(Result(attempt.key, PRICE, 0.1))
        else:
            self.events.append(self.end(self.trained, attempt))
            self.trained += 1

    def poll(self, timeout: float) -> list[Event]:
        events, self.events = self.events, []
        return events

    def stop(self, key: str) -> float:
        return 0.0

    def close(self) -> None:
        pass


def good(count: int, attempt: Attempt) -> Event:
    return Result(attempt.key, {"map": count / 100, "map50": 0.5}, 1.0)


def bad(count: int, attempt: Attempt) -> Event:
    return Failed(attempt.key, "ValueError: no", 1.0, "Traceback: …")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A function that runs a session of twelve trials in `tmp_path / "run"`, each trial ending as `end` says."""
    folder = tmp_path / "run"
    folder.mkdir()
    (tmp_path / "space.yaml").write_text(SPACE)
    config = RunConfig("d.yaml", "space", "12trials", str(Target.parse("auto")), sampler="random")
    folders.write_space(folder, tmp_path / "space.yaml")
    folders.write_config(folder, config, "nas search")
    folders.write_manifest(folder, "digest", ["cell"], {})
    dataset = Dataset(Path("d.yaml"), tmp_path, ("cell",), (), (), (), "digest", (), ())

    def session_of(end: Callable[[int, Attempt], Event]):
        monkeypatch.setattr(session, "open_executor", lambda config, folder: Instant(end))
        return session.run_session(folder, config, dataset, Quiet(), "nas search")

    session_of.folder, session_of.config = folder, config
    return session_of


def states(folder: Path) -> list[str]:
    with (folder / "trials.csv").open(newline="") as file:
        return [row["state"] for row in csv.DictReader(file) if row["state"] != "rejected"]


def test_tables_are_there_early_and_whole_in_the_end(run, monkeypatch):
    written = []

    def write(folder, records, summary):
        written.append(summary)
        write_tables(folder, records, summary)

    write_tables = outcome.write_tables
    monkeypatch.setattr(outcome, "write_tables", write)
    monkeypatch.setattr(outcome, "TABLES_SECONDS", 1e9)
    finished = run(good)
    assert states(run.folder) == ["done"] * 12
    assert (run.folder / "pareto.html").exists()
    assert [(s.counts["done"], s.stopped_because) for s in written] == [(1, "not ended"), (12, "budget spent")]
    assert json.loads((run.folder / "front.json").read_text())["run"]["wall_seconds"] == finished.summary.wall_seconds


def test_tables_of_a_search_in_which_nothing_succeeds(run):
    with pytest.raises(StoppedError):
        run(bad)
    assert states(run.folder) == ["failed"] * 8 + ["queued"]
    front = json.loads((run.folder / "front.json").read_text())
    assert [r["state"] for r in front["records"]] == ["failed"]  # the baseline, to compare with
    assert front["run"]["stopped_because"].startswith("error: 8 trials in a row failed alike")
    assert not (run.folder / "winner.yaml").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("a bug of ours"), OSError(28, "No space left on device")])
def test_tables_of_a_search_that_breaks_off(run, error):
    def end(count, attempt):
        if count == 7:
            raise error
        return good(count, attempt)

    if isinstance(error, KeyboardInterrupt):
        run(end)
    else:
        with pytest.raises(InputError if isinstance(error, OSError) else RuntimeError):
            run(end)
    assert states(run.folder) == ["done"] * 7 + ["running"]


def test_tables_wait_in_proportion_to_what_they_cost(run, monkeypatch):
    store, config, now, cost, written = Store(run.folder, create=True), run.config, 1000.0, 0.0, []

    def write(folder, records, summary):
        nonlocal now
        now += cost
        written.append(now)

    monkeypatch.setattr(outcome, "write_tables", write)
    space = read_space(run.folder / "space.yaml")
    ledger = Ledger(Budget.parse(config.budget), store)
    tables = Tables(run.folder, config, space, store, ledger, clock=lambda: now)
    tables.update()
    assert written == []  # nothing has happened yet
    for cost, rest in ((0.0, TABLES_SECONDS), (2.0, 2.0 / TABLES_SHARE), (0.0, TABLES_SECONDS)):  # noqa: B007  (write reads it)
        tables.outdate()
        tables.update()
        last = len(written), now
        tables.outdate()
        now += 0.99 * rest
        tables.update()
        assert len(written) == last[0]
        now = last[1] + rest
    tables.update()
    assert len(written) == 4
    now += 1e6
    tables.update()
    assert len(written) == 4  # nothing has happened since


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_whichever_signal_comes_second_ends_a_search_now(first, second):
    """As an exception, so that what runs is charged and the front is written; a batch system sends SIGTERM twice."""

    class Asked:
        count = 0

        def interrupt(self):
            self.count += 1

    study, before = Asked(), [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt), session.interruptible(study):
        signal.raise_signal(first)
        assert study.count == 1
        signal.raise_signal(second)
    assert study.count == 1
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_who_is_terminated_before_anything_runs_says_so(run, monkeypatch):
    """A batch system does that to a search that waits for its cluster."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(Instant, "__init__", lambda *_: signal.raise_signal(signal.SIGTERM))
    run(good)
    assert signal.getsignal(signal.SIGTERM) is before
    with closing(Store(run.folder, create=False)) as store:
        assert store.fact("stopped_because") == "interrupted"


def test_a_search_that_was_killed_ends_at_no_time(run):
    """What it expected when it left word for the last time is no news any more."""
    run(good)
    facts = ["explore", "2 done", "5% of 2h", "6 min", "ends about 13:17", "best 0.1 at 1 ms"]
    store = Store(run.folder, create=False)
    store.put_fact("stopped_because", None)
    store.put_fact(FACT, {"moment": 0.0, "facts": facts, "running": {}})
    store.close()
    ((head, told),) = follow(str(run.folder), watch=False)
    assert "was killed" in head and told == "2 done · 5% of 2h · 6 min · best 0.1 at 1 ms"
