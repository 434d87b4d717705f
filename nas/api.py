"""`nas.search(...)` and `nas.load(...)`: what the command line calls, for Python programs. No torch in this process."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from nas.cache import cache_root
from nas.config import Budget, RunConfig, parse_latency
from nas.dataset.description import Dataset, read_dataset
from nas.errors import InputError
from nas.execution.executor import Executor
from nas.execution.work import TrainJob
from nas.export import write_winner
from nas.hardware import cuda_devices, default_workers, threads_per_worker, worker_environment
from nas.latency.cache import LatencyCache
from nas.latency.target import Target
from nas.outcome import architecture_of, records_of, summary_of, write_report, write_tables
from nas.review.progress import Progress, Quiet
from nas.review.record import Record, RunSummary
from nas.review.table import front_of, picks_of
from nas.runs import folder as folders
from nas.runs.ledger import Ledger
from nas.runs.store import Entry, Store
from nas.seeds import derive
from nas.space.reader import find_space, read_space
from nas.space.search_space import SearchSpace
from nas.study import Study


@dataclass(frozen=True)
class Run:
    """A run folder, finished or not: its trials, its front, its exports.

    `stopped_because` is known for the search that this process ran.
    """

    folder: Path
    stopped_because: str = ""

    @cached_property
    def config(self) -> RunConfig:
        return folders.read_config(self.folder)[0]

    @cached_property
    def space(self) -> SearchSpace:
        return read_space(self.folder / "space.yaml")

    @cached_property
    def entries(self) -> list[Entry]:
        return Store(self.folder, create=False).entries

    @cached_property
    def records(self) -> list[Record]:
        """One per trial."""
        return records_of(self.entries, self.space.skeleton, self.config.max_latency_ms)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        return tuple(folders.read_manifest(self.folder)["classes"])

    @cached_property
    def summary(self) -> RunSummary:
        store = Store(self.folder, create=False)
        ledger = Ledger(Budget.parse(self.config.budget), store)
        return summary_of(
            self.folder.name,
            self.config,
            folders.read_config(self.folder)[1],
            self.classes,
            self.space.skeleton,
            self.entries,
            device_seconds=ledger.device_seconds(),
            wall_seconds=ledger.wall_seconds,
            stopped_because=self.stopped_because or store.fact("stopped_because") or "not ended",
        )

    @property
    def front(self) -> list[Record]:
        """The non-dominated feasible trials, fastest first."""
        return front_of(self.records)

    def pick(self, which: str) -> Record:
        """A finished trial: `knee`, `fastest`, `best`, an architecture id (or its start) or a trial number.

        Raises:
            InputError: no such trial, or no front yet.
        """
        named = picks_of(self.front)
        if which in {"knee", "fastest", "best"}:
            if which not in named:
                raise InputError(f"{self.folder} has no front", "no feasible trial has finished; give it more budget")
            return named[which]
        done = [r for r in self.records if r.state == "done"]
        found = [r for r in done if which == str(r.trial) or (len(which) >= 4 and r.id.startswith(which))]
        if len(found) != 1:
            problem = "is not unique" if found else "is no finished trial"
            raise InputError(f"'{which}' {problem} of {self.folder}", "give knee, fastest, best, an id or a trial number")
        return found[0]

    def export(self, which: str) -> Path:
        """Write `export/<id>/<skeleton>-<id>.yaml` of a pick and return its path."""
        record = self.pick(which)
        path = self.folder / "export" / record.id / f"{record.id}.yaml"
        architecture = architecture_of(self.entries, record)
        with _writing(self.folder):
            path.parent.mkdir(parents=True, exist_ok=True)
            nc = len(self.classes)
            write_winner(path, self.space.skeleton, architecture, nc, record=record, summary=self.summary)
        return path

    def report(self) -> None:
        """Write all result files anew from the store."""
        with _writing(self.folder):
            write_report(self.folder, self.records, self.summary, self.space, self.entries, len(self.classes))


def load(run: str | Path | None = None) -> Run:
    """A run by folder or name; the latest in `results/` where None. Raises InputError."""
    return Run(folders.find_folder(None if run is None else str(run)))


def search(
    *,
    data: str | Path | None = None,
    space: str | Path = "yolo11n-blocks",
    budget: str = "30min",
    max_latency: str | None = None,
    target: str = "auto",
    imgsz: int = 640,
    device: str = "auto",
    executor: str = "local",
    workers: int | None = None,
    sampler: str = "tpe",
    seed: int = 0,
    name: str | None = None,
    command: str | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Run:
    """Search and return the run; its files lie in `results/NAME`.

    Args:
        data: an Ultralytics detection dataset YAML; the built-in set where None.
        space: a search space YAML, or the name of a shipped one.
        budget: `64gpu-h`, `30gpu-min`, `2h`, `30min` or `20trials`.
        max_latency: `2ms`, `800us`: the hard limit.
        target: what latency is measured on, see `nas.latency.target`.
        device: `auto`, `cpu` or `cuda`, what proxies train on.
        executor: `local` or `ray`.
        workers: trials trained at once; by default one per GPU, without a GPU one per core.
        settings: `epochs`, `batch`, `lr0`, `held_out` of the proxy trainings.

    Raises:
        NasError: see its children; nothing is lost by it.
    """
    if device not in {"auto", "cpu", "cuda"}:
        raise InputError(f"unknown device '{device}'", "give auto, cpu or cuda")
    gpus = cuda_devices() if device != "cpu" else 0
    if device == "cuda" and gpus == 0:
        raise InputError("--device cuda: no CUDA device found", "use --device cpu")
    dataset = _dataset(data)
    config = RunConfig(
        data=str(dataset.yaml),
        space=str(space),
        budget=budget,
        target=str(Target.parse(target)),
        max_latency_ms=None if max_latency is None else parse_latency(max_latency),
        imgsz=imgsz,
        sampler=sampler,
        executor=executor,
        workers=workers if workers is not None else default_workers(gpus),
        device="cuda" if gpus else "cpu",
        seed=seed,
        **settings,
    )
    path = find_space(str(space))
    read_space(path)
    folder = folders.new_folder(name)
    folders.write_text(folder / "space.yaml", path.read_text(encoding="utf-8"))
    folders.write_config(folder, config, command or "nas.search(…)")
    folders.write_manifest(folder, data_digest=dataset.digest, classes=dataset.names, machine=Target.parse(target).stamp())
    return _run(folder, config, dataset, progress or Quiet(), create=True)


def resume(run: str | Path, *, add_budget: str | None = None, progress: Progress | None = None, **changes: Any) -> Run:
    """Go on with a run that was interrupted, killed or has spent its budget.

    Args:
        add_budget: more of the same kind of budget.
        changes: fields of `RunConfig` that may change: `budget`, `max_latency_ms`, `workers`, `executor`.

    Raises:
        InputError: no such run, its dataset has changed, or the budget is of another kind.
    """
    folder = folders.find_folder(str(run))
    config, command = folders.read_config(folder)
    config = replace(config, **changes)
    if add_budget is not None:
        config = replace(config, budget=Budget.parse(config.budget).plus(Budget.parse(add_budget)).text)
    dataset = read_dataset(Path(config.data))
    if dataset.digest != folders.read_manifest(folder)["data_digest"]:
        raise InputError(f"{dataset.yaml}: has changed since {folder} began", "restore the data, or start a new run")
    return _run(folder, config, dataset, progress or Quiet(), create=False, command=command)


def _run(
    folder: Path, config: RunConfig, dataset: Dataset, progress: Progress, *, create: bool, command: str | None = None
) -> Run:
    """The search itself, with the run folder locked; its files are written whatever ends it."""
    with folders.locked(folder), _log_file(folder / "search.log"):
        if command is not None:
            folders.write_config(folder, config, command)
        store = Store(folder, create=create or not (folder / "study.db").is_file())
        space = read_space(folder / "space.yaml")
        ledger = Ledger(Budget.parse(config.budget), store)
        prices = LatencyCache(cache_root() / "latency", Target.parse(config.target))
        run = Run(folder)

        def record() -> None:
            fresh = Run(folder)
            records = records_of(store.entries, space.skeleton, config.max_latency_ms)
            fresh.__dict__.update(entries=store.entries, records=records, space=space)
            write_tables(folder, records, fresh.summary)

        jobs = _jobs(config)
        because = "stopped by an error"
        try:
            with contextlib.closing(_executor(config, folder)) as executor, progress:
                study = Study(
                    config, space, dataset.nc, store, executor, prices, ledger, jobs, folder, watch=progress, record=record
                )
                with _interruptible(study):
                    because = study.run()
        except KeyboardInterrupt:
            because = "interrupted"
        finally:
            store.put_fact("stopped_because", because)
            run = Run(folder, because)
            if any(entry.state == "done" for entry in store.entries):
                run.report()
    return run


def _dataset(data: str | Path | None) -> Dataset:
    if data is None:
        from nas.dataset.builtin import builtin_dataset  # noqa: PLC0415  (opencv, only to build it)

        return read_dataset(builtin_dataset())
    return read_dataset(Path(data))


def _jobs(config: RunConfig) -> Any:
    threads = threads_per_worker(config.workers, config.device)

    def job(model: dict[str, Any]) -> TrainJob:
        return TrainJob(
            model,
            data=config.data,
            cache=str(cache_root()),
            imgsz=config.imgsz,
            epochs=config.epochs,
            batch=config.batch,
            lr0=config.lr0,
            held_out=config.held_out,
            split_seed=derive(config.seed, 0, "split"),
            device=config.device,
            threads=threads,
        )

    return job


def _executor(config: RunConfig, folder: Path) -> Executor:
    environments = worker_environment(config.workers, config.device)
    target = Target.parse(config.target)
    lane = worker_environment(1, target.device, threads=target.threads)[0]
    if config.executor == "ray":
        from nas.execution.ray import RayExecutor  # noqa: PLC0415  (ray is heavy)

        return RayExecutor(environments, lane, folder / "workers", gpus=1 if config.device == "cuda" else 0)
    from nas.execution.local import LocalExecutor  # noqa: PLC0415

    return LocalExecutor(environments, lane, folder / "workers")


@contextlib.contextmanager
def _interruptible(study: Study) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM lets running trials end, the second ends the search now."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, _: object) -> None:
        signal.signal(number, before[number])
        study.interrupt()

    before: dict[int, Any] = {n: signal.signal(n, handle) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _log_file(path: Path) -> Iterator[None]:
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("nas")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror or error}", "make the folder writable") from error


__all__: Sequence[str] = ("Run", "load", "resume", "search")
