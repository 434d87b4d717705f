"""Whose weights stay: of the front, and of what may yet come to it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nas.runs import trials
from nas.runs.store import Entry
from nas.runs.trials import TrialFolders
from nas.space.architecture import Architecture, Placement


def trained(folders: TrialFolders, number: int, accuracy: float, ms: float) -> Entry:
    """A trial that is done, with weights."""
    placed = (Placement("backbone.P4", 6, "repvit", 64 + number, 1),)
    folders.weights(number).parent.mkdir(parents=True)
    folders.weights(number).write_bytes(b"weights")
    return Entry(number, Architecture("yolo11n", placed), "done", None, {"ms": ms}, ({"map": accuracy},))


@pytest.fixture
def folders(tmp_path: Path) -> TrialFolders:
    return TrialFolders(tmp_path)


def kept(folders: TrialFolders) -> set[int]:
    return {number for number in range(4) if folders.weights(number).is_file()}


def test_weights_of_the_front_and_of_what_is_close_to_it_stay_until_the_end(
    folders: TrialFolders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "SPARE", 1)
    entries = [trained(folders, n, m, ms) for n, (m, ms) in enumerate([(0.40, 1.0), (0.39, 1.0), (0.36, 2.0), (0.5, 3.0)])]
    for entry in entries:
        folders.ended(entry, feasible=True)
    assert [e.number for e in folders.front] == [0, 3] and kept(folders) == {0, 1, 3}  # 2 is farther behind
    unlucky = replace(entries[0], repeats=({"map": 0.30},))
    folders.ended(unlucky, feasible=True)  # its second training: the mean is .35, so 1 is ahead of it, and 2 of nobody
    assert [e.number for e in folders.front] == [1, 3] and kept(folders) == {0, 1, 3}
    folders.settle()
    assert kept(folders) == {1, 3}


def test_what_is_over_a_limit_loses_its_weights_at_once(folders: TrialFolders) -> None:
    folders.ended(trained(folders, 0, 0.4, 1.0), feasible=False)
    assert kept(folders) == set() and list(folders.front) == []
