"""Architectures as numbers: the codes of a space are its architectures, its features tell them apart."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from nas.latency.rows import row_kinds
from nas.space.features import SpaceCodes, encode, scale_number
from nas.space.reader import find_space, read_space


@pytest.mark.parametrize("name", ["demo", "yolo11n-blocks", "mqa-yolov9c"])
def test_codes_are_the_architectures_of_the_space(name):
    space = read_space(find_space(name))
    codes, rng = SpaceCodes(space), random.Random(0)
    for _ in range(50):
        architecture = space.sample(rng, 640)
        assert architecture is not None
        code = codes.code(architecture)
        assert codes.architecture(code) == architecture
        params = codes.params(code)
        assert space.draw(lambda name, _choices, params=params: params[name]) == architecture
    assert codes.architecture(codes.code(space.baseline)).is_skeleton
    near = {codes.architecture(code).id for code in codes.neighbours(code)}
    assert near == {a.id for a in space.neighbours(architecture)}


def test_all_of_a_small_space_and_draws_of_a_large_one():
    demo, large = SpaceCodes(read_space(find_space("demo"))), SpaceCodes(read_space(find_space("yolo11n-blocks")))
    if demo.space.size < 50_000:  # lists must not grow with a space that does
        assert {demo.architecture(code).id for code in demo.all()} == {a.id for a in demo.space.enumerate()}
    drawn = large.draw(20_000, np.random.default_rng(0))
    features = large.features(drawn)
    assert features.points.shape[0] == 20_000
    assert np.all(np.abs(features.points) <= 1)
    some = np.unique(drawn[:3000], axis=0)
    assert len(np.unique(large.features(some).points, axis=0)) == len(some)  # no two alike
    blocks = [large.architecture(code).placements for code in drawn[:2000]]
    kept = np.mean([all(p.slot != "backbone.P4" or p.block == "keep" for p in placed) for placed in blocks])
    assert kept == pytest.approx(1 / 6, abs=0.03)  # a block is as likely as another, however many knobs it has


def test_columns():
    features = encode([[1.0, 2.0, 4.0], ["a", "b", None], [5.0, 5.0, 5.0], [0.0, None, 1.0]])
    assert features.numeric.tolist() == [True, False, True]
    assert features.groups.tolist() == [0, 1, 1, 2]
    assert features.points[:, 0] == pytest.approx([-0.5, 0, 0.5])  # on a logarithmic scale
    assert features.points[:, 1:3].tolist() == [[math.sqrt(0.5), 0], [0, math.sqrt(0.5)], [0, 0]]
    assert features.points[:, 3].tolist() == [-0.5, 0, 0.5]
    assert scale_number(np.array([10.0, 11.0, 12.0])) == pytest.approx([-0.5, 0, 0.5])
    uniform = np.linspace(0.0001, 1, 1001)  # its logarithm would put nearly all of it at one end
    assert scale_number(uniform) == pytest.approx(np.linspace(-0.5, 0.5, 1001))


def test_what_codes_hold_is_what_their_architectures_hold():
    """Latencies are predicted for codes as for the architectures that they stand for."""
    space = read_space(find_space("yolo11n-blocks"))
    codes = SpaceCodes(space)
    rows = np.vstack((codes.code(space.baseline), codes.draw(200, np.random.default_rng(0))))
    by_code, by_architecture = (
        row_kinds(space.skeleton, codes.held(rows)),
        row_kinds(space.skeleton, [codes.architecture(row) for row in rows]),
    )
    kinds, own = zip(by_code, by_architecture, strict=True)
    assert [[kinds[0][n] for n in row] for row in own[0]] == [[kinds[1][n] for n in row] for row in own[1]]


def test_distinct_codes_are_sorted_and_leave_out_what_is_known():
    codes = SpaceCodes(read_space(find_space("yolo11n-blocks")))
    rows = codes.draw(300, np.random.default_rng(1))
    known = {row.tobytes() for row in rows[:50]}
    found = codes.distinct(np.vstack((rows, rows[::-1])), known)
    expected = np.array([row for row in np.unique(rows, axis=0) if row.tobytes() not in known])
    assert np.array_equal(found, expected)
    assert len(codes.distinct(rows[:50], known)) == 0
