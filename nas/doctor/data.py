"""A dataset: whether it can be trained on, and whether it is still what a run began with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from nas.dataset.builtin import BUILT_IN, builtin_dataset, is_built
from nas.dataset.description import read_dataset
from nas.doctor.finding import Finding
from nas.run import Run
from nas.runs.folder import read_manifest

SHOWN = 3


def dataset(yaml: Path, run: Run | None = None) -> Iterator[Finding]:
    """What is in it and what is wrong with it. Raises InputError where it cannot be used.

    Args:
        yaml: the dataset YAML.
        run: whose data it should be.
    """
    found = read_dataset(yaml, polygons=run is not None and run.space.skeleton.task == "segment")
    parts = ", ".join(
        f"{len(images)} {split}" for split, images in (("train", found.train), ("val", found.val), ("test", found.test))
    )
    yield Finding("data", "ok", f"{found.yaml}: classes: {found.nc}; images: {parts}")
    if found.problems:
        first, *more = found.problems
        shown = more[: SHOWN - 1] + ["…"] * (len(found.problems) > SHOWN)
        yield Finding("data", "note", f"{len(found.problems)} tolerated: {first}", "\n".join(shown))
    if run is not None and found.digest != read_manifest(run.folder)["data_digest"]:
        cure = "restore the data to go on with the run, or start a new run"
        yield Finding("data", "fault", f"{found.yaml}: has changed since {run.folder} began", cure)


def data_of(run: Run) -> Iterator[Finding]:
    """The run's own data, where they are still there."""
    named = run.config.data
    if named != BUILT_IN:
        if Path(named).exists():
            yield from dataset(Path(named), run)
        else:
            yield Finding("data", "note", f"{named} is not there any more", "the run can be looked at, but not gone on with")
        return
    polygons = run.space.skeleton.task == "segment"
    if is_built(polygons=polygons):
        yield from dataset(builtin_dataset(polygons=polygons), run)
    else:
        yield Finding("data", "ok", "the built-in set: not in the cache, made when it is needed")
