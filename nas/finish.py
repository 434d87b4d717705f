"""`nas train`: an architecture of a run trained in full by Ultralytics' trainer, on from the weights that the run kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nas.blocks.user import load_blocks
from nas.dataset.builtin import BUILT_IN, builtin_dataset
from nas.dataset.description import read_dataset
from nas.errors import InputError
from nas.outcome import winner_of
from nas.review.record import Record, baseline_of, milliseconds
from nas.run import Run
from nas.runs.folder import find_folder
from nas.runs.trials import TrialFolders
from nas.space.architecture import model_yaml
from nas.space.source import read_yaml


@dataclass(frozen=True)
class Finished:
    """What came out.

    Args:
        weights: the best checkpoint of the training.
        began: what it began with, in words.
        score: mAP50-95 on `val`.
        baseline_score: likewise, of the baseline's weights that the run has; None where it has none.
        baseline_words: what these are.
    """

    record: Record
    baseline: Record | None
    weights: Path
    began: str
    epochs: int
    metric: str
    score: float
    baseline_score: float | None
    baseline_words: str

    @property
    def lines(self) -> list[str]:
        """For people."""
        latency = milliseconds(self.record.latency_ms) if self.record.latency_ms is not None else "latency unknown"
        told = [f"{self.record.id}: {self.metric} {self.score:.4f} on val, {latency}, after {self.epochs} epochs {self.began}"]
        if self.baseline is not None and self.baseline_score is not None:
            own = milliseconds(self.baseline.latency_ms) if self.baseline.latency_ms is not None else "latency unknown"
            told.append(f"baseline: {self.metric} {self.baseline_score:.4f} on val, {own}; {self.baseline_words}")
        return [*told, f"weights: {self.weights}"]


def finish(
    run: str | None,
    *,
    epochs: int,
    pick: str | None = None,
    random_init: bool = False,
    device: str | None = None,
    blocks: Sequence[str | Path] = (),
    say: Callable[[str], None] = lambda _: None,
) -> Finished:
    """Train an architecture of a run.

    Args:
        run: by folder or name, or by a model YAML that was written to its folder; the latest where None.
        pick: knee, fastest, best, an architecture id or a trial number; the run's winner where None.
        random_init: begin with drawn weights, even if the run kept trained ones.
        device: as Ultralytics takes it.
        blocks: the user's block files that the architecture needs; their code runs.
        say: told what the training begins with, before it does.

    Raises:
        InputError: no such run or trial, or there is nothing to train on.
    """
    if epochs < 1:
        raise InputError(f"--epochs {epochs}", "give a whole number from 1 on")
    load_blocks(*[str(Path(file).absolute()) for file in blocks])
    found, record = chosen(run, pick)
    written = found.export(str(record.trial))
    start = written[0] if random_init or len(written) == 1 else written[1]
    data = (
        builtin_dataset(polygons=found.space.skeleton.task == "segment")
        if found.config.data == BUILT_IN
        else Path(found.config.data)
    )
    read_dataset(data, polygons=found.space.skeleton.task == "segment")  # says what is wrong before Ultralytics does
    began = f"from {start.name}" if start.suffix == ".pt" else "from drawn weights"
    why = "" if random_init or start.suffix == ".pt" else f": {found.folder} kept the weights of its front and baseline alone"
    say(f"{record.id} is trained for {epochs} epochs, {began}{why}")
    from nas.yolo.full import map_on_val, train_full  # noqa: PLC0415  (torch)

    size, folder = found.config.imgsz, found.folder / "train" / record.id
    how = {"data": data, "imgsz": size, "device": device}
    best = train_full(start, epochs=epochs, seed=found.config.seed, folder=folder, **how)  # type: ignore[arg-type]
    score = map_on_val(best, folder=folder / "val", **how)  # type: ignore[arg-type]
    own, words = _baseline_weights(found)
    baseline = map_on_val(own, folder=folder / "val-baseline", **how) if own is not None else None  # type: ignore[arg-type]
    return Finished(record, baseline_of(found.records), best, began, epochs, found.summary.metric, score, baseline, words)


def chosen(run: str | None, pick: str | None) -> tuple[Run, Record]:
    """The run and the trial that somebody means.

    Raises:
        InputError: no such run or trial; a model YAML that is no run's, or no longer as it was written.
    """
    path = Path(run or "")
    if path.suffix not in {".yaml", ".yml"} or not path.is_file():
        found = Run(find_folder(run))
        if pick is None and (winner := winner_of(found.records, found.config.max_latency_ms)) is not None:
            pick = winner.id
        return found, found.pick(pick or "best")
    cure = f"train it with: nas yolo train model={run} data=…"
    if pick is not None:
        raise InputError(f"{run} is one architecture: there is nothing to --pick", "leave out --pick, or name the run")
    folder = next((parent for parent in path.absolute().parents if (parent / "run.yaml").is_file()), None)
    if folder is None:
        raise InputError(f"{run}: in no run folder, so without weights, data and a baseline", cure)
    found, model = Run(folder), json.dumps(read_yaml(path).data, sort_keys=True)
    skeleton, nc = found.space.skeleton, len(found.summary.classes)
    done = (entry for entry in found.entries if entry.state == "done")
    same = (e for e in done if json.dumps(model_yaml(skeleton, e.architecture, nc), sort_keys=True) == model)
    if (entry := next(same, None)) is None:
        raise InputError(f"{run}: no finished trial of {folder} is this architecture", cure)
    return found, found.pick(str(entry.number))


def _baseline_weights(run: Run) -> tuple[Path | None, str]:
    """The best weights of the skeleton that a run has, and what they are."""
    teacher = run.store.fact("teacher")
    path = None if teacher is None else Path(teacher["path"] or run.folder / "teacher.pt")
    if path is not None and path.is_file():
        return path, "the teacher of the search"
    kept = TrialFolders(run.folder).weights(0)
    return (kept, f"its proxy ({run.summary.fidelity})") if kept.is_file() else (None, "")
