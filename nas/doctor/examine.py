"""All checks in their order: the machine, the cluster, the disks, data, the run, the cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from nas.cache import cache_root
from nas.doctor.cluster import cluster
from nas.doctor.data import dataset
from nas.doctor.finding import Finding, guarded, mended
from nas.doctor.leftovers import caches
from nas.doctor.machine import disk, shared_memory, software, targets
from nas.doctor.run import examine_run
from nas.errors import InputError
from nas.runs.folder import RESULTS, find_folder


def examine(
    run: str | None = None, *, data: str | None = None, address: str | None = None, repair: bool = False
) -> Iterator[Finding]:
    """What is found, one by one; each is mended before the next is looked for, where `repair` says so.

    Args:
        run: by folder or name; the latest, if there is one, where None: its data are then left aside.
        data: a dataset YAML; of a run it stands for the run's own.
        address: of a Ray cluster; RAY_ADDRESS where None.
        repair: mend what can be mended without harm.

    Raises:
        InputError: no such run.
    """
    folder = None if run is None else _folder(run)
    yield from guarded("packages", software)
    yield from guarded("targets", targets)
    yield from guarded("ray", lambda: cluster(address))
    results = RESULTS if folder is None else folder
    yield from guarded("disk", lambda: disk("results", results, "run nas in a folder on another disk"))
    yield from guarded("disk", lambda: disk("cache", cache_root(), "set NAS_CACHE to a folder on another disk"))
    yield from guarded("disk", shared_memory)
    yaml = None if data is None else Path(data)
    if yaml is not None and folder is None:
        yield from guarded("data", lambda: dataset(yaml))
    yield from guarded("run", lambda: _run(folder, yaml, repair))
    for finding in guarded("cache", caches):
        yield mended(finding) if repair else finding


def _run(named: Path | None, data: Path | None, repair: bool) -> Iterator[Finding]:
    """The run that was named, with its data, or the latest."""
    try:
        folder = find_folder(None) if named is None else named
    except InputError as error:
        yield Finding("run", "ok", error.message)
        return
    yield from examine_run(folder, data=data, with_data=named is not None, repair=repair)


def _folder(name: str) -> Path:
    """As `find_folder`; also one that has lost its run.yaml. Raises InputError."""
    try:
        return Path(name) if (Path(name) / "study.db").is_file() else find_folder(name)
    except OSError as error:
        raise InputError(f"'{name[:80]}': {error.strerror}", "give the folder of a run, for example results/search") from error
