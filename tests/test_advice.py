"""What to measure and what to train next, on trials whose mAP and latency are sums over their slots."""

from __future__ import annotations

import random

from nas.advice import MAX_SUGGESTED, MAX_TO_MEASURE, to_measure, worth_training
from nas.latency.table import NEAR
from nas.limits import Limits
from nas.runs.store import Entry
from nas.space.reader import find_space, read_space

SPACE = read_space(find_space("yolo11n-blocks"))
GAIN = {"repvit": 0.03, "riformer": -0.02, "irmb": 0.01, "efficientvit": 0.02, "mobile_mqa": -0.01, "keep": 0.0}


def drawn(count, seed=0):
    rng = random.Random(seed)
    return [SPACE.sample(rng, 640) for _ in range(count)]


def accuracy(architecture) -> float:
    return 0.4 + sum(GAIN[p.block] for p in architecture.placements)


def price(architecture, source="table") -> dict:
    ms = 5 + sum(p.channels * p.depth for p in architecture.placements) / 100
    return {"ms": ms, "low": 0.9 * ms, "high": 1.1 * ms, "source": source}


def prices(architectures):
    return [price(a, "predicted") for a in architectures]


def done(number, architecture, source="table") -> Entry:
    return Entry(number, architecture, "done", None, price(architecture, source), ({"map": accuracy(architecture)},))


def near(number, architecture) -> Entry:
    return Entry(number, architecture, "rejected", NEAR, price(architecture, "predicted"))


def test_what_is_near_the_limit_comes_in_the_order_of_its_promise_and_then_the_predicted_front():
    trained, unsure = drawn(40), drawn(30, seed=1)
    entries = [done(i, a, "predicted" if i % 2 else "table") for i, a in enumerate(trained)]
    entries += [near(40 + i, a) for i, a in enumerate(unsure)]
    wanted = to_measure(SPACE, entries, Limits(ms=1e9))
    head, tail = wanted[:MAX_TO_MEASURE], wanted[MAX_TO_MEASURE:]
    assert set(head) <= set(unsure)
    rest = set(unsure) - set(head)
    assert sum(map(accuracy, head)) / len(head) > sum(map(accuracy, rest)) / len(rest)
    front = [a for a in trained if not any(beats(b, a) for b in trained)]
    assert set(tail) == {a for a in front if trained.index(a) % 2}
    assert not set(to_measure(SPACE, entries, Limits(ms=1e9), head)) & set(head)


def beats(a, b) -> bool:
    return a != b and accuracy(a) >= accuracy(b) and price(a)["ms"] <= price(b)["ms"]


def test_what_would_be_worth_training_is_better_than_the_front_where_it_stands():
    entries = [done(i, a) for i, a in enumerate(drawn(40))]
    limit = 15.0
    told = worth_training(SPACE, entries, Limits(ms=limit), prices, 640, seed=3)
    assert 0 < len(told.found) <= MAX_SUGGESTED
    assert told.considered == 2000
    assert told.found == worth_training(SPACE, entries, Limits(ms=limit), prices, 640, seed=3).found
    for suggestion in told.found:
        assert suggestion.ms <= limit
        slower = [accuracy(e.architecture) for e in entries if e.price["ms"] <= suggestion.ms]
        assert suggestion.map > max(slower, default=0)
    truly = [accuracy(s.architecture) for s in told.found]
    assert sum(truly) / len(truly) > sum(e.result["map"] for e in entries) / len(entries)
    assert "of 2,000 untrained architectures would lie on the front" in str(told)


def test_too_little_trained_foresees_nothing_and_says_so():
    told = worth_training(SPACE, [done(0, SPACE.baseline)], Limits(), prices, 640, seed=0)
    assert told.found == ()
    assert "too little is trained" in str(told)
