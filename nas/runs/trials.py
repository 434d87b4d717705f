"""What a trial leaves on disk, `trials/NNNN/` of a run folder: its weights, the state of a training that may go on, and
why it failed."""

from __future__ import annotations

import shutil
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nas.runs.store import Entry
from nas.search.front import front_indices

SPARE = 10  # beside the front so many of those nearest to it keep their weights until the end


@dataclass(frozen=True)
class PostMortem:
    """Why an attempt ended without a result.

    Attributes:
        attempt: which of the trial's, from 1; 0 is its pricing.
        kind: the class of the failure.
        reason: in one line.
        seconds: that it ran.
        then: what was done about it.
        final: whether the trial has ended with it.
        detail: the last lines.
    """

    attempt: int
    kind: str
    reason: str
    seconds: float
    then: str
    final: bool
    detail: str = ""

    def __str__(self) -> str:
        what = f"attempt {self.attempt}" if self.attempt else "pricing"
        said = f"{what}: {self.kind} after {self.seconds:.1f} s: {self.reason}\n{self.then}"
        return f"{said}\n\n{self.detail}" if self.detail else said


class TrialFolders:
    """The folders of all trials of a run.

    Weights stay of the trials on the front, and of the baseline; until the end also of those nearest to the front in mAP, which
    repeated trainings and measurements may yet bring there: how far these move a trial is not known beforehand.

    Args:
        run: the run folder.
    """

    def __init__(self, run: Path) -> None:
        self._run = run
        self._front: list[Entry] = []
        self._maps: list[float] = []  # of the front, fastest first
        self._latencies: list[float] = []
        self._done: dict[int, Entry] = {}
        self._near: dict[int, Entry] = {}

    def folder(self, number: int) -> Path:
        """Where a trial's files are; it may not exist."""
        return self._run / "trials" / f"{number:04d}"

    def state(self, number: int, repeat: int = 0) -> Path:
        """What an interrupted or paused training goes on from."""
        return self.folder(number) / (f"repeat{repeat}.safetensors" if repeat else "training.safetensors")

    def weights(self, number: int) -> Path:
        """The trained weights as an Ultralytics checkpoint."""
        return self.folder(number) / "weights.pt"

    @property
    def front(self) -> Sequence[Entry]:
        """The trials that are done, within the limits, and dominated by none."""
        return self._front

    def ended(self, entry: Entry, *, feasible: bool) -> None:
        """A trial is done, or is known better: weights that are no longer of use go."""
        self.state(entry.number).unlink(missing_ok=True)
        if not feasible:
            self._forget([] if entry.architecture.is_skeleton else [entry])
            return
        again = entry.number in self._done
        self._done[entry.number] = entry
        self._near.pop(entry.number, None)
        known = list(self._done.values()) if again else [*self._front, entry]
        before = self._front
        self._front = [known[index] for index in front_indices([e.map for e in known], [_ms(e) for e in known])]
        self._maps, self._latencies = [e.map for e in self._front], [_ms(e) for e in self._front]
        candidates = known if again or self._front != before else [entry]  # beside the same front, others are where they were
        self._near |= {e.number: e for e in candidates if not e.architecture.is_skeleton and self._has_weights(e)}
        members = {e.number for e in self._front}
        spare = sorted((e for e in self._near.values() if e.number not in members), key=self._behind)
        self._drop(spare[SPARE:])

    def settle(self) -> None:
        """Nothing more is to come: weights stay of the front, and of the baseline, alone."""
        members = {e.number for e in self._front}
        self._drop([e for e in self._near.values() if e.number not in members])

    def _has_weights(self, entry: Entry) -> bool:
        return entry.number in self._near or self.weights(entry.number).is_file()

    def _behind(self, entry: Entry) -> float:
        """By how much mAP the best of the front that is no slower is ahead of a trial."""
        fast = bisect_right(self._latencies, _ms(entry))
        return self._maps[fast - 1] - entry.map if fast else 0.0

    def _drop(self, entries: Sequence[Entry]) -> None:
        self._forget(entries)
        for entry in entries:
            del self._near[entry.number]

    def dominated(self, score: float, latency_ms: float) -> bool:
        """Whether a trial that is on the front by now is as good and as fast."""
        fast = bisect_right(
            self._latencies, latency_ms
        )  # along the front mAP rises with latency: the last of these is the best
        return fast > 0 and self._maps[fast - 1] >= score

    def log(self, number: int) -> Path:
        """What its trainings print."""
        return self.folder(number) / "worker.log"

    def post_mortem(self, number: int, died: PostMortem) -> None:
        """Keep why an attempt ended without a result, after those of earlier ones. Raises OSError."""
        if died.final:
            self.state(number).unlink(missing_ok=True)  # it would only diverge again
        self.folder(number).mkdir(parents=True, exist_ok=True)
        with (self.folder(number) / "post-mortem.txt").open("a", encoding="utf-8") as file:
            file.write(f"{died}\n\n")

    def export(self, number: int, path: Path) -> bool:
        """Copy a trial's weights; whether there were any. Raises OSError."""
        if not self.weights(number).is_file():
            return False
        shutil.copyfile(self.weights(number), path)
        return True

    def _forget(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            self.weights(entry.number).unlink(missing_ok=True)
            if self.folder(entry.number).is_dir() and not any(self.folder(entry.number).iterdir()):
                self.folder(entry.number).rmdir()


def _ms(entry: Entry) -> float:
    """Of a trial that is done: it was priced."""
    return float((entry.price or {})["ms"])
