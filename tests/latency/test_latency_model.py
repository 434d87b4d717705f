"""The latency model on made-up devices whose latencies are known: what it recovers, and what its intervals hold."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest

from nas.blocks.catalog import CATALOG, BlockSpec
from nas.errors import InputError
from nas.latency.calibrate import calibration_count, calibration_set
from nas.latency.model import LatencyModel, spearman
from nas.latency.rows import row_kinds
from nas.space.architecture import Architecture
from nas.space.reader import find_space, read_space
from nas.space.skeleton import read_skeleton

SPACE = read_space(find_space("yolo11n-blocks"))
# By how much a block is slower than a convolution of its channels, and what each row costs in any case.
SLOW = {"repvit": 2.0, "riformer": 3.0, "irmb": 5.0, "mobile_mqa": 4.0, "efficientvit": 6.0}
LAUNCH_MS = 0.01


def device(architectures, noise=0.0, seed=0, space=SPACE):
    """Latencies and rows of a device that is between bound by computing and by memory; the whole is slower for large models."""
    kinds, index = row_kinds(space.skeleton, architectures)
    pixels = np.array([(160 / kind.stride) ** 2 for kind in kinds])
    taken, made = np.array([sum(kind.inputs) for kind in kinds]), np.array([kind.channels for kind in kinds])
    slow = np.array([SLOW.get(kind.module, 1.0) * kind.depth**0.8 for kind in kinds])
    slow *= np.where(made % 16, 1.2, 1.0)
    each = 1e-8 * pixels * taken * made * slow + 2e-7 * pixels * taken + LAUNCH_MS
    rows = each[index]
    rng = np.random.default_rng(seed)
    ms = rows.sum(1) * np.exp(noise * rng.standard_normal(len(index)))
    rows = rows * np.exp(3 * noise * rng.standard_normal(rows.shape))
    rows *= (ms / rows.sum(1))[:, None]
    return ms, [dict(enumerate(row.tolist())) for row in rows]


def drawn(count, seed=1000, space=SPACE):
    return [space.sample(random.Random(seed + index), 160) for index in range(count)]


def fitted(count, *, rows=True, noise=0.0, seed=0, space=SPACE):
    chosen = calibration_set(space, 160, seed, count)
    ms, profiles = device(chosen, noise, seed, space)
    profiled = rows if isinstance(rows, list) else [rows] * len(chosen)
    return LatencyModel.fit(
        space, [(a, t, p if with_rows else None) for a, t, p, with_rows in zip(chosen, ms, profiles, profiled, strict=True)]
    )


def errors(model, others, space=SPACE):
    truth, _ = device(others, space=space)
    ms, low, high = model.predict(others)
    return 100 * np.mean(np.abs(ms / truth - 1)), spearman(ms, truth), np.mean((low <= truth) & (truth <= high))


@pytest.mark.parametrize(
    ("count", "rows", "mape", "rank"),
    [(12, True, 1.5, 0.99), (36, True, 0.6, 0.999), (36, False, 2.0, 0.99), (36, [True] * 12 + [False] * 24, 1.2, 0.995)],
)
def test_what_a_device_takes_is_recovered(count, rows, mape, rank):
    model = fitted(count, rows=rows)
    error, order, _ = errors(model, drawn(150))
    assert error < mape
    assert order > rank
    assert model.error.n == count
    assert model.error.mape < 3 * mape


@pytest.mark.parametrize("rows", [True, False])
def test_intervals_hold_nine_of_ten(rows):
    held = []
    for seed in range(4):
        others = drawn(100, 5000 * (seed + 1))
        measured, _ = device(others, 0.02, 77 + seed)
        _, low, high = fitted(36, rows=rows, noise=0.02, seed=seed).predict(others)
        held.append(np.mean((low <= measured) & (measured <= high)))
    assert 0.8 < np.mean(held) < 0.99


@pytest.mark.parametrize("name", ["yolo26n-blocks", "yolov8n-blocks", "riformer-yolov9c", "efficientvit-yolov5"])
def test_any_skeleton(name):
    space = read_space(find_space(name))
    model = fitted(20, space=space)
    error, _, _ = errors(model, drawn(50, space=space), space)
    assert error < 2


def test_a_skeleton_of_segmentation_and_a_users_block(monkeypatch):
    monkeypatch.setitem(CATALOG, "mine", BlockSpec("mine", "Mine", "nowhere:Mine", "", knobs={}))
    skeleton = read_skeleton("yolo11n-seg.yaml")
    slots = [replace(choices, blocks=("keep", "repvit", "mine"), heads=(), knobs={}) for choices in SPACE.slots]
    space = replace(SPACE, skeleton=skeleton, slots=tuple(slots), forbid=())
    assert fitted(24, space=space).error.mape < 3
    assert errors(fitted(24, space=space), drawn(50, space=space), space)[0] < 2


def test_what_was_never_measured_gets_a_wide_interval_not_an_absurd_one():
    plain = replace(SPACE, slots=tuple(replace(choices, blocks=("keep", "repvit"), heads=()) for choices in SPACE.slots))
    model = fitted(24, space=plain)
    known, strange = drawn(30, space=plain), [SPACE.filled("efficientvit"), SPACE.filled("mobile_mqa")]
    wide = []
    for architectures in (known, strange):
        ms, low, high = model.predict(architectures)
        truth, _ = device(architectures)
        assert np.all((ms > truth / 5) & (ms < truth * 5))
        assert np.all((low < ms) & (ms < high) & (low > 0) & np.isfinite(high))
        wide.append(np.mean(high / low))
    assert wide[1] > 1.5 * wide[0]


def test_equal_observations_make_equal_models_also_through_json():
    model = fitted(14, rows=[True] * 7 + [False] * 7, noise=0.01)
    others = drawn(20)
    again = LatencyModel.from_dict(SPACE, json.loads(json.dumps(model.to_dict())))
    for one, other in zip(model.predict(others), again.predict(others), strict=True):
        np.testing.assert_array_equal(one, other)
    assert again.error == model.error


def test_what_was_asked_before_changes_no_bit_of_an_answer():
    """A search that goes on after a restart must see the latencies that it would have seen."""
    model, others = fitted(20), drawn(40, seed=77)
    fresh = LatencyModel.fit(SPACE, model.observations)
    for few in (others[:1], others[5:8], others[20:]):
        model.predict(few)
    for told, own in zip(model.predict(others), fresh.predict(others), strict=True):
        assert told.tobytes() == own.tobytes()


def test_of_one_architecture_measured_twice_the_lower_figure_counts():
    chosen = calibration_set(SPACE, 160, 0, 12)
    ms, rows = device(chosen)
    once = [(a, t, r) for a, t, r in zip(chosen, ms, rows, strict=True)]
    twice = LatencyModel.fit(SPACE, [*once, (chosen[3], 5 * ms[3], None)])
    np.testing.assert_array_equal(twice.predict(chosen)[0], LatencyModel.fit(SPACE, once).predict(chosen)[0])


def test_nothing_to_predict():
    assert [len(part) for part in fitted(6).predict([])] == [0, 0, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o: o[:2], "2 measured"),
        (lambda o: [*o[:-1], (o[-1][0], 0.0, None)], "0.0 ms"),
        (lambda o: [*o[:-1], (o[-1][0], float("nan"), None)], "nan ms"),
        (lambda o: [*o[:-1], (o[-1][0], 1.0, {99: 1.0})], "no row 99"),
        (lambda o: [*o[:-1], (o[-1][0], 1.0, {3: -1.0})], "negative"),
        (lambda o: [*o, (Architecture("yolov8n"), 1.0, None)], "yolov8n"),
    ],
)
def test_broken_observations_are_refused(change, message):
    chosen = drawn(6)
    ms, _ = device(chosen)
    with pytest.raises(InputError, match=message):
        LatencyModel.fit(SPACE, change([(a, float(t), None) for a, t in zip(chosen, ms, strict=True)]))


def test_a_calibration_set_covers_every_choice_and_repeats():
    chosen = calibration_set(SPACE, 160, 3, 36)
    assert chosen[0] == SPACE.baseline
    assert len(set(chosen)) == 36
    assert calibration_set(SPACE, 160, 3, 12) == chosen[:12]
    assert calibration_set(SPACE, 160, 4, 12) != chosen[:12]
    placed = [{p.slot: p for p in a.placements} for a in chosen]
    for choices in SPACE.slots:
        held = [p[choices.slot.name] for p in placed if choices.slot.name in p]
        assert {p.block for p in held} == set(choices.blocks)
        assert {p.depth for p in held} == set(choices.depths)
        assert len({p.channels for p in held}) >= len(choices.widths)


def test_a_calibration_set_leaves_out_what_is_known_and_respects_rules():
    first = calibration_set(SPACE, 160, 0, 8)
    assert not set(first) & set(calibration_set(SPACE, 160, 0, 8, known=first))
    space = read_space(find_space("demo"))
    everything = calibration_set(space, 128, 0, 10_000)
    assert len(everything) <= space.size
    assert all(space.forbidding_rule(a, 128) is None for a in everything if not a.is_skeleton)


def test_as_many_as_the_time_allows():
    assert calibration_count(SPACE, 60, 1.5) == 40
    assert calibration_count(SPACE, 60, 3.0) == 20
    assert calibration_count(SPACE, 60, 60.0) == 12
