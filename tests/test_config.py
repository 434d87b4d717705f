"""The units people type, and a run's configuration as `run.yaml` keeps it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.config import Budget, RunConfig, parse_latency, parse_limits, parse_settings
from nas.errors import InputError

CONFIG = {"data": "a.yaml", "space": "demo", "budget": "2h", "target": "cpu:onnxruntime,threads=1,batch=1"}
_QUANTITIES = st.from_regex(r"\A[ +-]?[0-9.e+-]{1,6} ?(ms|us|µs|s|min|h|d|gpu-h|gpu-min|trials?|)\Z")


@pytest.mark.parametrize(
    ("text", "kind", "amount"),
    [
        ("64gpu-h", "device", 64 * 3600),
        ("30gpu-min", "device", 1800),
        (".5gpu-d", "device", 43200),
        ("2h", "wall", 7200),
        (" 30 min ", "wall", 1800),
        ("1e3s", "wall", 1000),
        ("+1.5H", "wall", 5400),
        ("20trials", "trials", 20),
        ("1 trial", "trials", 1),
    ],
)
def test_budget(text, kind, amount):
    budget = Budget.parse(text)
    assert (budget.kind, budget.amount, budget.text) == (kind, amount, text.strip())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("64", "no unit"),
        ("0gpu-h", "greater than 0"),
        ("-2h", "greater than 0"),
        ("1e999h", "greater than 0"),
        ("1e308h", "too large"),
        ("infh", "not a number"),
        ("nanmin", "not a number"),
        ("", "not a number"),
        ("h", "not a number"),
        ("2h30min", "not a number"),
        ("1,5h", "not a number"),
        ("1.5trials", "whole number"),
        ("64gpuh", "did you mean 'gpu-h'"),
        ("64gpu-hh", "unknown unit"),
        ("20trails", "did you mean 'trials'"),
        ("2ms", "unknown unit"),
    ],
)
def test_bad_budget(text, says):
    with pytest.raises(InputError, match=says) as error:
        Budget.parse(text)
    assert error.value.hint


@pytest.mark.parametrize(
    ("text", "ms"), [("2ms", 2), ("800us", 0.8), ("800µs", 0.8), ("0.01s", 10), ("2 ms", 2), ("1e3ms", 1000), ("2MS", 2)]
)
def test_latency(text, ms):
    assert parse_latency(text) == pytest.approx(ms)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("2", "no unit"),
        ("-1ms", "greater than 0"),
        ("0us", "greater than 0"),
        ("1e308s", "too large"),
        ("1e-323us", "too small"),
        ("nanms", "not a number"),
        ("2h", "unknown unit"),
        ("2mss", "did you mean 'ms'"),
    ],
)
def test_bad_latency(text, says):
    with pytest.raises(InputError, match=says) as error:
        parse_latency(text)
    assert error.value.hint


@pytest.mark.parametrize(
    ("flag", "text", "field", "value"),
    [
        ("max_latency", "2ms", "max_latency_ms", 2),
        ("max_params", "3M", "max_params", 3e6),
        ("max_params", "2.5m", "max_params", 2.5e6),
        ("max_params", "800K", "max_params", 8e5),
        ("max_params", "1B", "max_params", 1e9),
        ("max_macs", "4G", "max_gmacs", 4),
        ("max_macs", "500 M", "max_gmacs", 0.5),
        ("max_size", "10MB", "max_size_mb", 10),
        ("max_size", "800kB", "max_size_mb", 0.8),
        ("max_size", ".01GB", "max_size_mb", 10),
    ],
)
def test_limits(flag, text, field, value):
    assert parse_limits(**{flag: text}) == {field: pytest.approx(value)}
    assert RunConfig(**CONFIG, **parse_limits(**{flag: text})).limits


@pytest.mark.parametrize(
    ("flag", "text", "says"),
    [
        ("max_params", "3", "number of parameters '3' has no unit\n  write a number with a unit: 3M"),
        ("max_params", "3MB", "unknown unit"),
        ("max_params", "0M", "greater than 0"),
        ("max_macs", "4", "number of multiply-adds '4' has no unit\n  write a number with a unit: 4G"),
        ("max_macs", "4GMAC", "unknown unit"),
        ("max_size", "10", "size '10' has no unit\n  write a number with a unit: 10MB"),
        ("max_size", "10MiB", "did you mean 'mb'"),
        ("max_size", "-1MB", "greater than 0"),
        ("max_size", "1e-323kB", "too small"),
    ],
)
def test_bad_limits(flag, text, says):
    with pytest.raises(InputError) as error:
        parse_limits(**{flag: text})
    assert says in str(error.value)


@given(st.one_of(st.text(max_size=20), _QUANTITIES))
def test_any_text_is_a_positive_finite_quantity_or_an_input_error(text):
    for parse in (lambda t: Budget.parse(t).amount, parse_latency):
        try:
            amount = parse(text)
        except InputError:
            continue
        assert 0 < amount < math.inf


@given(st.sampled_from(["s", "min", "h", "gpu-s", "gpu-h", "trials"]), st.integers(1, 10**8), st.integers(1, 10**8))
def test_budgets_of_a_kind_add_up_without_loss_and_read_back(unit, a, b):
    both = Budget.parse(f"{a}{unit}").plus(Budget.parse(f"{b}{unit}"))
    assert both.amount == Budget.parse(f"{a + b}{unit}").amount
    assert both.kind == Budget.parse(f"1{unit}").kind
    assert Budget.parse(both.text) == both


def test_budgets_of_two_kinds_do_not_add():
    with pytest.raises(InputError, match=r"cannot add '20trials' to a budget of '2h'"):
        Budget.parse("2h").plus(Budget.parse("20trials"))


def test_config_reads_back():
    config = RunConfig(**CONFIG, max_latency_ms=2.5, imgsz=160, seed=7, sampler="random", allow_noisy=True)
    assert RunConfig.from_dict(config.to_dict(), Path("run.yaml")) == config


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"imgsz": 100}, "imgsz 100 is not a multiple of 32\n  use 96"),
        ({"imgsz": 0}, "imgsz is 0"),
        ({"imgsz": "640"}, "imgsz is '640'"),
        ({"epochs": True}, "epochs is True"),
        ({"allow_noisy": "yes"}, "allow_noisy is 'yes'\n  give true or false"),
        ({"allow_noisy": 1}, "allow_noisy is 1"),
        ({"epochs": 0}, "epochs is 0"),
        ({"batch": 1.5}, "batch is 1.5"),
        ({"workers": -1}, "workers is -1"),
        ({"held_out": 1}, "held_out is 1"),
        ({"lr0": float("nan")}, "lr0 is nan"),
        ({"max_latency_ms": float("nan")}, "limit is nan"),
        ({"max_latency_ms": float("inf")}, "limit is inf"),
        ({"max_params": 0}, "params limit is 0"),
        ({"max_gmacs": -1.0}, "macs limit is -1"),
        ({"max_size_mb": "10MB"}, "max_size_mb is '10MB'"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"sampler": "tep"}, "did you mean 'tpe'"),
        ({"executor": "rai"}, "did you mean 'ray'"),
        ({"device": "cudda"}, "did you mean 'cuda'"),
        ({"budget": "64"}, "has no unit"),
    ],
)
def test_bad_values(changes, says):
    with pytest.raises(InputError) as error:
        RunConfig(**{**CONFIG, **changes})
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (CONFIG | {"imgzs": 640}, "unknown key 'imgzs'\n  did you mean 'imgsz'?"),
        (CONFIG | {5: 640}, "unknown key '5'"),
        ({k: v for k, v in CONFIG.items() if k != "data"}, "data"),
        (CONFIG | {"lr0": "much"}, "lr0"),
        (CONFIG | {"data": 5}, "data is 5"),
        (CONFIG | {"budget": 64}, "budget is 64"),
        (CONFIG | {"target": None}, "target is None"),
        (CONFIG | {"epochs": 0}, "epochs is 0"),
        (CONFIG | {"sampler": ["tpe"]}, "sampler"),
    ],
)
def test_a_damaged_file_is_named(values, says):
    with pytest.raises(InputError) as error:
        RunConfig.from_dict(values, Path("results/search/run.yaml"))
    assert str(error.value).startswith("results/search/run.yaml: ")
    assert says in str(error.value)


def test_settings():
    assert parse_settings(("lr0=0.01", "batch=16")) == {"lr0": 0.01, "batch": 16}
    for pair, says in [("lr=1", "did you mean 'lr0'"), ("lr0", "NAME=VALUE"), ("batch=1.5", "not a number"), ("=", "unknown")]:
        with pytest.raises(InputError, match=says):
            parse_settings((pair,))
