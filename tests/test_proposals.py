"""What the front sampler is told of trials on different rungs."""

from __future__ import annotations

import pytest

from nas.proposals import lifts


def test_a_rung_lifts_by_what_those_gained_who_were_on_both():
    climbs = [[{"map": 0.1}, {"map": 0.2}, {"map": 0.4}], [{"map": 0.2}, {"map": 0.5}]]
    assert lifts(climbs) == pytest.approx([0.2, 0.2])
    assert lifts([]) == []
