"""The ledger under random schedules with a clock of its own: no trial starts that does not fit, nothing is forgotten."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.config import Budget
from nas.runs.ledger import Ledger
from nas.runs.store import Entry
from nas.runs.tally import Tally

ROUNDING = 0.01  # the store keeps milliseconds

_FATES = st.lists(st.tuples(st.floats(0.1, 50), st.sampled_from(["done", "done", "done", "failed", "lost"])), max_size=25)
_KINDS = st.sampled_from(["gpu-s", "s", "trials"])
_HELD = st.sampled_from([0.25, 0.3, 1.0, 2.0, 4.0])


class Books:
    """What a ledger reads of a store, without a database."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.tally = Tally()
        self.clocks: dict[str, float] = {}

    def seconds(self, name: str) -> float:
        return self.clocks.get(name, 0.0)

    def add_seconds(self, **seconds: float) -> None:
        for name, value in seconds.items():
            self.clocks[name] = round(self.seconds(name) + value, 3)

    def start(self, number: int) -> None:
        if number == len(self.entries):
            self.entries.append(Entry(number, None))
            self.tally.change(None, self.entries[-1])
        entry = self.entries[number]
        attempts = (*entry.attempts, {"seconds": 0.0, "outcome": "running"})
        self.put(replace(entry, state="running", attempts=attempts))

    def end(self, number: int, seconds: float, outcome: str) -> None:
        entry = self.entries[number]
        attempts = (*entry.attempts[:-1], {"seconds": seconds, "outcome": outcome})
        state = {"lost": "queued"}.get(outcome, outcome)
        results = ({"map": 0.5},) if outcome == "done" else ()
        self.put(replace(entry, state=state, attempts=attempts, results=results))

    def put(self, entry: Entry) -> None:
        self.tally.change(self.entries[entry.number], entry)
        self.entries[entry.number] = entry


class Session:
    """A search in miniature: `workers` that take up what was lost and then new trials, as long as the ledger says so."""

    def __init__(self, budget: Budget, books: Books, workers: int, held: float = 1.0) -> None:
        self.now = 1000.0
        self.books, self.workers, self.budget, self.held = books, workers, budget, held
        self.ledger = Ledger(budget, books, held, clock=lambda: self.now)
        self.running: dict[int, tuple[float, float, str]] = {}
        self.used: list[float] = []
        self.charged = 0.0

    def elapsed(self) -> list[float]:
        return [self.now - began for began, _, _ in self.running.values()]

    def run(self, fates) -> None:
        """Run until a trial does not fit or `fates` end; what runs then is left to finish."""
        fates = iter(fates)
        self.ledger.begin()
        while True:
            while len(self.running) < self.workers and self.ledger.fits(self.elapsed(), 0) and (fate := next(fates, None)):
                assert not self.ledger.exhausted(self.elapsed())
                waiting = [e.number for e in self.books.entries if e.state == "queued"]
                number = waiting[0] if waiting else len(self.books.entries)
                self.books.start(number)
                self.running[number] = (self.now, *fate)
            if not self.running:
                return
            number = min(self.running, key=lambda n: sum(self.running[n][:2]))
            began, seconds, outcome = self.running[number]
            for part in (0.5, 1.0):
                self.now = max(self.now, began + part * seconds)
                self.note()
            del self.running[number]
            self.books.end(number, self.ledger.cost(seconds), outcome)
            self.charged += self.held * seconds
            self.books.add_seconds(lane=0.25)
            self.charged += 0.25
            self.ledger.save()
            self.note()

    def note(self) -> None:
        self.used.append(self.ledger.used(self.elapsed()))


@settings(deadline=None)
@given(_KINDS, st.integers(1, 5), st.integers(1, 300), st.lists(st.tuples(_HELD, _FATES), min_size=1, max_size=3))
def test_what_is_used_only_grows_and_sessions_add_up(unit, workers, amount, sessions):
    books, charged, wall, seen = Books(), 0.0, 0.0, [0.0]
    for held, fates in sessions:  # a resumed search may hold other GPUs
        session = Session(Budget.parse(f"{amount}{unit}"), books, workers, held)
        session.run(fates)
        charged, wall, seen = charged + session.charged, wall + session.now - 1000.0, seen + session.used
    assert all(after >= before - ROUNDING for before, after in itertools.pairwise(seen))
    ledger = Ledger(Budget.parse(f"{amount}{unit}"), books, clock=lambda: 0.0)
    assert ledger.device_seconds() == pytest.approx(charged, abs=ROUNDING)
    assert ledger.wall_seconds == pytest.approx(wall, abs=ROUNDING)
    done = sum(e.state == "done" for e in books.entries)
    assert ledger.used() == {"device": ledger.device_seconds(), "wall": ledger.wall_seconds, "trials": done}[ledger.budget.kind]


@settings(deadline=None)
@given(st.sampled_from(["gpu-s", "s"]), st.integers(1, 6), _HELD, st.floats(0.5, 20), st.floats(1, 60))
def test_equal_trials_never_pass_the_budget_nor_leave_room_for_one(unit, workers, held, seconds, amount):
    """Before the first has ended nobody knows what one costs: as many as there are workers may then be one too many."""
    budget = Budget.parse(f"{amount}{unit}")
    session = Session(budget, Books(), workers, held)
    session.run([(seconds, "done")] * 2000)
    used = session.ledger.used()
    if budget.kind == "wall":
        assert used <= max(amount, seconds) + ROUNDING
        assert used > amount - seconds - ROUNDING
    else:
        cost = held * seconds
        assert used <= max(amount, workers * cost) + 0.25 * workers + ROUNDING  # pricing that came while they ran
        assert used > amount - cost - ROUNDING


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 30), _FATES)
def test_a_number_of_trials_is_met_exactly(workers, amount, fates):
    session = Session(Budget.parse(f"{amount}trials"), Books(), workers)
    session.run([*fates, *[(1.0, "done")] * 60])
    assert session.ledger.used() == amount
    assert not session.ledger.fits([], 0)


@pytest.mark.parametrize("unit", ["gpu-s", "s"])
def test_nothing_fits_a_budget_that_is_used_up(unit):
    now = [0.0]
    ledger = Ledger(Budget.parse(f"10{unit}"), Books(), clock=lambda: now[0])
    ledger.begin()
    assert ledger.fits([], 0)
    now[0] = 10.0
    running = [10.0] if unit == "gpu-s" else []
    assert ledger.exhausted(running)
    assert not ledger.fits(running, 0)


def test_gpus_times_seconds():
    """An attempt of two GPUs for 30 s is 60 GPU-s, when it has ended, while it runs, before it starts and when it must end."""
    books = Books()
    ledger = Ledger(Budget.parse("150gpu-s"), books, 2.0)
    books.start(0)
    books.end(0, ledger.cost(30.0), "done")
    assert ledger.used() == 60 and ledger.used([10.0]) == 80
    assert ledger.fits([0.0], 0, seconds=30) and not ledger.fits([0.0], 0)  # 60 + 60 + 30, and 60 + 60 + 60
    assert ledger.fits([10.0], 0, seconds=20) and not ledger.fits([10.0, 10.0], 0, seconds=20)
    assert ledger.time_left(3, [5.0, 5.0, 5.0]) == 10  # 60 are left, of which three use 6 a second
    assert not ledger.exhausted([22.0, 22.0]) and ledger.exhausted([22.5, 22.5])
    assert Ledger(Budget.parse("9trials"), books, 2.0).ends_in(4, []) == 60  # eight more of 30 s, four at once
    wall = Ledger(Budget.parse("35s"), books, 2.0, clock=lambda: 0.0)
    assert wall.fits([], 0) and not wall.fits([], 0, reserve=6)  # 30 s on the clock


def test_what_still_runs_in_the_store_is_charged_to_a_run_that_nobody_holds():
    """A reader of a killed run has no running attempts to name: the last heartbeat's seconds count."""
    books = Books()
    books.start(0)
    books.end(0, 30.0, "running")
    ledger = Ledger(Budget.parse("1gpu-h"), books)
    assert ledger.device_seconds() == 30.0
    assert ledger.device_seconds([31.0]) == 31.0
