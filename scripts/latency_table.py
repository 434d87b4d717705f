#!/usr/bin/env python
"""The latencies of a device as a table, how well the latency model predicts from it, and what a limit buys there.

    scripts/latency_table.py [--target cuda:torch-fp16] [--imgsz 640] [--space yolo11n-blocks] [--limit 2ms] [--out DIR]
                             [--count 40] [--held-out 20] [--sample 20000] [--quick] [--allow-noisy]

Measured are a calibration set of the space and random architectures beside it; a figure that is in the table already is not
measured again, so that an interrupted script goes on. The model learns from the calibration set alone and predicts the
others. Then everything is in `table.csv` (`nas search --target table:DIR/table.csv`), with the same columns as on a small
device; `figures.json` and `README.md` say

    mape, spearman, within       of the held-out architectures: mean absolute error in percent, rank correlation, and the
                                 share of them inside their predicted interval (which is meant to hold 90%)
    share                        of the space under the limit, by predictions of a random sample; certain and possible by
                                 the whole interval
    most_params                  parameters of the largest architecture of the sample that is certainly under the limit
    models                       the stock scales of the skeleton's family, measured: which is the largest under the limit
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import re
import sys
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

import nas.yolo  # noqa: F401  (teaches Ultralytics the blocks)
from nas.config import parse_latency
from nas.errors import InputError, NasError
from nas.hardware import gpus
from nas.latency.calibrate import calibration_set
from nas.latency.measure import FIGURES, Unstable
from nas.latency.model import spearman
from nas.latency.probes import Probes
from nas.latency.runtimes import SESSIONS
from nas.latency.table import TablePrices, read_table
from nas.latency.target import Target, machine_name
from nas.latency.timing import timed
from nas.seeds import derive
from nas.space.architecture import Architecture, model_yaml
from nas.space.reader import find_space, read_space
from nas.space.search_space import SearchSpace
from nas.space.skeleton import Skeleton, read_skeleton
from nas.yolo.build import build, inference_form, parameters

COUNTED = 60
SCALES = "nsmlx"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="cuda:torch-fp16")
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--space", default="yolo11n-blocks")
    parser.add_argument("--limit", default="2ms")
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--held-out", type=int, default=20)
    parser.add_argument("--sample", type=int, default=20_000)
    parser.add_argument("--allow-noisy", action="store_true")
    parser.add_argument("--quick", action="store_true", help="10 + 4 architectures, two stock models, a sample of 500")
    parser.add_argument("--out", type=Path, help="[default: results/reference/latency-DEVICE]")
    options = parser.parse_args()
    if options.quick:
        options.count, options.held_out, options.sample = 10, 4, 500
    target = Target.parse(options.target).at(options.imgsz)
    target.require()
    device = next(iter(gpus().values())) if target.device == "cuda" else machine_name()
    slug = re.sub(r"[^a-z0-9]+", "-", f"{re.sub(r' [(].*', '', device)} {target.kind.partition(':')[2]}".lower()).strip("-")
    out = options.out or Path("results/reference") / f"latency-{slug}"
    out.mkdir(parents=True, exist_ok=True)

    space = read_space(find_space(options.space))
    calibration = calibration_set(space, options.imgsz, 0, options.count)
    held_out = drawn(space, options.imgsz, options.held_out, set(calibration), "held-out")
    log = Log(out / "table.csv", space.skeleton, target, device, options.allow_noisy)
    began = time.monotonic()
    log.measure(calibration)
    calibration_seconds = time.monotonic() - began
    log.measure(held_out)

    prices = TablePrices(read_table(out / "table.csv", space.skeleton), space)
    figures = {
        "device": device,
        "target": str(target),
        "space": options.space,
        "limit_ms": parse_latency(options.limit),
        "measured": len(prices.table.measured),
        "calibration_seconds": round(calibration_seconds, 1),
        "error_cross_validated": asdict(prices.model.error),
        **held_out_error(log.table(), space, calibration, held_out),
        **bought(space, prices, options.imgsz, options.sample, parse_latency(options.limit)),
        "models": stock_models(space.skeleton, target, 2 if options.quick else len(SCALES), options.allow_noisy),
    }
    (out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    text = readme(figures, options)
    (out / "README.md").write_text(text, encoding="utf-8")
    print(text)


def drawn(space: SearchSpace, imgsz: int, count: int, known: set[Architecture], what: str) -> list[Architecture]:
    """So many random architectures of the space that are not known, the same ones every time; fewer in a small space."""
    found: dict[Architecture, None] = {}
    for number in range(20 * count):
        if len(found) == count:
            break
        architecture = space.sample(random.Random(derive(0, number, what)), imgsz)
        if architecture is not None and architecture not in known:
            found[architecture] = None
    return list(found)


class Log:
    """A table that grows by what is measured: as `measure.py` writes it on a device without nas."""

    def __init__(self, path: Path, skeleton: Skeleton, target: Target, device: str, allow_noisy: bool) -> None:
        self._path, self._skeleton, self._target, self._allow_noisy = path, skeleton, target, allow_noisy
        self._probes = Probes(skeleton, [], (target.height, target.width), skeleton.nc, target.batch)
        runtime = f"{target.runtime} {version(target.runtime)} {target.kind}"
        self._about = {"device": device, "runtime": runtime, "threads": target.threads}
        rows = [f"row_{row}" for row in range(len(skeleton.rows))]
        said = [name for name in self._probes.entry(Architecture(skeleton.name)) if name != "file"]
        self._columns = [*said, *FIGURES, *self._about, *rows]

    def table(self) -> list[dict[str, str]]:
        if not self._path.is_file():
            return []
        with self._path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    def measure(self, architectures: list[Architecture]) -> None:
        known = {line["id"] for line in self.table()}
        for number, architecture in enumerate(architectures, 1):
            if architecture.id in known:
                continue
            try:
                latency, rows = measured(self._skeleton, architecture, self._target, self._allow_noisy)
            except Unstable as error:
                print(f"{number}/{len(architectures)} {architecture.id}: {error}", flush=True)
                continue
            figures = {name: getattr(latency, name) for name in FIGURES}
            marks = {name: int(figures[name]) for name in ("throttled", "noisy")}
            times = {f"row_{row}": ms for row, ms in (rows or {}).items()}
            self._append({**self._probes.entry(architecture), **figures, **marks, **self._about, **times})
            print(f"{number}/{len(architectures)} {architecture.id}: {latency.ms:.3f} ms", flush=True)

    def _append(self, line: dict[str, Any]) -> None:
        new = not self._path.is_file()
        with self._path.open("a", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, self._columns, restval="", extrasaction="ignore", lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(line)


def measured(skeleton: Skeleton, architecture: Architecture, target: Target, allow_noisy: bool) -> tuple[Any, Any]:
    """The latency of an architecture and of its rows."""
    torch.manual_seed(0)
    session = SESSIONS[target.kind](inference_form(build(model_yaml(skeleton, architecture))), target)
    session.run()
    return timed(session, target, allow_noisy=allow_noisy), session.rows()


def held_out_error(
    table: list[dict[str, str]], space: SearchSpace, calibration: list[Architecture], held_out: list[Architecture]
) -> dict[str, float]:
    """How well a model of the calibration set alone foresees the others."""
    path = Path("table.csv")
    ids = {a.id for a in calibration}
    known, new = ([line for line in table if (line["id"] in ids) == inside] for inside in (True, False))
    model = TablePrices(read_lines(path, known, space.skeleton), space).model
    by_id = {a.id: a for a in held_out}
    ms, low, high = model.predict([by_id[line["id"]] for line in new])
    truth = np.array([float(line["ms"]) for line in new])
    return {
        "held_out": len(new),
        "mape": float(np.mean(np.abs(ms / truth - 1)) * 100),
        "spearman": spearman(ms, truth),
        "within": float(np.mean((low <= truth) & (truth <= high))),
    }


def read_lines(path: Path, lines: list[dict[str, str]], skeleton: Skeleton) -> Any:
    """A table of some lines of another."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="nas-") as folder:
        part = Path(folder) / path.name
        with part.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(lines[0]))
            writer.writeheader()
            writer.writerows(lines)
        return read_table(part, skeleton)


def bought(space: SearchSpace, prices: TablePrices, imgsz: int, count: int, limit: float) -> dict[str, Any]:
    """What the limit leaves of the space."""
    sample = drawn(space, imgsz, count, set(), "sample")
    ms, low, high = prices.model.predict(sample)
    inside = [a for a, most in zip(sample, high, strict=True) if most <= limit]
    inside.sort(key=lambda a: -sum(p.channels**2 * p.depth for p in a.placements))
    counted = [(parameters(inference_form(build(model_yaml(space.skeleton, a)))), a) for a in inside[:COUNTED]]
    most, which = max(counted, key=lambda pair: pair[0], default=(None, None))
    return {
        "sample": len(sample),
        "sample_ms": dict(zip(("min", "median", "max"), map(float, np.quantile(ms, (0, 0.5, 1))), strict=True)),
        "share": float(np.mean(ms <= limit)),
        "share_certain": float(np.mean(high <= limit)),
        "share_possible": float(np.mean(low <= limit)),
        "most_params": most,
        "most_params_placements": None if which is None else which.describe(space.skeleton),
    }


def stock_models(skeleton: Skeleton, target: Target, count: int, allow_noisy: bool) -> list[dict[str, Any]]:
    """Every scale of the skeleton's family as it is: latency and parameters."""
    found = []
    for scale in SCALES[:count]:
        name = re.sub(r"(\d+)[nsmlx]", rf"\g<1>{scale}", skeleton.name)
        try:
            stock = read_skeleton(f"{name}.yaml")
            latency, _ = measured(stock, Architecture(stock.name), target, allow_noisy)
        except (InputError, Unstable) as error:
            print(f"{name}: {error}", flush=True)
            continue
        params = parameters(inference_form(build(model_yaml(stock, Architecture(stock.name)))))
        found.append({"model": stock.name, "ms": latency.ms, "low": latency.low, "high": latency.high, "params": params})
        print(f"{stock.name}: {latency.ms:.3f} ms", flush=True)
    return found


def readme(f: dict[str, Any], options: argparse.Namespace) -> str:
    limit = f["limit_ms"]
    command = f"scripts/latency_table.py --target {options.target} --imgsz {options.imgsz} --space {options.space}"
    lines = [
        f"# Latencies of {f['device']}: {f['space']} at {options.imgsz} px",
        "",
        f"    {command} --limit {options.limit}{' --quick' if options.quick else ''}",
        "",
        f"`table.csv` holds {f['measured']} architectures on {f['target']}.",
        "",
        "| latency model, from the calibration set alone | |",
        "|---|---|",
        f"| held-out architectures | {f['held_out']} |",
        f"| mean absolute error | {f['mape']:.1f}% |",
        f"| rank correlation (Spearman) | {f['spearman']:.3f} |",
        f"| inside their 90% interval | {f['within']:.0%} |",
        f"| measuring the calibration set | {f['calibration_seconds']:.0f} s |",
        "",
        f"## What {limit:g} ms buys",
        "",
        f"Of {f['sample']:,} random architectures of the space {f['share']:.0%} take at most {limit:g} ms ("
        f"{f['share_certain']:.0%} with their whole interval, {f['share_possible']:.0%} with a part of it); they take "
        f"{f['sample_ms']['min']:.2f} to {f['sample_ms']['max']:.2f} ms, half of them {f['sample_ms']['median']:.2f} or less.",
    ]
    if f["most_params"]:
        lines.append(f"The largest of the sample that is certainly inside has {f['most_params'] / 1e6:.2f} M parameters.")
    lines += ["", "| as it is | ms | parameters | |", "|---|---|---|---|"]
    for m in f["models"]:
        word = "inside" if m["ms"] <= limit else "over"
        lines.append(f"| {m['model']} | {m['ms']:.3f} | {m['params'] / 1e6:.2f} M | {word} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    try:
        main()
    except NasError as error:
        sys.exit(f"latency_table: {error}")
