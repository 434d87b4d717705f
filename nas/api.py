"""`nas.search(...)`, `nas.resume(...)` and `nas.load(...)`: what the command line calls, for Python programs.

No torch in this process: what needs it runs in workers.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nas.asked import check, checkpoint_of, dataset_of, digest_of_checkpoint, load_again, paths, site_of
from nas.blocks.user import load_blocks
from nas.config import Budget, parse_latency
from nas.errors import InputError, NasError, StartError
from nas.hosts import placed_again
from nas.latency.calibrate import calibration_set
from nas.latency.probes import Probes, minutes, seconds_per_probe, write_probes
from nas.latency.table import MIN_ROWS
from nas.latency.target import TABLE, Target, parse_imgsz
from nas.origin import other_machine, other_versions
from nas.reprice import Repriced
from nas.reprice import reprice as repriced
from nas.resumable import refuse_changes
from nas.review.progress import Progress, Quiet
from nas.run import Run, writing
from nas.runs import folder as folders
from nas.runs.inputs import described, write_inputs
from nas.runs.place import place_of
from nas.runs.store import STORE_ERRORS, Store
from nas.session import run_session
from nas.space.reader import find_space, read_space
from nas.storage import parse_storage


def load(run: str | Path | None = None) -> Run:
    """A run by folder or name; the latest in `results/` where None. Raises InputError."""
    return Run(folders.find_folder(None if run is None else str(run)))


def search(
    *,
    data: str | Path | None = None,
    space: str | Path = "yolo11n-blocks",
    budget: str = "30min",
    max_latency: str | None = None,
    max_params: str | None = None,
    max_macs: str | None = None,
    max_size: str | None = None,
    target: str = "auto",
    imgsz: int | None = None,
    device: str = "auto",
    executor: str = "local",
    address: str | None = None,
    workers: int | None = None,
    gpus_per_trial: float = 1.0,
    sampler: str = "front",
    seed: int = 0,
    weights: str | Path | None = None,
    imitate: bool | None = None,
    prior: str | Path | None = None,
    allow_noisy: bool = False,
    storage: str | None = None,
    name: str | None = None,
    blocks: str | Path | Sequence[str | Path] = (),
    command: str | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Run:
    """Search and return the run; its files lie in `results/NAME`.

    Args:
        data: an Ultralytics dataset YAML, for a segmentation skeleton one of polygons; the built-in set where None.
        space: a search space YAML, or the name of a shipped one.
        budget: `64gpu-h`, `30gpu-min`, `2h`, `30min` or `20trials`.
        max_latency: `2ms`, `800us`: a hard limit.
        max_params: `3M`: likewise on the parameters of the fused model.
        max_macs: `4G`: likewise on the multiply-adds of one image.
        max_size: `10MB`: likewise on the weights as the target stores them, which is what the exported file weighs.
        imgsz: side of the square input; 640, for the built-in set its own 192.
        target: what latency is measured on, see `nas.latency.target`; at `imgsz` unless it names an image size.
        device: `auto`, `cpu` or `cuda`, what proxies train on.
        executor: `local` or `ray`.
        address: of a Ray cluster, which runs the trainings then: `auto` (one of this host), `HOST:PORT` of its head or
            `ray://HOST:PORT`. Where None, RAY_ADDRESS counts with `executor="ray"`.
        workers: trials trained at once; by default one per GPU, without a GPU one per core; of a cluster as many as it
            holds, also while its nodes come and go.
        gpus_per_trial: 0.25 lets four trials share a GPU, each in a process of its own; 2 trains each trial on two GPUs, with a
            process for each. A budget of device time is charged GPUs times seconds.
        weights: a checkpoint (.pt) of the skeleton; what an architecture kept of it starts from there, not from scratch.
        imitate: blocks learn from a teacher (`weights`, or one that is trained first), and architectures begin assembled. Where
            None, they do in a budget of time that pays for a teacher (`Teaching.pays`), and not in one of trials: that says
            what is to be trained, and a teacher is more.
        prior: a run whose results `front` learns from, of the same skeleton; its limit, device or data may differ.
        allow_noisy: count latencies of a machine that is not quiet too, instead of rejecting what cannot be measured well.
        storage: `postgresql://user:password@host:5432/database`, which holds the study, not `study.db`; other runs may lie
            there too. The password is written nowhere.
        blocks: files with blocks of your own; their code runs, here and in the workers.
        settings: `epochs`, `rungs`, `fraction` of the images, `batch`, `lr0`, `held_out` of the proxies; `confirm`, further
            seeds of the front; `stop_when_flat`, see `RunConfig`.

    Raises:
        NasError: see its children; nothing is lost by it.
    """
    asked = check(
        data=data,
        space=space,
        budget=budget,
        max_latency=max_latency,
        max_params=max_params,
        max_macs=max_macs,
        max_size=max_size,
        target=target,
        imgsz=imgsz,
        device=device,
        executor=executor,
        address=address,
        workers=workers,
        gpus_per_trial=gpus_per_trial,
        sampler=sampler,
        seed=seed,
        weights=weights,
        imitate=imitate,
        prior=prior,
        allow_noisy=allow_noisy,
        storage=storage,
        blocks=blocks,
        **settings,
    )
    command = command or "nas.search(…)"
    folder, config = folders.new_folder(name), asked.config
    if config.storage is not None:
        config = replace(config, study=f"{folder.name}-{secrets.token_hex(4)}")
    with folders.removed_on_failure(folder), writing(folder):
        folders.write_space(folder, asked.space_file)
        if asked.own:
            folders.write_blocks(folder, asked.own, asked.files)
        folders.write_config(folder, config, command)
        dataset, stamp = asked.dataset, asked.measured_on.stamp
        folders.write_manifest(folder, dataset.digest, dataset.names, stamp, asked.digest)
        write_inputs(folder, described(asked.space), dataset.files)
        Store(folder, create=True).close()
    with folders.removed_on_failure(folder, StartError), _study_removed_on_failure(folder, StartError):
        return run_session(folder, config, dataset, progress or Quiet(), command, asked.notes, asked.prior, stamp)


@contextlib.contextmanager
def _study_removed_on_failure(folder: Path, failure: type[Exception]) -> Iterator[None]:
    """Remove the study of a run whose folder is about to go: it may lie elsewhere."""
    try:
        yield
    except failure:
        # it may be a failure of the server that holds the study; the failure under way says more
        with contextlib.suppress(NasError, OSError, *STORE_ERRORS):
            place_of(folder).remove()
        raise


def dry_run(*, progress: Progress, **options: Any) -> list[str]:
    """What a search with these options of `search`, all of them, would find and could afford, in lines; see `nas.dry_run`.

    Raises:
        NasError: as the search would before it begins.
    """
    from nas.dry_run import forecast  # noqa: PLC0415  (a search pays for its own imports)

    asked = check(**options)
    blocks = [str(path.absolute()) for path in asked.files]
    stamp = asked.measured_on.stamp
    lines = forecast(asked.config, asked.space, asked.dataset, blocks, asked.digest, progress.say, stamp)
    return [*asked.notes, *lines]


def resume(
    run: str | Path,
    *,
    add_budget: str | None = None,
    storage: str | None = None,
    blocks: str | Path | Sequence[str | Path] = (),
    progress: Progress | None = None,
    **changes: Any,
) -> Run:
    """Go on with a run that was interrupted, killed or has spent its budget.

    Args:
        add_budget: more of the same kind of budget.
        storage: where the database of a run that was begun with one is now, or the same again, with its password.
        blocks: the block files that the run began with; its own copies, equal to them, are what runs.
        changes: fields of `RunConfig` that may change: `budget`, the limits (`max_latency_ms`, `max_params`, `max_gmacs`,
            `max_size_mb`), `workers`, `gpus_per_trial`, `executor`, `address`, `allow_noisy`.

    Raises:
        InputError: no such run, its dataset or checkpoint has changed, the budget is of another kind, a block file is not
            named, or the study is not in `storage`.
        UnreachableError: the database, or its Ray cluster, cannot be reached.
    """
    folder = folders.find_folder(str(run))
    config, command = folders.read_config(folder)
    config, there = placed_again(replace(config, **changes), changes)
    if add_budget is not None:
        config = replace(config, budget=Budget.parse(config.budget).plus(Budget.parse(add_budget)).text)
    if storage is not None:
        if config.storage is None:
            raise InputError(f"--storage: {folder} keeps its study in its own folder", "leave it out")
        config = replace(config, storage=parse_storage(storage))
    measured_on = there.at(config.imgsz) if there else site_of(config.target, config.imgsz)
    config = replace(config, target=str(measured_on.target))
    load_again(folder, paths(blocks))
    manifest, own = folders.read_manifest(folder), read_space(folder / "space.yaml")
    dataset = dataset_of(config.data, own.skeleton)
    refuse_changes(folder, config, own, dataset)
    if config.weights is not None and digest_of_checkpoint(checkpoint_of(config.weights)) != manifest.get("weights_digest"):
        raise InputError(f"{config.weights}: has changed since {folder} began", "restore the file, or start a new run")
    if other := other_machine(manifest, measured_on):
        what = f"{folder} has measured latencies on {'; '.join(other)}: the two cannot be compared"
        raise InputError(what, f"go on with it where it began, or begin a new run that learns from it: --from {folder}")
    notes = [f"latency is measured on {measured_on}"] if there else []
    notes += (
        [f"{folder} began with {'; '.join(other)}: results may differ a little"] if (other := other_versions(manifest)) else []
    )
    return run_session(folder, config, dataset, progress or Quiet(), command, notes, stamp=measured_on.stamp)


def probes(
    out: str | Path,
    *,
    space: str | Path = "yolo11n-blocks",
    imgsz: int | str = 640,
    data: str | Path | None = None,
    count: int = 40,
    seed: int = 0,
    blocks: str | Path | Sequence[str | Path] = (),
    say: Callable[[str], None] = lambda _: None,
) -> list[str]:
    """Write a folder of probe models to measure on another device; returns what to know about it, in words.

    Args:
        out: the folder; what an interrupted call has written into it stays.
        space: the search space that the device's latencies are wanted for.
        imgsz: of the input, `640` or height x width, `384x640`.
        data: a dataset YAML, for its number of classes; that of the skeleton where None.
        count: how many models; more make better predictions.
        blocks: files with blocks of your own; their code runs.
        say: told of every model that is written.

    Raises:
        InputError: see `nas.latency.probes.write_probes`; also where the space is too small to learn from.
    """
    folder, size = Path(out), parse_imgsz(str(imgsz))
    load_blocks(*paths(blocks))
    found = read_space(find_space(str(space)))
    nc = found.skeleton.nc if data is None else dataset_of(str(data), found.skeleton).nc
    chosen = calibration_set(found, max(size), seed, count)
    if len(chosen) < MIN_ROWS:
        what = f"{found.source} has {len(chosen)} architectures, a latency model needs {MIN_ROWS}"
        raise InputError(what, "add choices to it")
    wanted = Probes(found.skeleton, chosen, size, nc)
    weight = write_probes(folder, wanted, say=say)
    quick, slow = (minutes(len(chosen) * seconds_per_probe(ms)) for ms in (10, 100))
    return [
        f"{len(chosen)} probes, {weight / 1e6:.0f} MB; what to do with them stands in {folder / 'README.txt'}",
        f"measuring takes about {quick} where an inference takes 10 ms, {slow} where it takes 100 ms",
    ]


def reprice(
    run: str | Path | None,
    target: str,
    *,
    max_latency: str | None = None,
    blocks: str | Path | Sequence[str | Path] = (),
    say: Callable[[str], None] = lambda _: None,
) -> Repriced:
    """A finished run on another target: its trained architectures priced there, and its front redrawn without training.

    Args:
        run: by folder or name; the latest where None.
        target: as for a search; of a table, only the CSV is needed.
        max_latency: the limit there; the run's own where None.
        blocks: the block files that the run began with, to be named again where models are measured.
        say: told of every measurement.

    Raises:
        NasError: see `nas.reprice.reprice`; also where a limit or a block file cannot be used.
    """
    found = load(run)
    measured_on = Target.parse(target)
    if measured_on.kind != TABLE:
        measured_on = measured_on.at(Target.parse(found.config.target).imgsz or found.config.imgsz)
        load_again(found.folder, paths(blocks))
    limits = found.config.limits
    if max_latency is not None:
        limits = replace(limits, ms=parse_latency(max_latency))
    return repriced(found, measured_on, limits, say)


__all__: Sequence[str] = ("Repriced", "Run", "load", "probes", "reprice", "resume", "search")
