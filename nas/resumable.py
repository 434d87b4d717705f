"""Whether a run can be gone on with: its space and its data must be those that it began with."""

from __future__ import annotations

from pathlib import Path

from nas.config import RunConfig
from nas.dataset.description import Dataset
from nas.errors import InputError
from nas.runs import folder as folders
from nas.runs.inputs import data_changes, described, read_inputs, space_changes
from nas.space.reader import read_space
from nas.space.search_space import SearchSpace


def refuse_changes(folder: Path, config: RunConfig, own: SearchSpace, dataset: Dataset) -> None:
    """Raises InputError, with the difference, where the space or the data are not those that a run began with.

    The space is the run's own copy; where the user's file is still there and says something else, what is wanted is unclear.
    """
    kept = read_inputs(folder)
    if kept is not None:
        files = [folder / "space.yaml"]
        if Path(
            config.space
        ).is_file():  # it may be gone, and one that came with nas may be another by now: the run has its own
            files.append(Path(config.space))
        for file in files:
            found = own if file.parent == folder else read_space(file)
            if changes := space_changes(kept[0], described(found)):
                what = f"{file}: the space has changed since {folder} began:" + "".join(f"\n  {line}" for line in changes)
                raise InputError(what, "restore it, or start a new run, which can learn from this one: --from")
    manifest = folders.read_manifest(folder)
    if dataset.digest != manifest["data_digest"]:
        changes = [] if kept is None else data_changes(kept[1], dataset.files)
        if list(dataset.names) != manifest["classes"]:
            changes.append(f"classes: {', '.join(dataset.names)}, were {', '.join(manifest['classes'])}")
        what = f"{dataset.yaml}: has changed since {folder} began" + "".join(f"\n  {line}" for line in changes)
        raise InputError(what, "restore the data, or start a new run")
