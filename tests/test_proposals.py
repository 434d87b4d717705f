"""What the front sampler is told of trials on different rungs."""

from __future__ import annotations

import pytest

from nas.proposals import lifts


def test_a_rung_lifts_by_what_those_gained_who_were_on_both():
    climbs = [[{"map": 0.1}, {"map": 0.2}, {"map": 0.4}], [{"map": 0.2}, {"map": 0.5}]]
    assert [lift.rise for lift in lifts(climbs)] == pytest.approx([0.2, 0.2])
    assert lifts([]) == []


def test_a_rung_that_foretells_the_next_leaves_less_doubt_and_so_do_more_results():
    def doubt(noise: float, count: int) -> float:
        signs = [1, -1] * (count // 2)
        (lift,) = lifts([[{"map": 0.3 + 0.01 * n}, {"map": 0.4 + 0.01 * n + noise * sign}] for n, sign in enumerate(signs)])
        return lift.doubt

    assert doubt(0.0, 4) > doubt(0.0, 20) > 0
    assert doubt(0.1, 20) > 3 * doubt(0.0, 20)
