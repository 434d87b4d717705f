#!/usr/bin/env python
"""The trained architectures of a run as a table for `nas search --simulate` and `bench_samplers.py`.

    scripts/table_of_run.py RUN/trials.csv OUT.csv

A row per trial that is done: its id, then for every slot that any of them changes its block, width, depth and heads where
these vary, `acc` (mAP50-95, 0 to 1), `lat` (ms) and the `seconds` that its training took. The first row is the baseline.
"""

from __future__ import annotations

import argparse
import csv
import re
from pathlib import Path

SLOT = "slot."
WORD = re.compile(r"([wdh])([\d.]+)$")
OWN = {"w": "1", "d": "", "h": ""}  # what is not written is the skeleton's own


def properties(text: str) -> dict[str, str]:
    """`irmb w0.75 h4` -> block irmb, w 0.75, d "", h 4, and knobs by their names."""
    block, *words = text.split()
    found = {"block": block, **OWN}
    for word in words:
        match = WORD.match(word)
        name, _, value = word.partition("=")
        found |= {match[1]: match[2]} if match else {f"{block}.{name}": value}
    return found


def table(trials: list[dict[str, str]]) -> list[list[str]]:
    """Head and rows."""
    done = [trial for trial in trials if trial["state"] == "done"]
    placed = [{s: properties(trial[s]) for s in trial if s.startswith(SLOT)} for trial in done]
    names = sorted({(slot, name) for row in placed for slot, found in row.items() for name in found})
    varying = [(s, n) for s, n in names if len({row[s].get(n, "") for row in placed}) > 1]
    head = ["id", *(f"{slot.removeprefix(SLOT)}.{name}" for slot, name in varying), "acc", "lat", "seconds"]
    rows = [
        [trial["id"], *(row[s].get(n, "") for s, n in varying), trial["map"], trial["latency_ms"], trial["seconds"]]
        for trial, row in zip(done, placed, strict=True)
    ]
    return [head, *rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trials", type=Path, metavar="RUN/trials.csv")
    parser.add_argument("out", type=Path, metavar="OUT.csv")
    options = parser.parse_args()
    with options.trials.open(newline="", encoding="utf-8") as file:
        rows = table(list(csv.DictReader(file)))
    with options.out.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    print(f"{len(rows) - 1} architectures, {len(rows[0]) - 4} features: {options.out}")


if __name__ == "__main__":
    main()
