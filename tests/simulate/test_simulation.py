"""A simulated search: the study's own loop over a table, as people call it and from the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from nas.cli import cli
from nas.errors import InfeasibleError, InputError, StoppedError
from nas.search.front import front_indices
from nas.simulate.simulation import Simulated, simulate

BLOCKS = ("keep", "repvit", "irmb")
COLUMNS = {"accuracy": "acc", "latency": "lat_x"}


def rows() -> list[tuple]:
    """3 x 3 x 4 x 4 architectures whose accuracy and latency are sums over their features, with a twist."""
    grid = np.stack(np.unravel_index(np.arange(144), (3, 3, 4, 4)), axis=1)
    noise = np.random.default_rng(0).normal(size=144)
    found = []
    for number, (p4, p5, width, depth) in enumerate(grid):
        accuracy = 40 + 3 * p4 - 2 * p5 + 4 * np.sqrt(width) + 3 * np.log1p(depth) + p4 * p5 + 0.7 * noise[number]
        ms = 1 + 0.4 * p4 + 0.1 * p5 + 0.5 * width + 0.3 * depth
        found.append((f"m{number}", BLOCKS[p4], BLOCKS[p5], 0.25 * (width + 1), depth + 1, round(accuracy, 3), round(ms, 3)))
    return found


@pytest.fixture
def table(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    with (tmp_path / "nets.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("name", "p4", "p5", "width", "depth", "acc", "lat_x"), *rows()])
    return tmp_path / "nets.csv"


def run(table: Path, **options) -> Simulated:
    return simulate(table, **{**COLUMNS, "budget": "60trials", **options})


def test_all_of_a_table_gives_its_own_front(table):
    found = run(table, budget="1000trials", sampler="random", gpus=7)
    accuracy, ms = np.array([(row[-2] / 100, row[-1]) for row in rows()]).T
    expected = front_indices(accuracy, ms)
    assert [(r.map, r.latency_ms) for r in found.front] == [(accuracy[i], ms[i]) for i in expected]
    assert found.summary.counts["done"] == 144 and found.stopped_because == "every architecture of the space was tried"
    assert found.share == pytest.approx(1.0) and found.evaluations[-1] <= 144
    with (found.folder / "front.csv").open() as file:
        assert [float(row["latency_ms"]) for row in csv.DictReader(file)] == [r.latency_ms for r in found.front]
    assert json.loads((found.folder / "simulation.json").read_text())["share"] == found.share
    assert (found.folder / "pareto.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("sampler", ["front", "random", "tpe"])
def test_the_same_seed_gives_the_same_search_and_another_one_another(table, sampler):
    def trials(seed: int) -> list:
        found = run(table, sampler=sampler, gpus=4, rungs=2, seed=seed, budget="40trials")
        return [(r.trial, r.id, r.map, r.rung) for r in found.records]

    assert trials(0) == trials(0) != trials(1)


def test_front_needs_fewer_evaluations_than_random(table):
    found = {name: run(table, sampler=name, budget="100trials").evaluations[1] or 101 for name in ("front", "random")}
    assert 2 * found["front"] <= found["random"]


def test_under_a_limit_nothing_slower_is_trained_but_the_baseline_and_its_own_front_counts(table):
    found = run(table, max_latency="2ms", budget="1000trials", gpus=3)
    assert max(r.latency_ms for r in found.records) <= 2.0 and found.share == pytest.approx(1.0)
    assert found.summary.counts["done"] == sum(row[-1] <= 2 for row in rows())
    with pytest.raises(InfeasibleError, match="fastest row takes 1 ms"):
        run(table, max_latency="0.5ms")
    assert sorted(path.name for path in Path("results").iterdir()) == ["search"]


def test_rungs_that_rank_well_promote_fewer(table):
    good = run(table, sampler="random", budget="140trials", rung_tau=0.95)
    bad = run(table, sampler="random", budget="140trials", rung_tau=0.0)
    assert good.summary.counts["done"] <= 30 and bad.summary.counts["done"] > 90
    assert "Kendall's tau" in good.summary.meaning
    assert good.share > 0.8


@pytest.mark.parametrize(("budget", "gpus"), [("20gpu-h", 3), ("90gpu-min", 1), ("2h", 4)])
def test_a_budget_of_time_is_virtual_and_is_kept(table, budget, gpus):
    found = run(table, sampler="random", budget=budget, gpus=gpus)
    amount = {"20gpu-h": 72_000, "90gpu-min": 5400, "2h": 7200}[budget]
    used = found.summary.wall_seconds if budget == "2h" else found.summary.device_seconds
    assert 0.5 * amount < used <= amount * (1 + 1e-9)
    assert found.stopped_because == "budget spent" and found.summary.counts["done"] >= 1


def test_faults_cost_time_and_nothing_else(table):
    Path("faults.yaml").write_text(
        "fail: 0.1\nlose: 0.2\nleave:\n  - {at: 3h, workers: 3, back: 6h}\n  - {at: 9h, workers: 1}\n"
    )
    found = run(table, sampler="random", budget="1000trials", gpus=4, faults="faults.yaml")
    calm = run(table, sampler="random", budget="1000trials", gpus=4)
    assert found.summary.counts["failed"] > 2 and found.summary.counts["done"] > 100
    assert sum(found.summary.counts[state] for state in ("done", "failed")) == 144
    assert found.summary.wall_seconds > calm.summary.wall_seconds
    assert {r.reason for r in found.records if r.state == "failed"} <= {"simulated failure", "simulated loss of its worker"}
    Path("faults.yaml").write_text("fail: 1\n")
    with pytest.raises(StoppedError, match="8 trials in a row"):
        run(table, faults="faults.yaml")


def test_a_search_that_promises_nothing_more_ends_when_asked_to(table):
    whole, flat = run(table, budget="140trials"), run(table, budget="140trials", stop_when_flat=0.01)
    assert whole.stopped_because == "budget spent"
    assert flat.stopped_because.startswith("flat: another device-hour is expected to raise the hypervolume by 0.")
    assert flat.summary.counts["done"] < 70 and flat.share > 0.95


@pytest.mark.slow
def test_a_thousand_gpus_are_kept_busy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    lines = [
        f"m{i},{i % 30},{i // 30 % 30},{i // 900},{a:.4f},{ms:.4f}" for i, (a, ms) in enumerate(rng.uniform(0.5, 1, (5400, 2)))
    ]
    Path("many.csv").write_text("\n".join(["name,a,b,c,acc,lat_x", *lines]) + "\n")
    found = simulate("many.csv", **COLUMNS, sampler="random", gpus=100, budget="5000trials")
    assert found.summary.counts["done"] == 5000 and found.busy > 0.95


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--latency", "lat_x"], "--simulate needs --accuracy COLUMN"),
        (["--accuracy", "acc", "--latency", "lat"], "did you mean 'lat_x'?"),
        (["--accuracy", "acc", "--latency", "lat_x", "--data", "x.yaml"], "--data means nothing with --simulate"),
        (["--accuracy", "acc", "--latency", "lat_x", "--gpus", "0"], "workers is 0"),
        (["--accuracy", "acc", "--latency", "lat_x", "--rung-tau", "2"], "rung-tau is 2"),
        (["--accuracy", "acc", "--latency", "lat_x", "--stop-when-flat", "2"], "stop-when-flat is 2"),
        (["--accuracy", "acc", "--latency", "lat_x", "--features", "p4,widht"], "did you mean 'width'?"),
        (["--accuracy", "acc", "--latency", "lat_x", "--faults", "gone.yaml"], "gone.yaml: no such file"),
    ],
)
def test_what_cannot_be_simulated_is_refused(table, words, says):
    with pytest.raises(Exception) as refused:
        CliRunner().invoke(cli, ["search", "--simulate", str(table), *words], catch_exceptions=False)
    assert isinstance(refused.value, InputError) and says in str(refused.value)
    assert not list(Path().glob("results/*"))


def test_from_the_command_line(table):
    words = ["--simulate", str(table), "--accuracy", "acc", "--latency", "lat_x", "--features", "p4, p5,width,depth"]
    done = CliRunner().invoke(cli, ["search", *words, "--budget", "30trials", "--gpus", "2", "-q"], catch_exceptions=False)
    assert done.exit_code == 0
    assert "144 rows told apart by p4, p5, width, depth; 1 rung" in done.output and "% busy" in done.output
    assert "results/search/front.csv" in done.output
    with pytest.raises(InputError, match="--rung-tau needs --simulate TABLE"):
        CliRunner().invoke(cli, ["search", "--rung-tau", "0.5"], catch_exceptions=False)
