"""The budget is never passed, whatever the schedule: searches over tables, with faults, in virtual time.

What is charged is compared with what the executor saw: GPUs times the seconds that its workers worked.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from nas.config import RunConfig
from nas.errors import NasError
from nas.execution.simulate import Faults, Leave
from nas.runs.store import Store
from nas.screening import EVERYTHING_TRIED
from nas.simulate.play import Play
from tests.simulate.tables import small


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    return small(tmp_path_factory.mktemp("table"))


@st.composite
def schedules(draw):
    """A budget with what is added to it, workers and the GPUs of each, rungs, seeds of the front, and what goes wrong."""
    kind = draw(st.sampled_from(["gpu-s", "s", "trials"]))
    amount = draw(st.integers(1, 40)) if kind == "trials" else draw(st.integers(50, 8000))
    faults = Faults(
        draw(st.sampled_from([0.0, 0.1, 0.3])),
        draw(st.sampled_from([0.0, 0.1, 0.3])),
        draw(st.sampled_from([0.0, 0.0, 0.1])),
        draw(st.sampled_from([(), (Leave(300.0, 2, 900.0),), (Leave(100.0, 1, 150.0), Leave(500.0, 3, 501.0))])),
    )
    rungs = draw(st.integers(1, 3))
    workers, confirm, seed = draw(st.integers(1, 9)), draw(st.integers(0, 2)), draw(st.integers(0, 99))
    held = draw(st.sampled_from([1.0, 0.25, 0.3, 0.5, 2.0, 3.0, 8.0]))
    options = {"workers": workers, "rungs": rungs, "confirm": confirm, "seed": seed, "gpus_per_trial": held}
    return kind, amount, draw(st.integers(0, 2)), faults, options


COMMON = {"deadline": None, "suppress_health_check": list(HealthCheck)}


# all workers are lost at the moment when the budget ends
AT_THE_END = Faults(leave=(Leave(100.0, 1, 150.0), Leave(500.0, 3, 501.0)))
OPTIONS = {"workers": 2, "rungs": 2, "confirm": 1, "seed": 2, "gpus_per_trial": 1.0}


@given(schedule=schedules())
@example(schedule=("s", 50, 1, AT_THE_END, OPTIONS))
@settings(max_examples=40, derandomize=True, **COMMON)
def test_random_schedules(space, tmp_path_factory, schedule):
    obeys_its_budget(space, tmp_path_factory.mktemp("run"), schedule)


@pytest.mark.slow
@given(schedule=schedules())
@settings(max_examples=1000, **COMMON)
def test_a_thousand_random_schedules(space, tmp_path_factory, schedule):
    obeys_its_budget(space, tmp_path_factory.mktemp("run"), schedule)


def obeys_its_budget(space, folder, schedule):
    """What is used is never more than the budget, what is charged is what the attempts took, and no budget is left lying."""
    kind, amount, more, faults, options = schedule
    store = Store(None, create=True)
    limit, held, charged = 0, options["gpus_per_trial"], 0.0
    for session in range(1 + more):  # --add-budget: each session adds as much again
        limit = (session + 1) * amount
        config = RunConfig("t", "t", f"{limit}{kind}", "lat", sampler="random", epochs=9, device="cuda", **options)
        play = Play(space, config, store, tau=0.7, faults=faults, folder=folder)
        try:
            ended = play.run()
        except NasError as error:
            assert "failed alike" in str(error)
            return
        attempts = [attempt for entry in store.entries for attempt in entry.attempts]
        assert play.ledger.used() <= limit + 0.001 * (1 + len(attempts))  # seconds are charged to three digits
        assert play.ledger.device_seconds() == pytest.approx(sum(attempt["seconds"] for attempt in attempts), abs=0.01)
        charged, before = play.ledger.device_seconds(), charged
        assert charged - before == pytest.approx(held * play.executor.worked, abs=0.001 * (1 + len(attempts)))
        assert not any(attempt["outcome"] == "running" for attempt in attempts)
        assert store.tally.under_way == 0
        assert play.executor.free <= config.workers and store.counts["running"] == 0
        if kind == "trials":
            enough = store.tally.ranked + store.counts["failed"] >= limit
            assert (ended == "budget spent" and enough) or (ended == EVERYTHING_TRIED and len(store) >= len(space.table))
            assert store.tally.ranked <= limit
        assert len({entry.architecture.id for entry in store.entries if entry.results}) == sum(
            bool(entry.results) for entry in store.entries
        )
