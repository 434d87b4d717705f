"""The loop of a search over an executor in memory, where time is a number and accuracy and latency are pure functions."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import optuna
import pytest
import sqlalchemy
import yaml
from optuna.trial import TrialState

from nas.climb import Climb
from nas.config import Budget, RunConfig
from nas.errors import InfeasibleError, InputError, StoppedError
from nas.execution.executor import Attempt, Event, Failed, Lost, Progress, Result
from nas.execution.work import PRICE, TRAIN, UNSTABLE, TrainJob
from nas.finish import chosen
from nas.hopeless import SAME_FAILURES
from nas.jobs import Step
from nas.latency.cache import LatencyCache
from nas.latency.table import NEAR, Measured, Table, TablePrices, near
from nas.latency.target import Target
from nas.limits import FIGURES, Limits
from nas.outcome import records_of, summary_of, teacher_in, winner_of, write_report
from nas.pricing import REPEAT_SECONDS, Pricing
from nas.proposals import Proposals, SpaceKnowledge
from nas.review.record import Teacher
from nas.review.table import front_of, picks_of
from nas.run import Run
from nas.runs.folder import write_config, write_manifest
from nas.runs.ledger import Ledger
from nas.runs.place import RUNG
from nas.runs.store import Store
from nas.runs.trials import TrialFolders
from nas.search.front import front_indices
from nas.space.architecture import Architecture, model_yaml
from nas.space.reader import read_space
from nas.study import MAX_ATTEMPTS, Study
from nas.under_way import HEARTBEAT_SECONDS

NC = 3
SPACE = """
skeleton: yolo11n.yaml
slots:
  backbone.P4: {block: [keep, repvit, irmb], width: [0.5, 1.0]}
  backbone.P5: {block: [keep, repvit], width: [0.5, 1.0]}
"""
WIDE = """
skeleton: yolo11n.yaml
slots:
  backbone.P4: {block: [keep, repvit, irmb], width: [0.5, 0.75, 1.0, 1.25], depth: [1, 2]}
  backbone.P5: {block: [keep, repvit], width: [0.5, 0.75, 1.0, 1.25], depth: [1, 2]}
"""
TINY = """
skeleton: yolo11n.yaml
slots:
  backbone.P5: {block: [keep, repvit], width: [0.5, 1.0]}
"""
EVERYTHING = "every architecture of the space was tried"
SLOWNESS = {"C3k2": 1.0, "RepViT": 0.7, "iRMB": 0.5}


def name_of(model) -> str:
    return hashlib.sha256(json.dumps(model, sort_keys=True).encode()).hexdigest()[:10]


def row_times(model) -> dict[str, float]:
    """ms of the two rows that any time is spent in."""
    return {str(n): row[1] * row[3][0] * SLOWNESS[row[2]] / 100 for n, row in enumerate(model["backbone"]) if n in {6, 8}}


def latency(model) -> float:
    """ms: 3.84 for the skeleton."""
    return sum(row_times(model).values())


def footprint(model) -> dict:
    """Of the skeleton: 384,000 parameters, 3.84 GMACs, 1.536 MB."""
    params = 1000 * sum(row[3][0] for row in (model["backbone"][6], model["backbone"][8]))
    return {"params": params, "gmacs": params / 1e5, "size_mb": 4 * params / 1e6, "memory_mb": 1.0}


def accuracy(model) -> float:
    return int(name_of(model)[:6], 16) / 0xFFFFFF


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class CrashError(Exception):
    """What stands for the end of the search process."""

    call: int


@dataclass
class FakeExecutor:
    """`nas.execution.executor.Executor` in memory. `fate` says how an attempt ends (None: well), `crash_at` at which call of
    it the search dies."""

    clock: Clock
    workers: int = 1
    seconds: Callable[[dict], float] = lambda model: 10.0
    fate: Callable[[Attempt, int], type[Failed] | type[Lost] | str | None] = lambda attempt, count: None
    judge: Callable[[dict], float] = lambda payload: accuracy(payload["model"])
    crash_at: int | None = None
    calls: int = 0
    priced: list[str] = field(default_factory=list)
    timed: list[str] = field(default_factory=list)
    trained: list[str] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    models: dict[str, dict] = field(default_factory=dict)
    running: dict[str, tuple[Attempt, float, float]] = field(default_factory=dict)

    @property
    def free(self) -> int:
        return self.workers - sum(not attempt.quiet for attempt, _, _ in self.running.values())

    @property
    def lane_free(self) -> bool:
        return not any(attempt.quiet for attempt, _, _ in self.running.values())

    def start(self, attempt: Attempt) -> None:
        self._call()
        if not (self.lane_free if attempt.quiet else self.free):
            raise RuntimeError("no room")
        assert json.loads(json.dumps(attempt.payload)) == attempt.payload
        assert attempt.kind == (PRICE if attempt.quiet else TRAIN)
        model = attempt.payload["model"]
        self.models[name_of(model)] = model
        (self.priced if attempt.quiet else self.trained).append(name_of(model))
        self.running[attempt.key] = (attempt, self.clock.now, 1.0 if attempt.quiet else self.seconds(model))

    def poll(self, timeout: float) -> list[Event]:
        """Time leaps to the next half or end of an attempt; what happens by then comes together."""
        self._call()
        if not self.running:
            self.clock.now += timeout
            return []
        moments = [began + part * s for _, began, s in self.running.values() for part in (0.5, 1.0)]
        self.clock.now = min(moment for moment in moments if moment > self.clock.now)
        events: list[Event] = []
        for key, (attempt, began, seconds) in list(self.running.items()):
            passed = self.clock.now - began
            if passed < seconds:
                events.append(Progress(key, {"epoch": 1, "epochs": 2, "loss": 1.0}, passed))
            else:
                del self.running[key]
                events.append(self._end(attempt, seconds))
        return events

    def stop(self, key: str) -> float:
        _, began, _ = self.running.pop(key)
        return self.clock.now - began

    def close(self) -> None:
        self.running.clear()

    def _end(self, attempt: Attempt, seconds: float) -> Event:
        model = attempt.payload["model"]
        names = self.priced if attempt.quiet else self.trained
        end = self.fate(attempt, names.count(name_of(model)))
        if end is Lost:
            return Lost(attempt.key, "worker died", seconds)
        if end is not None:
            return Failed(attempt.key, "ValueError: no" if end is Failed else end, seconds, "Traceback: …")
        if attempt.quiet:
            return Result(attempt.key, self._price(attempt.payload, model), seconds)
        self.finished.append(name_of(model))
        return Result(attempt.key, {"map": self.judge(attempt.payload), "map50": 0.5, "pid": 1}, seconds)

    def _price(self, job, model) -> dict:
        known, ms = footprint(model), latency(model)
        if not job["timed"] or Limits(**job["limits"]).broken(known):
            return known
        self.timed.append(name_of(model))
        rows = {"rows": {str(n): 1e-3 for n in range(24)} | row_times(model)} if job["rows"] else {}
        figure = {"ms": ms, "low": ms, "high": ms, "p90": ms, "spread": 0.01, "runs": 9, "rough": False}
        return figure | {"noisy": False, "throttled": False, "source": "measured"} | known | rows

    def _call(self) -> None:
        self.calls += 1
        if self.calls == self.crash_at:
            raise CrashError(self.calls)


@pytest.fixture(scope="module", autouse=True)
def fast_sqlite():
    def relax(connection, _):
        connection.execute("PRAGMA synchronous=OFF")

    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", relax)
    yield
    sqlalchemy.event.remove(sqlalchemy.Engine, "connect", relax)


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("empty")
    Store(folder, create=True)
    return folder / "study.db"


@dataclass
class FakeJobs:
    """`nas.jobs.Jobs` whose payload says which step it is for."""

    epochs: list[int]
    validates: bool = False

    @property
    def shares(self) -> list[float]:
        return [1 / 3] * (len(self.epochs) - 1)

    def refusal(self, architecture) -> str | None:
        return None

    def job(self, step: Step, model) -> tuple[str, dict]:
        until = self.epochs[step.rung]
        job = TrainJob(model, "d.yaml", "", "cache", 640, self.epochs, 1, 0.01, 0.2, 0, "cpu", 1, until=until)
        return TRAIN, {**asdict(job), "repeat": step.repeat, "validates": step.validates}


class Lab:
    """One run folder in which searches can be run, one after another, as sessions of the same run."""

    def __init__(self, folder: Path, empty_store: Path, clock: Clock, text: str, **config) -> None:
        folder.mkdir()
        shutil.copy(empty_store, folder)
        (folder / "space.yaml").write_text(text)
        self.folder, self.clock = folder, clock
        self.space = read_space(folder / "space.yaml")
        target = Target.parse("auto")
        self.config = {"data": "d.yaml", "space": "s", "budget": "1000trials", "target": str(target), "sampler": "random"}
        self.config |= {"confirm": 0, **config}
        self.prices = LatencyCache(folder / "latency", target)
        self.table: TablePrices | None = None
        self.recorded = 0
        self.validates = False
        self.prepare: Callable[[Callable[[str], None], Callable[[], bool]], None] | None = None
        self.seeds: Callable[[Pricing], Sequence[Architecture] | None] = lambda _: ()
        self.prune: Callable[[object], str | None] = lambda _: None

    def executor(self, **options) -> FakeExecutor:
        return FakeExecutor(self.clock, **options)

    def run(self, executor: FakeExecutor, watch: Callable[[Study], None] = lambda study: None, **changes) -> str:
        """One session: the store opened anew, as a new process would."""
        self.config |= changes
        config = RunConfig(**self.config)
        store = Store(self.folder, create=False)
        ledger = Ledger(Budget.parse(config.budget), store, clock=self.clock)

        def record():
            self.recorded += 1

        def charge(seconds: float) -> None:
            store.add_seconds(lane=seconds)

        pricing = Pricing(config, self.space, NC, executor, self.prices, [], charge, self.table, self.clock)
        study = Study(
            config,
            self.space,
            store,
            executor,
            pricing,
            Proposals(config, store, SpaceKnowledge(config, self.space, pricing, store)),
            ledger,
            FakeJobs(config.rung_epochs, self.validates),
            TrialFolders(self.folder),
            watch=lambda status: watch(study),
            record=record,
            prepare=self.prepare,
            seeds=lambda: self.seeds(pricing),
            prune=self.prune,
            clock=self.clock,
        )
        try:
            return study.run()
        finally:
            self.__dict__.pop("store", None)

    @cached_property
    def store(self) -> Store:
        """What a session left behind."""
        return Store(self.folder, create=False)

    def names(self, state: str) -> list[str]:
        return [self.name(e.architecture) for e in self.store.entries if e.state == state]

    def name(self, architecture) -> str:
        return name_of(self.model(architecture))

    def model(self, architecture):
        return model_yaml(self.space.skeleton, architecture, NC)

    def all(self, ms: float = 1e9, **others: float) -> set[str]:
        """Every architecture that a search has to train: within the limits, not forbidden, and the skeleton."""
        limits = Limits(ms, **others)
        allowed = [a for a in self.space.enumerate() if self.space.forbidding_rule(a, 640) is None]
        return {self.name(a) for a in allowed if limits.met(self.price(a))} | {self.name(self.space.baseline)}

    def price(self, architecture):
        model = self.model(architecture)
        return {"ms": latency(model), **footprint(model)}

    def optuna(self):
        """The trials as Optuna reads them."""
        return optuna.load_study(study_name=RUNG, storage=f"sqlite:///{self.folder / 'study.db'}").trials

    def summary(self):
        config = RunConfig(**self.config)
        write_config(self.folder, config, "nas search")
        write_manifest(self.folder, "", ["a", "b", "c"], {})
        ledger = Ledger(Budget.parse(config.budget), self.store, clock=self.clock)
        return summary_of(self.folder, config, self.space.skeleton, self.store, ledger)

    def records(self):
        return records_of(self.store.entries, self.space.describe, RunConfig(**self.config).limits)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make_lab(tmp_path, empty_store, clock):
    def make(text: str = SPACE, name: str = "run", **config) -> Lab:
        return Lab(tmp_path / name, empty_store, clock, text, **config)

    return make


@pytest.mark.parametrize("workers", [1, 3])
def test_the_whole_space_is_tried_within_its_rules(make_lab, workers):
    """Nothing over the limit or forbidden is trained, but for the skeleton; everything else is, once."""
    rules = "forbid: [backbone.P4.block == 'irmb' and backbone.P5.block == 'repvit']\n"
    lab = make_lab(SPACE + rules, max_latency_ms=3.0, workers=workers)
    executor = lab.executor(workers=workers)
    assert lab.run(executor) == EVERYTHING
    baseline = lab.name(lab.space.baseline)
    assert 5 < len(lab.all(3.0)) < len(lab.all()) < lab.space.size == 24
    assert executor.trained[0] == baseline
    assert sorted(executor.trained) == sorted(lab.names("done")) == sorted(lab.all(3.0))
    assert [name for name in executor.trained if latency(executor.models[name]) > 3.0] == [baseline]
    assert Counter(executor.priced).most_common(1)[0][1] == 1
    assert lab.recorded == len(executor.trained)
    for entry in lab.store.entries:
        assert (entry.state == "done") == bool(entry.attempts)
        assert entry.state != "rejected" or entry.reason.startswith(("over-latency", "repeat", "forbidden: backbone.P4"))

    records = lab.records()
    assert (records[0].baseline, records[0].feasible, records[0].state) == (True, False, "done")
    assert 0 not in [r.trial for r in front_of(records)]
    assert winner_of(records, 3.0).map == max(r.map for r in records if r.state == "done" and r.feasible)
    trials = optuna.load_study(study_name=RUNG, storage=f"sqlite:///{lab.folder / 'study.db'}").trials
    assert trials[0].constraints == {"latency": pytest.approx(0.28), "params": -1, "macs": -1, "size": -1}
    assert all(t.constraints["latency"] <= 0 for t in trials[1:] if t.values)


def test_phases_come_in_their_order_and_say_what_runs(make_lab):
    """Nothing is trained before exploring; nothing new begins after it; what is confirmed was done before."""
    lab = make_lab(WIDE, epochs=9, rungs=2, budget="14trials", confirm=1, max_latency_ms=3.5, workers=2)
    lab.prepare = lambda enter, stopping: (enter("teach"), enter("imitate"))
    executor = lab.executor(workers=2)
    phases: list[str] = []
    running = {phase: set() for phase in ("probe", "teach", "imitate", "explore", "promote", "confirm")}

    def watch(study):
        phase = study._status().phase
        phases.extend([phase] if phases[-1:] != [phase] else [])
        attempts = [attempt for attempt, _, _ in executor.running.values()]
        running[phase] |= {(a.key.split("-")[0], a.payload.get("until"), a.payload.get("repeat")) for a in attempts}

    lab.run(executor, watch)
    assert phases == list(running)
    probed, taught, imitated, explored, promoted, confirmed = ({s for s in steps if s[1]} for steps in running.values())
    assert running["probe"] and not probed | taught | imitated
    assert {step[1:] for step in explored} == {(3, 0), (9, 0)} and not {step[2] for step in promoted} - {0}
    assert {step[0] for step in promoted | confirmed} <= {step[0] for step in explored}
    assert {step[1:] for step in confirmed} == {(9, 1)}


@pytest.mark.parametrize(("workers", "sampler"), [(1, "random"), (3, "tpe"), (3, "front")])
def test_twenty_trials_are_twenty_done(make_lab, workers, sampler):
    lab = make_lab(budget="20trials", sampler=sampler, workers=workers)
    unlucky = lab.executor(
        workers=workers, fate=lambda a, count: a.key if a.key.startswith(("trial3-", "trial5-", "trial7-")) else None
    )
    assert lab.run(unlucky) == "budget spent"
    states = Counter(e.state for e in lab.store.entries)
    assert states["done"] == len(unlucky.finished) == 20
    assert states["failed"] == len(unlucky.trained) - 20 > 0
    assert states["queued"] == states["running"] == 0
    assert len(set(unlucky.trained)) == len(unlucky.trained)


@pytest.mark.parametrize("sampler", ["tpe", "front"])
def test_equal_seeds_search_alike(make_lab, sampler):
    def proposals(name, seed):
        lab = make_lab(WIDE, name, seed=seed, budget="14trials", sampler=sampler, max_latency_ms=3.5)
        lab.run(lab.executor())
        return [(e.architecture.id, e.state) for e in lab.store.entries]

    first = proposals("a", 0)
    assert proposals("b", 0) == first
    assert proposals("c", 1) != first


def test_a_failed_trial_has_a_reason_and_a_post_mortem(make_lab):
    lab = make_lab(TINY)
    executor = lab.executor(fate=lambda attempt, count: Failed if attempt.key.startswith("trial1-") else None)
    assert lab.run(executor) == EVERYTHING
    (failed,) = [e for e in lab.store.entries if e.state == "failed"]
    assert (failed.number, failed.reason, len(failed.attempts)) == (1, "ValueError: no", 1)
    assert "Traceback" in (lab.folder / "trials" / "0001" / "post-mortem.txt").read_text()
    assert len(executor.trained) == len(set(executor.trained)) == len(executor.finished) + 1


@pytest.mark.parametrize("score", [float("nan"), 1.5, None])
def test_a_score_that_is_no_share_is_a_failure(make_lab, score):
    lab = make_lab(TINY)
    lab.run(lab.executor(judge=lambda payload: score))
    assert len(lab.store) >= len(lab.all())
    for entry in lab.store.entries:
        assert entry.state == "rejected" or (entry.state, entry.reason) == (
            "failed",
            f"its mAP is {score}, no number from 0 to 1",
        )
    assert {trial.state for trial in lab.optuna()} == {TrialState.FAIL}


@pytest.mark.parametrize("losses", [MAX_ATTEMPTS - 1, MAX_ATTEMPTS])
def test_a_lost_trial_is_tried_again(make_lab, losses):
    lab = make_lab(TINY)
    baseline = lab.name(lab.space.baseline)
    executor = lab.executor(
        fate=lambda a, count: Lost if not a.quiet and name_of(a.payload["model"]) == baseline and count <= losses else None
    )
    lab.run(executor)
    entry = lab.store[0]
    assert executor.trained.count(baseline) == min(losses + 1, MAX_ATTEMPTS)
    assert entry.state == ("done" if losses < MAX_ATTEMPTS else "failed")
    assert entry.seconds == pytest.approx(10.0 * min(losses + 1, MAX_ATTEMPTS))
    assert entry.reason == (None if losses < MAX_ATTEMPTS else "worker died")
    assert set(lab.names("done")) | {baseline} == lab.all()


def test_a_lost_measurement_is_tried_again(make_lab):
    lab = make_lab(TINY)
    executor = lab.executor(fate=lambda attempt, count: Lost if attempt.quiet and count < MAX_ATTEMPTS else None)
    assert lab.run(executor) == EVERYTHING
    assert set(lab.names("done")) == lab.all()
    lab = make_lab(TINY, "hopeless")
    executor = lab.executor(fate=lambda attempt, count: Lost if attempt.quiet else None)
    assert lab.run(executor) == EVERYTHING
    assert set(Counter(executor.priced).values()) == {MAX_ATTEMPTS}
    assert {e.reason for e in lab.store.entries} <= {"invalid: worker died", "repeat"}


@pytest.mark.parametrize("times", [1, 2])
def test_an_unstable_latency_is_measured_again_later_and_then_given_up(make_lab, clock, times):
    lab = make_lab(TINY)
    shaky = lab.name(next(a for a in lab.space.enumerate() if not a.is_skeleton))
    moments = []

    def fate(attempt, count):
        if attempt.quiet and name_of(attempt.payload["model"]) == shaky and count <= times:
            moments.append(clock.now)
            return f"{UNSTABLE}: the interval stays wider than 5%"
        return None

    executor = lab.executor(fate=fate)
    assert lab.run(executor) == EVERYTHING
    assert Counter(executor.priced)[shaky] == 2
    assert len(moments) < 2 or moments[1] - moments[0] >= REPEAT_SECONDS
    assert set(lab.names("done")) == lab.all() - ({shaky} if times == 2 else set())
    reasons = [e.reason for e in lab.store.entries if lab.name(e.architecture) == shaky and e.reason != "repeat"]
    assert reasons == [f"invalid: {UNSTABLE}: the interval stays wider than 5%" if times == 2 else None]


def test_a_machine_that_is_never_quiet_stops_the_search(make_lab):
    unstable = f"{UNSTABLE}: wall clock and CPU time disagree by more than 10%"
    lab = make_lab()
    with pytest.raises(StoppedError, match=UNSTABLE):
        lab.run(lab.executor(fate=lambda attempt, count: unstable if attempt.quiet else None))
    lab = make_lab(name="probe", max_latency_ms=3.0)
    with pytest.raises(StoppedError, match="could be measured"):
        lab.run(lab.executor(fate=lambda attempt, count: unstable if attempt.quiet else None))
    lab = make_lab(TINY, "shaky probe", max_latency_ms=4.0)
    assert lab.run(lab.executor(fate=lambda attempt, count: unstable if attempt.quiet and count == 1 else None)) == EVERYTHING
    assert set(lab.names("done")) == lab.all(4.0)


def test_whether_noise_counts_reaches_the_lane(make_lab):
    lab = make_lab(TINY, allow_noisy=True)
    executor = lab.executor(fate=lambda attempt, count: str(attempt.payload["allow_noisy"]) if attempt.quiet else None)
    lab.run(executor)
    assert {e.reason for e in lab.store.entries} <= {"invalid: True", "repeat"}


def test_equal_failures_stop_the_search(make_lab):
    lab = make_lab()
    executor = lab.executor(fate=lambda attempt, count: None if attempt.quiet else Failed)
    with pytest.raises(StoppedError, match="ValueError: no") as error:
        lab.run(executor)
    assert error.value.exit_code == 4
    assert len(executor.trained) == SAME_FAILURES

    lab = make_lab(name="unpriced")
    with pytest.raises(StoppedError, match="invalid: ValueError: no"):
        lab.run(lab.executor(fate=lambda attempt, count: Failed))

    lab = make_lab(name="different")
    executor = lab.executor(fate=lambda attempt, count: None if attempt.quiet else f"reason {len(executor.trained) % 2}")
    assert lab.run(executor) == EVERYTHING
    assert len(lab.names("failed")) == 24


def test_an_unreachable_limit_ends_before_any_training(make_lab):
    lab = make_lab(max_latency_ms=0.01)
    executor = lab.executor()
    with pytest.raises(InfeasibleError) as error:
        lab.run(executor)
    fastest = min(latency(executor.models[name]) for name in executor.priced)
    assert (
        f"of 4 probed the fastest takes {fastest:.4g} ms (backbone.P4=repvit w0.5; backbone.P5=repvit w0.5)"
        in error.value.message
    )
    assert error.value.exit_code == 3
    assert "--max-latency" in error.value.hint
    assert executor.trained == []
    assert len(lab.store) == 0
    with pytest.raises(StoppedError, match="could be measured"):
        make_lab(name="other", max_latency_ms=0.01).run(lab.executor(fate=lambda attempt, count: Failed))


@pytest.mark.parametrize("after", [0, 5])
def test_an_interrupt_lets_running_trials_end_and_starts_nothing(make_lab, after):
    lab = make_lab(workers=2)
    executor = lab.executor(workers=2)
    started = []

    def watch(study):
        if not started and len(executor.trained) >= after:
            study.interrupt()
            started.append((len(executor.trained), len(executor.priced)))

    assert lab.run(executor, watch) == "interrupted"
    assert started == [(len(executor.trained), len(executor.priced))]
    assert executor.running == {}
    assert len(executor.finished) == len(executor.trained) == len(lab.names("done"))
    again = lab.executor(workers=2)
    assert lab.run(again) == EVERYTHING
    assert sorted(executor.finished + again.finished) == sorted(lab.names("done")) == sorted(lab.all())


def test_an_interrupt_before_the_start_starts_nothing(make_lab):
    lab = make_lab(TINY, max_latency_ms=3.0)
    executor = lab.executor()
    early = []

    def watch(study):
        early.append(len(executor.priced))
        study.interrupt()

    assert lab.run(executor, watch) == "interrupted"
    assert len(executor.priced) == early[0] == 1
    assert executor.trained == []


@pytest.mark.slow
def test_a_crash_at_any_call_loses_and_doubles_nothing(make_lab):
    whole = make_lab(TINY, "whole", max_latency_ms=3.5)
    executor = whole.executor()
    whole.run(executor)
    for call in range(1, executor.calls + 1):
        lab = make_lab(TINY, f"crash{call}", max_latency_ms=3.5)
        first, second = lab.executor(crash_at=call), lab.executor()
        with pytest.raises(CrashError):
            lab.run(first)
        first.close()
        lab.prices = LatencyCache(lab.folder / "latency", Target.parse("auto"))
        assert lab.run(second) == EVERYTHING
        done = [e for e in lab.store.entries if e.state == "done"]
        assert lab.store[0].architecture.is_skeleton
        assert sorted(first.finished + second.finished) == sorted(lab.names("done")) == sorted(whole.names("done"))
        assert all(e.result["map"] == accuracy(lab.model(e.architecture)) for e in done)
        assert all(e.attempts[-1] == {"seconds": 10.0, "outcome": "done"} for e in done)
        started = len(first.trained) + len(second.trained)
        assert started <= sum(len(e.attempts) for e in done) <= started + 1  # written down, then cut short at the start
        assert {e.state for e in lab.store.entries} <= {"done", "rejected"}


@pytest.mark.parametrize(("score", "advice"), [(0.0, "--epochs"), (0.3125, "lr0")])
def test_eight_trials_that_all_score_alike_stop_the_search(make_lab, score, advice):
    lab = make_lab(SPACE)
    with pytest.raises(StoppedError, match=f"first 8 trials all have mAP {score:g}: ") as error:
        lab.run(lab.executor(judge=lambda payload: score))
    assert advice in error.value.hint
    assert len(lab.names("done")) == 8


def test_a_budget_of_time_stops_what_runs_and_a_larger_one_takes_it_up(make_lab):
    lab = make_lab(TINY, budget="25gpu-s", workers=2)
    slow = lab.executor(workers=2, seconds=lambda model: 100.0)
    assert lab.run(slow) == "budget spent"
    assert slow.finished == []
    assert slow.running == {}
    queued = lab.names("queued")
    stopped = [e for e in lab.store.entries if e.attempts]
    assert [lab.name(e.architecture) for e in stopped] == slow.trained
    assert all(e.attempts[-1]["outcome"] == "stopped: budget spent" for e in stopped)
    spent = Ledger(Budget.parse("25gpu-s"), lab.store).used()
    assert spent >= 25
    again = lab.executor(workers=2)
    assert lab.run(again, budget="1gpu-h") == EVERYTHING
    assert set(queued) <= set(again.finished)
    assert sorted(again.finished) == sorted(lab.all())
    assert Ledger(Budget.parse("1h"), lab.store).device_seconds() > spent + 10 * len(again.finished)


@dataclass
class PatientExecutor(FakeExecutor):
    """One whose time does not leap over the end of what it is told to wait. Measuring takes long, and so does a start."""

    def start(self, attempt: Attempt) -> None:
        super().start(attempt)
        if attempt.quiet:
            self.running[attempt.key] = (attempt, self.clock.now, 25.0)

    def poll(self, timeout: float) -> list[Event]:
        ends = [began + seconds for _, began, seconds in self.running.values()]
        if ends and min(ends) <= self.clock.now + timeout:
            return super().poll(timeout)
        self.clock.now += timeout
        return []

    def stop(self, key: str) -> float:
        return max(0.0, super().stop(key) - 1.0)  # its process had to start first


@pytest.mark.parametrize("budget", ["70gpu-s", "90gpu-s", "45s"])
@pytest.mark.parametrize("workers", [1, 3])
def test_what_is_being_measured_counts_and_ends_with_the_budget(make_lab, budget, workers):
    lab = make_lab(budget=budget)
    executor = PatientExecutor(lab.clock, workers=workers, seconds=lambda model: 100.0)
    assert lab.run(executor) == "budget spent"
    assert executor.running == {} and executor.trained and len(executor.priced) > 1
    limit = Budget.parse(budget)
    used = Ledger(limit, lab.store, clock=lab.clock).used()
    assert 0.9 * limit.amount < used <= 1.02 * limit.amount
    assert lab.run(lab.executor(), budget="1000trials") == EVERYTHING
    assert set(lab.names("done")) == lab.all()


@pytest.mark.parametrize("limit", [None, 1000.0])  # with one, the first measurement is a probe
def test_a_measurement_is_charged_while_it_runs(make_lab, limit):
    """Whoever is killed in the middle has paid for it but for the last seconds."""
    lab = make_lab(max_latency_ms=limit)
    began, charged = lab.clock.now, 0.0

    def killed(study: Study) -> None:
        nonlocal charged
        if lab.clock.now > began + 20:
            charged = lab.store.seconds("lane")
            raise CrashError(0)

    with pytest.raises(CrashError):
        lab.run(PatientExecutor(lab.clock), killed)
    ran = lab.clock.now - began
    assert 20 < ran < 25 and ran - HEARTBEAT_SECONDS - 1 <= charged <= ran
    assert lab.store.seconds("lane") == ran  # an exception is no kill: all of it


def test_time_that_the_budget_took_away_is_no_loss(make_lab):
    """Stopped twice by the budget and then lost once: still tried again."""
    lab = make_lab(TINY)
    for budget in ("20gpu-s", "50gpu-s"):
        lab.run(lab.executor(seconds=lambda model: 40.0), budget=budget)
    executor = lab.executor(fate=lambda attempt, count: Lost if not attempt.quiet and count == 1 else None)
    assert lab.run(executor, budget="1000gpu-s") == EVERYTHING
    assert set(lab.names("done")) == lab.all()


@pytest.mark.parametrize("budget", ["105gpu-s", "105s"])
def test_no_trial_starts_that_does_not_fit(make_lab, budget):
    lab = make_lab(budget=budget)
    executor = lab.executor()
    assert lab.run(executor) == "budget spent"
    assert len(executor.finished) == len(executor.trained) > 5
    assert 105 - 12 < Ledger(Budget.parse(budget), lab.store).used() <= 105


def test_a_heartbeat_writes_down_what_was_used(make_lab):
    """kill -9 takes no leave: what a long training has used stands in the store before it ends."""
    lab = make_lab(TINY, budget="10h")
    seen = []

    def watch(study):
        store = Store(lab.folder, create=False)
        seen.append((store.seconds("wall"), store[0].seconds if len(store) else 0.0, len(executor.finished)))

    executor = lab.executor(seconds=lambda model: 1000.0)
    lab.run(executor, watch, budget="1trials")
    under_way = [(wall, device) for wall, device, finished in seen if not finished]
    assert max(under_way) == (pytest.approx(500, rel=0.01), pytest.approx(500, rel=0.01))


# figure -> a limit that most meet, one that few do, one that none does
LIMITS = {"ms": (3.0, 2.0, 0.01), "params": (320e3, 256e3, 10e3), "gmacs": (3.2, 2.56, 0.1), "size_mb": (1.28, 1.024, 0.01)}


def named(figure: str, limit: float) -> dict[str, float]:
    """A limit as `RunConfig` has it."""
    return {"max_latency_ms" if figure == "ms" else f"max_{figure}": limit}


@pytest.mark.parametrize("figure", LIMITS)
def test_every_limit_holds(make_lab, figure):
    """What breaks one is not trained, nor timed where it was known before; the skeleton is, and is not on the front."""
    limit = LIMITS[figure][0]
    lab = make_lab(**named(figure, limit))
    executor = lab.executor()
    assert lab.run(executor) == EVERYTHING
    assert sorted(executor.trained) == sorted(lab.all(**{figure: limit}))
    assert 5 < len(executor.trained) < lab.space.size
    rejected = [e for e in lab.store.entries if (e.reason or "").startswith("over-")]
    assert {e.reason for e in rejected} == {f"over-{FIGURES[figure].word}"}
    if figure != "ms":
        assert sorted(executor.timed) == sorted(executor.trained)
        assert all("ms" not in e.price and e.price["params"] > 0 for e in rejected)
    records = lab.records()
    assert (records[0].baseline, records[0].feasible, records[0].state) == (True, False, "done")
    assert {r.trial for r in records if r.feasible} == {r.trial for r in records if r.state == "done"} - {0}
    assert 0 not in [r.trial for r in front_of(records)]
    trials = optuna.load_study(study_name=RUNG, storage=f"sqlite:///{lab.folder / 'study.db'}").trials
    for trial in trials:
        if trial.values:
            over = {name for name, excess in trial.constraints.items() if excess > 0}
            assert trial.constraints.keys() == {known.word for known in FIGURES.values()}
            assert over == ({FIGURES[figure].word} if trial.number == 0 else set())


@pytest.mark.parametrize("figure", LIMITS)
def test_a_lower_limit_holds_for_what_still_waits(make_lab, figure):
    high = LIMITS[figure][0]
    low = 0.7 * high
    lab = make_lab(workers=6, budget="9gpu-h", **named(figure, high))

    def dies(attempt: Attempt, count: int) -> None:
        if not attempt.quiet:  # the first training ends: all others run or wait
            raise CrashError(0)

    with pytest.raises(CrashError):
        lab.run(lab.executor(workers=6, fate=dies, seconds=lambda model: 1000.0))
    waiting = [e for e in lab.store.entries if e.state in {"queued", "running"} and not e.architecture.is_skeleton]
    over = [e for e in waiting if e.price[figure] > low]
    assert over
    again = lab.executor(workers=3)
    assert lab.run(again, budget="9gpu-h", **named(figure, low)) == EVERYTHING
    assert sorted(again.trained) == sorted(lab.all(**{figure: low}))
    assert all(lab.store[e.number].reason == f"over-{FIGURES[figure].word}" for e in over)


@pytest.mark.parametrize("figure", LIMITS)
def test_a_higher_limit_lets_in_what_was_over_it(make_lab, figure):
    high, low, _ = LIMITS[figure]
    lab = make_lab(**named(figure, low))
    lab.run(first := lab.executor())
    lab.prices = LatencyCache(lab.folder / "latency", Target.parse("auto"))
    again = lab.executor()
    assert lab.run(again, **named(figure, high)) == EVERYTHING
    assert sorted(first.trained + again.trained) == sorted(lab.all(**{figure: high}))


@pytest.mark.parametrize("figure", LIMITS)
def test_whatever_limit_is_out_of_reach_is_named(make_lab, figure):
    lab = make_lab(**named(figure, LIMITS[figure][2]))
    executor = lab.executor()
    with pytest.raises(InfeasibleError) as error:
        lab.run(executor)
    assert executor.trained == [] and len(lab.store) == 0
    known, least = FIGURES[figure], min({"ms": latency(m), **footprint(m)}[figure] for m in executor.models.values())
    assert f"{known.least} {known.write(least)} (" in error.value.message
    assert "the fastest takes" in error.value.message
    assert error.value.hint.startswith(f"raise {known.flag}, ")
    assert ("--imgsz" in error.value.hint) == known.by_image


@pytest.mark.parametrize("limit", [3.0, None])
def test_the_report_of_a_run(make_lab, limit):
    lab = make_lab(max_latency_ms=limit, budget="8trials")
    lab.run(lab.executor(fate=lambda attempt, count: Failed if attempt.key.startswith("trial2-") else None))
    config, entries, records = RunConfig(**lab.config), lab.store.entries, lab.records()
    write_config(lab.folder, config, "nas search")
    write_manifest(lab.folder, "digest", ["a", "b", "c"], {})
    summary = summary_of(lab.folder, config, lab.space.skeleton, lab.store, Ledger(Budget.parse("8trials"), lab.store))
    assert summary.counts["done"] == 8
    write_report(lab.folder, records, summary, lab.space, entries, TrialFolders(lab.folder))
    for name in ("trials.csv", "front.csv", "front.json", "pareto.png", "pareto.html", "winner.yaml"):
        assert (lab.folder / name).stat().st_size > 100
    assert len((lab.folder / "trials.csv").read_text().splitlines()) == 1 + len(entries)
    winner = winner_of(records, limit)
    assert winner == picks_of(front_of(records))["best" if limit else "knee"]
    text = (lab.folder / "winner.yaml").read_text()
    assert text.startswith(f"# {winner.id}: trial {winner.trial} of run run")
    expected = lab.model(entries[winner.trial].architecture)
    assert json.dumps(yaml.safe_load(text)) == json.dumps(expected)


MEDIUM = """
skeleton: yolo11n.yaml
slots:
  backbone.P4: {block: [keep, repvit, irmb], width: [0.25, 0.5, 0.75, 1.0], depth: [1, 2, 3]}
  backbone.P5: {block: [keep, repvit, irmb], width: [0.25, 0.5, 0.75, 1.0], depth: [1, 2, 3]}
"""


@pytest.mark.parametrize("limit", [None, 5.0])
def test_predictions_spare_measurements_and_nobody_reaches_the_front_by_one(make_lab, limit):
    """In a larger space most architectures are never timed; what the front shows was, and the limit is kept."""
    lab = make_lab(MEDIUM, budget="70trials", max_latency_ms=limit)
    executor = lab.executor()
    lab.run(executor)
    entries = [e for e in lab.store.entries if e.price]
    predicted = [e for e in entries if e.price["source"] == "predicted"]
    assert len(predicted) > 20 and len(set(executor.timed)) < 0.8 * len({e.architecture.id for e in entries})
    assert not any("rows" in e.price for e in entries)
    for entry in predicted:
        truth = latency(lab.model(entry.architecture))
        assert entry.price["low"] <= entry.price["ms"] <= entry.price["high"]
        assert abs(entry.price["ms"] / truth - 1) < 0.25
        if limit is not None and entry.state == "done":
            assert entry.price["high"] <= limit
    front = front_of(lab.records())
    assert len(front) > 3
    for record in front:
        assert lab.store[record.trial].price["source"] == "measured"
        assert record.latency_ms == latency(lab.model(lab.store[record.trial].architecture))
    seen_by_optuna = optuna.load_study(study_name=RUNG, storage=f"sqlite:///{lab.folder / 'study.db'}").trials
    values = {trial.number: trial.values for trial in seen_by_optuna}
    for entry in lab.store.entries:
        if entry.state == "done":
            assert values[entry.number] == [entry.result["map"], entry.price["ms"]]
            kept = (lab.folder / "trials" / f"{entry.number:04d}" / "weights.pt").is_file()
            assert not kept  # the executor in memory writes none: nothing is left behind either


@pytest.mark.parametrize("kind", ["gpu-s", "s"])
@pytest.mark.parametrize("workers", [1, 3])
def test_the_front_is_settled_within_the_budget(make_lab, kind, workers):
    """What is predicted and stands on the front is measured before the budget ends; what is not has to wait for more of it."""
    lab = make_lab(MEDIUM, budget=f"700{kind}")
    lab.run(PatientExecutor(lab.clock, workers=workers, seconds=lambda model: 20.0))
    limit = Budget.parse(f"700{kind}")
    assert 0.9 * limit.amount < Ledger(limit, lab.store, clock=lab.clock).used() <= 1.02 * limit.amount
    lab.run(PatientExecutor(lab.clock, workers=workers, seconds=lambda model: 20.0), budget=f"900{kind}")
    assert {lab.store[record.trial].price["source"] for record in front_of(lab.records())} == {"measured"}


def test_a_calibration_uses_the_idle_lane_and_its_share_of_the_budget(make_lab):
    """Measured for predictions alone: at most a tenth of the time, and never while a worker waits for a proposal."""
    lab = make_lab(MEDIUM, budget="200s")
    executor = lab.executor()
    lab.run(executor)
    proposed = {lab.name(e.architecture) for e in lab.store.entries}
    alone = [name for name in executor.priced if name not in proposed]
    assert 10 <= len(alone) <= 20 + 1
    assert executor.trained[0] == executor.priced[0] == lab.name(lab.space.baseline)
    few = make_lab(MEDIUM, name="few", budget="20trials")
    executor = few.executor()
    few.run(executor)
    assert {few.name(e.architecture) for e in few.store.entries} == set(executor.priced)


def test_a_second_search_begins_with_what_the_first_has_measured(make_lab):
    lab = make_lab(MEDIUM, budget="45trials")
    lab.run(lab.executor())
    again = make_lab(MEDIUM, name="again", budget="45trials", seed=1)
    again.prices = lab.prices
    executor = again.executor()
    again.run(executor)
    assert len(set(executor.timed)) < 30


def table_of(lab, architectures) -> TablePrices:
    """What another device was measured to take for these."""
    measured = []
    for architecture in architectures:
        model = lab.model(architecture)
        ms = latency(model)
        rows = dict.fromkeys(range(24), 1e-3) | {int(layer): time for layer, time in row_times(model).items()}
        measured.append(Measured(architecture, ms, ms, ms, rows=rows))
    return TablePrices(Table("board", (640, 640), 1, NC, tuple(measured), ()), lab.space)


def test_a_search_by_a_table_measures_nothing_and_keeps_the_limit_whatever_is_in_the_interval(make_lab):
    lab = make_lab(SPACE, max_latency_ms=3.0)
    known = random.Random(0).sample(list(lab.space.enumerate()), 14)
    lab.table = table_of(lab, known)
    executor = lab.executor()
    assert lab.run(executor) == EVERYTHING
    assert executor.timed == []
    assert set(executor.trained) <= lab.all(3.0) | {lab.name(lab.space.baseline)}
    entries = [e for e in lab.store.entries if not e.architecture.is_skeleton and e.reason != "repeat"]
    for entry in entries:
        price = entry.price
        assert price["source"] == ("table" if entry.architecture in known else "predicted")
        if entry.state == "done":
            assert price["high"] <= 3.0
            assert price["params"] == footprint(lab.model(entry.architecture))["params"]
        elif entry.reason == NEAR:
            assert near(price, 3.0)
        else:
            assert entry.reason == "over-latency"
            assert price["low"] > 3.0


def test_a_longer_table_lets_in_what_was_near_the_limit_and_corrects_the_rest(make_lab):
    lab = make_lab(SPACE, max_latency_ms=3.0)
    every = list(lab.space.enumerate())
    lab.table = table_of(lab, every[::3])
    lab.run(lab.executor())
    unsure = {e.architecture for e in lab.store.entries if e.reason == NEAR}
    assert unsure
    lab.table = table_of(lab, every)
    executor = lab.executor()
    assert lab.run(executor) == EVERYTHING
    done = {e.architecture: e.price for e in lab.store.entries if e.state == "done"}
    assert {a for a in unsure if latency(lab.model(a)) <= 3.0} <= done.keys()
    assert {lab.name(a) for a in done} == lab.all(3.0) | {lab.name(lab.space.baseline)}
    assert all(p["source"] == "table" and p["ms"] == latency(lab.model(a)) for a, p in done.items())
    study = optuna.load_study(study_name=RUNG, storage=f"sqlite:///{lab.folder / 'study.db'}")
    told = {t.number: t.values[1] for t in study.get_trials(states=[TrialState.COMPLETE])}
    assert told == {e.number: e.price["ms"] for e in lab.store.entries if e.state == "done"}


def test_a_limit_that_a_table_puts_out_of_reach_ends_before_any_training(make_lab):
    lab = make_lab(SPACE, max_latency_ms=0.01)
    lab.table = table_of(lab, lab.space.enumerate())
    executor = lab.executor()
    with pytest.raises(InfeasibleError, match=r"nothing is at most 0.01 ms"):
        lab.run(executor)
    assert executor.trained == []


@pytest.mark.parametrize(
    ("workers", "sampler"), [(1, "random"), pytest.param(4, "random", marks=pytest.mark.slow), (2, "front")]
)
def test_trials_climb_the_rungs_and_the_front_is_of_those_at_the_top(make_lab, workers, sampler):
    """Far fewer get to the top than begin; nothing is trained twice to one rung; nothing waits when the search has ended."""
    lab = make_lab(WIDE, epochs=9, rungs=3, budget="60trials", workers=workers, sampler=sampler)
    executor = lab.executor(workers=workers)
    assert lab.run(executor) == "budget spent"
    entries = lab.store.entries
    ranked = [e for e in entries if e.results]
    done = [e for e in entries if e.state == "done"]
    assert len(ranked) == 60 and {e.state for e in ranked} == {"paused", "done"}
    assert {len(e.results) for e in done} == {3} and 2 <= len(done) <= 20
    assert len(done) < sum(len(e.results) >= 2 for e in entries) <= 35
    assert entries[0].state == "done"
    assert Counter(executor.finished) == {lab.name(e.architecture): len(e.results) for e in ranked}
    assert "Rung 0 ranks as rung 1 does with Kendall's tau" in lab.summary().meaning
    records = lab.records()
    assert {r.trial for r in front_of(records)} <= {e.number for e in done}
    assert {r.rung for r in records if r.state == "paused"} <= {0, 1}
    values = {t.number: t.values[0] for t in lab.optuna() if t.values}
    assert values == {e.number: e.map for e in ranked}


def test_few_trials_are_promoted_in_the_end(make_lab):
    """Fewer than a stratum: those on the front of their rung get to the top."""
    lab = make_lab(WIDE, epochs=9, rungs=2, budget="5trials")
    lab.run(lab.executor())
    ranked = [e for e in lab.store.entries if e.results]
    front = {ranked[i].number for i in front_indices([e.results[0]["map"] for e in ranked], [e.price["ms"] for e in ranked])}
    assert {e.number for e in ranked if e.state == "done"} == front | {0} and len(ranked) == 5


@pytest.mark.parametrize(("budget", "workers"), [("110gpu-s", 1), ("100s", 4)])
def test_a_part_of_the_budget_is_kept_for_those_who_lead_their_rung(make_lab, budget, workers):
    """Where the lowest rung costs next to nothing, as in a search by imitation, and the next one a lot."""
    lab = make_lab(WIDE, epochs=9, rungs=2, budget=budget, max_latency_ms=3.0, workers=workers)
    cost = {3: 1.0, 9: 40.0}
    executor = lab.executor(workers=workers)
    real = executor.start

    def start(attempt: Attempt) -> None:
        if not attempt.quiet:
            executor.seconds = lambda model: cost[attempt.payload["until"]]
        real(attempt)

    executor.start = start
    assert lab.run(executor) == "budget spent"
    done = [e for e in lab.store.entries if e.state == "done"]
    assert [e for e in done if not e.architecture.is_skeleton and e.price["ms"] <= 3.0]


@pytest.mark.slow
def test_a_search_on_rungs_that_is_killed_ends_alike(make_lab):
    """The end of the process at any call: each trial has its results once, and the front is the same."""

    def ended(lab):
        return {e.number: (e.architecture.id, e.state, e.maps, len(e.results)) for e in lab.store.entries}

    options = {"epochs": 9, "rungs": 2, "budget": "14trials", "confirm": 1}
    whole = make_lab(WIDE, "whole", **options)
    executor = whole.executor()
    whole.run(executor)
    wanted = ended(whole)
    assert any(e.repeats for e in whole.store.entries)
    for crash in range(3, executor.calls, 7):
        lab = make_lab(WIDE, f"crash{crash}", **options)
        with pytest.raises(CrashError):
            lab.run(lab.executor(crash_at=crash))
        lab.run(lab.executor())
        assert ended(lab) == wanted, crash


def noisy(payload) -> float:
    """Accuracy of a seed: the first is lucky."""
    return accuracy(payload["model"]) * (0.9 if payload["repeat"] else 1.0)


def test_the_front_is_confirmed_with_another_seed_and_measured_again(make_lab):
    lab = make_lab(budget="12trials", confirm=1, max_latency_ms=3.5)
    executor = lab.executor(judge=noisy)
    assert lab.run(executor) == "budget spent"
    records = {r.trial: r for r in lab.records()}
    front = front_of(list(records.values()))
    assert front and {r.trainings for r in front} == {2} == {records[0].trainings}
    for r in front:
        entry = lab.store[r.trial]
        assert entry.maps == pytest.approx(
            (accuracy(lab.model(entry.architecture)), 0.9 * accuracy(lab.model(entry.architecture)))
        )
        assert r.map == pytest.approx(sum(entry.maps) / 2) and r.map_low < r.map < r.map_high
        assert entry.price["times"] == 2 and executor.timed.count(lab.name(entry.architecture)) >= 2
    summary = lab.summary()
    assert summary.noise > 0 and summary.hypervolume[1] < summary.hypervolume[0] < summary.hypervolume[2]
    lab.store.put_fact("seen", "/x/best.pt")  # all of it is a claim of the held-out part
    assert lab.summary().hypervolume is None and lab.summary().apart is None
    assert lab.store.tally.ranked == 12
    trained = Counter(executor.trained)
    assert lab.run(again := lab.executor(judge=noisy)) == "budget spent"
    assert not again.trained and Counter(executor.trained) == trained


def test_a_part_of_the_budget_is_kept_for_confirming(make_lab):
    lab = make_lab(WIDE, budget="200gpu-s", confirm=1)
    lab.run(lab.executor())
    front = front_of(lab.records())
    assert {r.trainings for r in front} == {2}
    assert sum(e.seconds for e in lab.store.entries) + lab.store.seconds("lane") <= 200
    assert lab.store.tally.ranked >= 8


def test_those_who_go_on_leave_what_confirming_needs(make_lab):
    """The lower rung tells nothing of the higher, so all are to go on: more than the budget holds."""
    lab = make_lab(WIDE, epochs=9, rungs=2, budget="500gpu-s", confirm=1)

    def judge(payload) -> float:
        own = accuracy(payload["model"])
        return own if payload["until"] == 9 else 1 - own

    lab.run(lab.executor(judge=judge))
    confirmed = sum(len(e.repeats) for e in lab.store.entries)
    members = {r.trial for r in front_of(lab.records())} | {0}
    assert confirmed >= 4 and confirmed + 1 >= len(members)  # the last one to come to the front may find no room
    assert lab.store.tally.charged + lab.store.seconds("lane") <= 500
    assert sum(e.state == "paused" for e in lab.store.entries) >= 1  # for them there was no room


def test_a_front_comes_before_its_error_bars(make_lab):
    """There is time to bring up one more of those who lead the lower rung, or to confirm."""
    lab = make_lab(WIDE, epochs=9, rungs=2, budget="150gpu-s", confirm=1)
    lab.run(lab.executor())
    entries = [e for e in lab.store.entries if e.results and e.price]
    front = front_indices([e.results[0]["map"] for e in entries], [e.price["ms"] for e in entries])
    assert all(entries[i].state == "done" for i in front) and len(front) >= 3
    assert sum(len(e.repeats) for e in entries) < len(front)


def test_who_cannot_be_confirmed_stays_with_one_seed(make_lab):
    lab = make_lab(TINY, confirm=1)
    executor = lab.executor(fate=lambda attempt, count: Failed if attempt.payload.get("repeat") else None)
    assert lab.run(executor) == EVERYTHING
    done = [e for e in lab.store.entries if e.state == "done"]
    assert {lab.name(e.architecture) for e in done} == lab.all() and not any(e.repeats for e in done)
    assert any(e.attempts[-1]["outcome"] == "failed" for e in done)


def on_val(payload) -> float:
    return 0.5 * accuracy(payload["model"]) if payload["validates"] else accuracy(payload["model"])


@pytest.mark.parametrize("confirm", [0, 1])
def test_the_front_is_validated_once_whatever_happens(make_lab, confirm):
    """Killed in the first validation, and a worker is lost in the second: all of the front is scored on val, and charged."""
    lab = make_lab(budget="12trials", confirm=confirm, max_latency_ms=3.5)
    lab.validates = True

    def dies(attempt: Attempt, count: int) -> None:
        if attempt.payload.get("validates"):
            raise CrashError(0)

    with pytest.raises(CrashError):
        lab.run(lab.executor(judge=on_val, fate=dies))
    seen: list[str] = []

    def loses(attempt: Attempt, count: int) -> type[Lost] | None:
        seen.extend([name_of(attempt.payload["model"])] if attempt.payload.get("validates") else [])
        return Lost if len(seen) == 1 and attempt.payload["validates"] else None

    assert lab.run(lab.executor(judge=on_val, fate=loses)) == "budget spent"
    records = {r.trial: r for r in lab.records()}
    members = {r.trial for r in front_of(list(records.values()))} | {0}
    validated = {e.number: e for e in lab.store.entries if e.val is not None}
    assert members <= set(validated) and (confirm or set(validated) == members)
    for entry in validated.values():
        assert records[entry.number].val == pytest.approx(0.5 * accuracy(lab.model(entry.architecture)))
        assert [a["outcome"] for a in entry.attempts].count("validated") == 1
    assert Counter(seen).most_common(1)[0][1] == 2 and len(seen) == len(validated) + 1
    assert lab.store.tally.ranked == 12
    assert lab.run(again := lab.executor(judge=on_val)) == "budget spent"
    assert not again.trained


def test_a_part_of_the_budget_is_kept_for_validating(make_lab):
    lab = make_lab(WIDE, budget="200gpu-s", confirm=0)
    lab.validates = True
    lab.run(lab.executor(judge=on_val))
    assert all(r.val is not None for r in front_of(lab.records()))
    assert sum(e.seconds for e in lab.store.entries) + lab.store.seconds("lane") <= 200


def test_a_validation_is_no_training(make_lab):
    """Seven that take a second each are not seven trainings of forty."""
    lab = make_lab(WIDE, budget="400gpu-s", confirm=0)
    lab.validates = True
    executor = lab.executor(judge=on_val)
    real = executor.start

    def start(attempt: Attempt) -> None:
        if not attempt.quiet:
            executor.seconds = lambda model: 1.0 if attempt.payload["validates"] else 40.0
        real(attempt)

    executor.start = start
    lab.run(executor)
    assert all(r.val is not None for r in front_of(lab.records()))
    assert lab.store.tally.ranked >= 8
    assert lab.store.tally.typical_validation == 1.0


def test_who_cannot_be_validated_is_confirmed_nevertheless(make_lab):
    lab = make_lab(TINY, confirm=1)
    lab.validates = True
    lab.run(lab.executor(judge=on_val, fate=lambda attempt, count: Failed if attempt.payload.get("validates") else None))
    front = front_of(lab.records())
    assert {r.trainings for r in front} == {2} and not any(r.val for r in front)


def test_nothing_is_kept_for_confirming_before_there_is_a_front(make_lab):
    """A baseline over the limit with an error bar is no result: the budget is for who can be on the front."""
    lab = make_lab(budget="6trials", confirm=0, max_latency_ms=3.5)
    lab.run(lab.executor())
    front = [lab.store[r.trial] for r in front_of(lab.records())]
    climb = Climb(lab.store, [], confirm=1)
    assert not front[0].architecture.is_skeleton and climb.confirmation([], []) is None
    assert climb.confirming([], 1e6, 1, 1.0) == 0 < climb.confirming(front, 1e6, 1, 1.0)
    assert {climb.confirmation(front, [Step(e.number, 0) for e in front]).number} == {0}


@pytest.mark.parametrize(
    ("path", "weights", "name"),
    [("/x/best.pt", "best.pt", "best.pt"), (None, "coco.pt", "trained here, from coco.pt"), (None, "", "trained here")],
)
def test_a_report_names_the_teacher(make_lab, path, weights, name):
    """The checkpoint only where that is what the blocks imitate, not where the teacher's training began with it."""
    store = make_lab(WIDE).store
    assert teacher_in(store, weights) is None
    store.put_fact("teacher", {"path": path, "digest": "d", "map": 0.4})
    assert teacher_in(store, weights) == Teacher(name, 0.4)


def test_what_a_users_teacher_may_have_seen_is_no_claim(make_lab):
    """Kendall's tau between the held-out part and val is told with its interval, or of how many members it cannot be."""
    lab = make_lab(WIDE, budget="40trials", confirm=0)
    lab.validates = True
    assert lab.run(lab.executor(judge=on_val)) == "budget spent"
    assert lab.summary().seen == ""
    members = sum(e.val is not None for e in lab.store.entries)
    assert members >= 5
    lab.store.put_fact("seen", "/x/best.pt")
    told = lab.summary()
    assert "best.pt, may have learned from the held-out part" in told.meaning and "Hypervolume" not in told.meaning
    assert (
        f"the {members} members that were validated as val does with Kendall's tau 1.00, 90% interval 1.00 to 1.00" in told.seen
    )
    lab.config["confirm"] = 1
    assert "cannot be said of 0 confirmed members" in lab.summary().seen
    lab.store.put_fact("seen", None)
    assert lab.summary().seen == ""


def test_a_run_s_model_yaml_says_what_to_train(make_lab, tmp_path):
    """`nas train` takes the YAML that `nas export` has written, as long as it is what the run has trained."""
    lab = make_lab(budget="4trials")
    lab.run(lab.executor())
    lab.summary()
    run = Run(lab.folder)
    record = next(r for r in run.records if r.state == "done" and not r.baseline)
    (written,) = run.export(str(record.trial))
    found, trial = chosen(str(written), None)
    assert (found.folder, trial) == (lab.folder, record) == (chosen(str(lab.folder), str(record.trial))[0].folder, trial)
    assert chosen(str(lab.folder), None)[1] in run.front
    with pytest.raises(InputError, match="nothing to --pick"):
        chosen(str(written), "best")
    text = written.read_text()
    changed = yaml.safe_load(text)
    changed["backbone"][0][3][0] += 8
    written.write_text(yaml.safe_dump(changed))
    with pytest.raises(InputError, match="is this architecture") as caught:
        chosen(str(written), None)
    assert "nas yolo train" in caught.value.hint
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(InputError, match="in no run folder"):
        chosen(str(tmp_path / "mine.yaml"), None)


def test_what_is_pruned_is_neither_priced_nor_trained(make_lab):
    lab = make_lab(budget="8trials")
    lab.prune = lambda architecture: "trial 0 is better" if any(p.block == "irmb" for p in architecture.placements) else None
    executor = lab.executor()
    lab.run(executor)
    pruned = [e for e in lab.store.entries if e.reason == "pruned: trial 0 is better"]
    assert pruned and all(e.state == "rejected" and e.price is None for e in pruned)
    assert not {lab.name(e.architecture) for e in pruned} & {*executor.trained, *executor.timed}


def test_seeds_are_proposed_first_and_pass_the_same_gate(make_lab):
    """Once enough is known to choose them. Who may be on either side of the limit is measured, who is over it never trained."""
    lab, limit = make_lab(MEDIUM, budget="20trials", max_latency_ms=3.0), 3.0
    chosen: list[Architecture] = []
    asked: list[int] = []
    timed: dict[str, list[str]] = {}

    def seeds(pricing: Pricing) -> list[Architecture] | None:
        asked.append(len(executor.timed))
        if pricing.predict([lab.space.baseline]) is None:
            return None
        new = [a for a in list(lab.space.enumerate())[::3] if lab.name(a) not in executor.models]
        _, low, high = pricing.predict(new)
        near, slow = (low <= limit) & (limit < high), np.array([latency(lab.model(a)) > limit for a in new])
        chosen.extend(new[int(np.argmax(these))] for these in (high <= limit, low > limit, near & ~slow, near & slow))
        return [lab.space.baseline, *chosen, chosen[0]]

    def judge(payload) -> float:
        timed[name_of(payload["model"])] = list(executor.timed)
        return accuracy(payload["model"])

    lab.seeds, executor = seeds, lab.executor(judge=judge)
    lab.run(executor)
    entries = {e.architecture: e for e in lab.store.entries}
    numbers = [entries[a].number for a in chosen]
    assert numbers == list(range(numbers[0], numbers[0] + 4)) and asked == sorted(asked) and len(asked) > 3
    within, over, near, beyond = (entries[a] for a in chosen)
    names = [lab.name(a) for a in chosen]
    assert within.state == near.state == "done" and names[0] not in timed[names[0]] and names[2] in timed[names[2]]
    assert over.reason == beyond.reason == "over-latency" and names[3] in executor.timed and names[1] not in executor.timed
    assert [e.price["source"] for e in (over, near, beyond)] == ["predicted", "measured", "measured"]
    assert not {names[1], names[3]} & set(executor.trained)
    assert [e.architecture for e in lab.store.entries].count(chosen[0]) == 1
