"""The additive model of mAP: exact where mAP is a sum, its leave-one-out error as the definition has it."""

from __future__ import annotations

import random

import numpy as np
import pytest

from nas.search.ridge import Additive
from nas.space.reader import find_space, read_space

SPACE = read_space(find_space("yolo11n-blocks"))
GAIN = {"repvit": 0.03, "riformer": -0.02, "irmb": 0.01, "efficientvit": 0.02, "mobile_mqa": -0.01, "keep": 0.0}


def drawn(count, seed=0):
    rng = random.Random(seed)
    return [SPACE.sample(rng, 640) for _ in range(count)]


def truth(architecture):
    return 0.4 + sum(GAIN[p.block] + 0.02 * p.channels / SPACE.skeleton.slot(p.slot).row.c2 for p in architecture.placements)


def test_it_learns_a_sum_and_knows_how_well():
    seen, new = drawn(60), drawn(200, seed=1)
    model = Additive.fit(SPACE.skeleton, seen, [truth(a) for a in seen])
    wanted = np.array([truth(a) for a in new])
    assert np.corrcoef(model.predict(new), wanted)[0, 1] > 0.85
    assert model.error < 0.6 * model.guess
    assert np.mean(np.abs(model.predict(new) - wanted)) == pytest.approx(model.error, rel=0.4)


def test_noise_teaches_nothing_and_it_says_so():
    seen, rng = drawn(20), random.Random(0)
    model = Additive.fit(SPACE.skeleton, seen, [rng.random() for _ in seen])
    assert model.error > 0.9 * model.guess


def test_the_error_is_that_of_leaving_each_out(monkeypatch):
    monkeypatch.setattr("nas.search.ridge._STRENGTHS", (3.0,))
    seen = drawn(9)
    values = np.array([truth(a) for a in seen])
    missed = []
    for index in range(len(seen)):
        rest = Additive.fit(SPACE.skeleton, seen[:index] + seen[index + 1 :], np.delete(values, index))
        missed.append(abs(rest.predict([seen[index]])[0] - values[index]))
    model = Additive.fit(SPACE.skeleton, seen, values)
    assert model.error == pytest.approx(np.mean(missed))
    others = [abs(np.delete(values, i).mean() - values[i]) for i in range(len(seen))]
    assert model.guess == pytest.approx(np.mean(others))


@pytest.mark.parametrize("count", [0, 3])
def test_too_few_results_are_refused(count):
    with pytest.raises(ValueError, match="4 results"):
        Additive.fit(SPACE.skeleton, drawn(count), [0.1] * count)
