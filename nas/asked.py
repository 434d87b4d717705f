"""What a search was asked to do, checked before anything is written: options become a configuration and what it names.

A resumed search, the probes of a space and a finished run on another target ask the same of data, checkpoints, block files
and targets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nas.blocks.catalog import BlockSpec
from nas.blocks.register import digest_of, file_of
from nas.blocks.user import load_blocks
from nas.config import Budget, RunConfig, parse_limits
from nas.dataset.builtin import BUILT_IN, builtin_dataset
from nas.dataset.description import Dataset, read_dataset
from nas.devices import image_size
from nas.errors import InputError, UnreachableError
from nas.hardware import cuda_devices
from nas.hosts import offer_of, place, trials_at_once
from nas.latency.site import Site, site
from nas.latency.table import read_table
from nas.latency.target import TABLE, Target
from nas.prior import Prior, read_prior
from nas.runs import folder as folders
from nas.space.reader import find_space, read_space
from nas.space.search_space import SearchSpace
from nas.space.skeleton import Skeleton
from nas.storage import parse_storage


@dataclass(frozen=True)
class Asked:
    """What a search was asked to do, all of it checked."""

    config: RunConfig
    space_file: Path
    space: SearchSpace
    files: list[Path]
    own: list[BlockSpec]
    dataset: Dataset
    digest: str | None
    notes: list[str]
    prior: Prior
    measured_on: Site


def check(
    *,
    data: str | Path | None,
    space: str | Path,
    budget: str,
    max_latency: str | None,
    max_params: str | None,
    max_macs: str | None,
    max_size: str | None,
    target: str,
    imgsz: int | None,
    device: str,
    executor: str,
    address: str | None,
    workers: int | None,
    gpus_per_trial: float,
    sampler: str,
    seed: int,
    weights: str | Path | None,
    imitate: bool | None,
    prior: str | Path | None,
    allow_noisy: bool,
    storage: str | None,
    blocks: str | Path | Sequence[str | Path],
    **settings: Any,
) -> Asked:
    """Everything that can be wrong with what was asked, before anything is written. Raises NasError."""
    if device not in {"auto", "cpu", "cuda"}:
        raise InputError(f"unknown device '{device}'", "give auto, cpu or cuda")
    executor, address = place(executor, address)
    cluster = offer_of(address, None if target.strip().startswith(f"{TABLE}:") else target) if address else None
    gpus = 0 if device == "cpu" else cluster.gpus if cluster else cuda_devices()
    if device == "cuda" and gpus == 0:
        raise UnreachableError(f"--device cuda: no CUDA device found{f' at {address}' * bool(address)}", "use --device cpu")
    at_once = trials_at_once(gpus_per_trial, cluster, workers, cuda=bool(gpus))
    path, files = find_space(str(space)), paths(blocks)
    own = load_blocks(*files)
    asked = read_space(path)
    dataset = dataset_of(BUILT_IN if data is None else str(data), asked.skeleton)
    checkpoint = None if weights is None else checkpoint_of(weights)
    imgsz = _image_size(target, asked.skeleton, imgsz, 192 if data is None else 640)
    there = cluster.site if cluster else None
    measured_on = there.at(imgsz) if there else site_of(target, imgsz)
    earlier: Prior = ()
    notes = [f"latency is measured on {measured_on}"]
    if prior is not None:
        before = folders.find_folder(str(prior))
        earlier = read_prior(before, asked)
        notes.append(
            f"{len(earlier)} architectures that {before} has trained inform the sampler; they are no trials of this run"
        )
    config = RunConfig(
        data=BUILT_IN if data is None else str(dataset.yaml),
        space=str(path.absolute() if Path(space).is_file() else space),
        budget=budget,
        target=str(measured_on.target),
        imgsz=imgsz,
        sampler=sampler,
        executor=executor,
        address=address,
        workers=at_once,
        lane=measured_on.host,
        elastic=cluster is not None and workers is None,
        gpus_per_trial=gpus_per_trial,
        device="cuda" if gpus else "cpu",
        seed=seed,
        allow_noisy=allow_noisy,
        weights=None if checkpoint is None else str(checkpoint),
        imitate=False if imitate is None and Budget.parse(budget).kind == "trials" else imitate,
        prior=None if prior is None else str(prior),
        storage=None if storage is None else parse_storage(storage),
        **parse_limits(max_latency, max_params, max_macs, max_size),
        **settings,
    )
    admit_blocks(own, asked)
    digest = None if checkpoint is None else digest_of_checkpoint(checkpoint)
    return Asked(config, path, asked, files, list(own), dataset, digest, notes, earlier, measured_on)


def paths(files: str | Path | Sequence[str | Path]) -> list[Path]:
    """One file or several."""
    return [Path(file) for file in ([files] if isinstance(files, str | Path) else files)]


def admit_blocks(own: Sequence[BlockSpec], space: SearchSpace) -> None:
    """Examine the user's blocks that a space may hold, before anything is paid for them. Raises InputError."""
    if not own:
        return
    words = {block for choices in space.slots for block in choices.blocks} | {row.module for row in space.skeleton.rows}
    used = [spec for spec in own if words & {spec.name, spec.row}]
    if not used:
        names = ", ".join(spec.name for spec in own)
        raise InputError(f"no slot of {space.source} may hold a block of {file_of(own[0])}", f"add one to a slot: {names}")
    from nas.blocks.exam import admit  # noqa: PLC0415  (torch)

    admit(used, space)


def load_again(folder: Path, files: Sequence[Path]) -> None:
    """Load a run's own copies of its block files, if `files` names each of them or the file that it is a copy of."""
    kept = {digest_of(path): path for path in folders.block_files(folder)}
    named = {digest_of(path): path for path in files}
    if strange := [path for digest, path in named.items() if digest not in kept]:
        raise InputError(f"{strange[0]} is no block file that {folder} began with", f"type: {folders.resume_command(folder)}")
    if missing := [path for digest, path in kept.items() if digest not in named]:
        what = f"{folder} needs the block file {missing[0].name}, whose code runs only if you name it"
        raise InputError(what, f"type: {folders.resume_command(folder)}")
    load_blocks(*kept.values())


def _image_size(target: str, skeleton: Skeleton, imgsz: int | None, default: int) -> int:
    """The image size of a search: what was asked for, else that of its table, else the default. Raises InputError."""
    if target.strip().startswith(f"{TABLE}:"):
        found = Target.parse(target)
        return image_size(read_table(Path(found.file), skeleton), imgsz, default)
    return default if imgsz is None else imgsz


def site_of(name: str, imgsz: int) -> Site:
    """A target that this machine can measure on, or a table by its absolute path, with its image size.

    Raises:
        InputError: it has no such name.
        UnreachableError: it is not there.
    """
    target = Target.parse(name)
    return site(str(replace(target, file=str(Path(target.file).absolute()))) if target.kind == TABLE else name).at(imgsz)


def dataset_of(name: str, skeleton: Skeleton) -> Dataset:
    """A dataset whose labels suit the skeleton's task. Raises InputError."""
    polygons = skeleton.task == "segment"
    if name == BUILT_IN:
        return read_dataset(builtin_dataset(polygons=polygons), polygons=polygons)
    return read_dataset(Path(name), polygons=polygons)


def checkpoint_of(name: str | Path) -> Path:
    """The file of a checkpoint, absolute; what is in it a worker looks at. Raises InputError."""
    path = Path(name).absolute()
    if path.suffix != ".pt":
        raise InputError(f"--weights {name}: not a checkpoint", "give a .pt file of Ultralytics, for example yolo11n.pt")
    if not path.is_file():
        hint = "correct the path" if Path(name).name != str(name) else "nas downloads nothing: fetch it first, or give its path"
        raise InputError(f"--weights {name}: no such file in {path.parent}", hint)
    return path


def digest_of_checkpoint(file: Path) -> str:
    """SHA-256 of a file. Raises InputError where it cannot be read."""
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}", "make it readable") from error
