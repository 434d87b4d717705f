"""One session of a search: the run folder locked, an executor opened, the loop run, the results written whatever ends it."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from nas.assembled import AssembledJobs
from nas.cache import cache_root, room_for_images
from nas.config import Budget, RunConfig
from nas.dataset.description import Dataset
from nas.decision import imitates
from nas.devices import ask_for_more, table_notes, table_prices
from nas.errors import StartError, StoppedError
from nas.execution.executor import Attempt, Executor, Result
from nas.execution.executor import Progress as Report
from nas.execution.watch import Watched
from nas.execution.work import TRY_WEIGHTS, WeightsJob
from nas.hardware import GpuMeter, threads_per_worker, worker_environment
from nas.jobs import Jobs, ProxyJobs, training_job
from nas.latency.cache import LatencyCache
from nas.latency.target import Target
from nas.outcome import Tables
from nas.pricing import POLL_SECONDS, Pricing
from nas.prior import Prior, keep_prior, kept_prior
from nas.proposals import Proposals, SpaceKnowledge
from nas.pruning import Pruning
from nas.review.progress import Progress, Status
from nas.review.record import metric_of
from nas.rises import Rises
from nas.run import Run, writing
from nas.runs import folder as folders
from nas.runs.ledger import Ledger
from nas.runs.place import place_of
from nas.runs.store import STORE_ERRORS, Store
from nas.runs.trials import TrialFolders
from nas.space.architecture import model_yaml
from nas.space.memory import attention_notes
from nas.space.reader import read_space
from nas.status import Heartbeat
from nas.study import INTERRUPTED, Study
from nas.syllabus import split_name
from nas.teaching import Teaching

log = logging.getLogger("nas")


def run_session(
    folder: Path,
    config: RunConfig,
    dataset: Dataset,
    progress: Progress,
    command: str,
    notes: Sequence[str] = (),
    prior: Prior = (),
    stamp: Mapping[str, str] | None = None,
) -> Run:
    """Search, or go on searching, in a run folder; `notes` are shown and kept in its log.

    A new search begins with the results of another one (`prior`); a resumed one has kept them. `stamp` is that of what latency
    is measured on (`Target.stamp`), where that is not this machine.

    Raises:
        NasError: see `Study.run`; also when the folder is in use or can no longer be written. The store keeps whatever
            had ended by then, and the result files are written where that is still possible.
    """
    with (
        terminable(),
        folders.locked(folder),
        writing(folder),
        _log_file(folder / "search.log"),
        _opened(folder, config) as store,
    ):
        folders.write_config(folder, config, command)
        space = read_space(folder / "space.yaml")
        if prior:
            keep_prior(store, folder, space, prior)
        blocks = [str(path.absolute()) for path in folders.block_files(folder)]
        ledger = Ledger(Budget.parse(config.budget), store, config.held)
        checkpoint = folders.read_manifest(folder).get("weights_digest")
        target = Target.parse(config.target)
        prices = LatencyCache(cache_root() / "latency", target, checkpoint, stamp)
        table = table_prices(target, space, store.entries)
        for problem in (*dataset.problems, *space.notes, *attention_notes(space, config.imgsz)):
            log.warning(problem)
        if table is not None:
            notes = (*notes, str(table), *table_notes(table.table, dataset.nc, config.imgsz), *_changed(store, target))
        notes = (*notes, room_for_images(len(dataset.train), config.imgsz))
        for note in notes:
            log.info(note)

        trials = TrialFolders(folder.absolute())  # workers have working folders of their own
        meter = GpuMeter() if config.device == "cuda" else None

        def tell(text: str) -> None:
            log.info(text)
            progress.say(text)

        heartbeat = Heartbeat(store)

        def show(status: Callable[[], Status]) -> None:
            if meter is not None:
                meter.update()
            heartbeat(status)
            progress(status() if meter is None else replace(status(), gpus_busy=meter.latest))

        with _keeping_results(folder, store, lambda: Tables(folder, config, space, store, ledger)):
            store.put_fact("stopped_because", None)
            with progress, contextlib.ExitStack() as resources:
                for note in notes:
                    progress.say(note)
                if config.address:
                    lane = " and for the host that measures latency" if config.lane else ""
                    tell(f"waits for a worker{lane} at {config.address}")
                executor = resources.enter_context(contextlib.closing(open_executor(config, folder)))

                def charge(seconds: float) -> None:
                    store.add_seconds(lane=seconds)

                pricing = Pricing(config, space, dataset.nc, executor, prices, blocks, charge, table)
                teaching = None
                if config.imitate is not False:
                    teaching = Teaching(config, space, dataset, blocks, folder.absolute(), store, ledger, executor, tell)
                if config.imitate is None and teaching is not None:
                    config = replace(config, imitate=imitates(teaching, pricing, ledger, show))
                    teaching = teaching if config.imitate else None
                    folders.write_config(folder, config, command)
                if config.weights is not None and teaching is None:
                    model = model_yaml(space.skeleton, space.baseline, dataset.nc)
                    split = split_name(dataset, training_job(config, dataset, blocks))
                    job = WeightsJob(model, config.weights, list(dataset.names), blocks, split)
                    fitting, fresh, seconds = try_weights(job, executor, folder)
                    store.add_seconds(lane=seconds)
                    store.put_fact("seen", None if fresh else config.weights)
                    tell(fitting)
                jobs: Jobs = ProxyJobs(config, dataset, blocks, trials, validates=store.fact("seen") is not None)
                if teaching is not None:
                    jobs = AssembledJobs(config, space, teaching, training_job(config, dataset, blocks), trials)

                tables = Tables(folder, config, space, store, ledger)

                def watch(status: Callable[[], Status]) -> None:
                    show(status)
                    tables.update()

                rises = None if teaching is None else Rises(space, lambda: teaching.library)
                knowledge = SpaceKnowledge(config, space, pricing, store, rises)
                study = Study(
                    config=config,
                    space=space,
                    store=store,
                    executor=executor,
                    pricing=pricing,
                    proposals=Proposals(config, store, knowledge, kept_prior(store)),
                    ledger=ledger,
                    jobs=jobs,
                    folders=trials,
                    watch=watch,
                    record=tables.outdate,
                    prepare=None if teaching is None else teaching.run,
                    seeds=tuple if teaching is None else partial(teaching.seeds, pricing),
                    prune=(lambda _: None) if rises is None else Pruning(store, rises, pricing, config.max_latency_ms),
                    metric=metric_of(space.skeleton),
                )
                with interruptible(study):
                    ended = study.run()
                    heartbeat.leave()
                    store.put_fact("stopped_because", ended)
                if table is not None and ended != INTERRUPTED:
                    wish = ask_for_more(folder, config, table, space, dataset.nc, store.entries, executor)
                    tell(wish)
            if meter is not None and meter.mean is not None:
                tell(f"the GPUs were busy for {meter.mean:.0%} of the time")
    return Run(folder)


@contextlib.contextmanager
def _opened(folder: Path, config: RunConfig) -> Iterator[Store]:
    """The store of a run, which nobody else writes meanwhile; its troubles as errors that say what to do."""
    # A file that is missing was never made: the search was killed before. A study on a server may lie on another one.
    create = config.storage is None and not place_of(folder, config).exists()
    store = Store(folder, create=create, config=config, exclusive=True)
    with contextlib.closing(store):
        try:
            yield store
        except STORE_ERRORS as error:
            raise store.failure(error) from error


def _changed(store: Store, target: Target) -> list[str]:
    """Whether the table is another than at the last time, in words; from now on it is this one."""
    digest, before = target.stamp()["table"], store.fact("table")
    store.put_fact("table", digest)
    return ["the table has changed: latencies are taken from it anew"] if before not in {None, digest} else []


@contextlib.contextmanager
def _keeping_results(folder: Path, store: Store, tables: Callable[[], Tables]) -> Iterator[None]:
    """Write the reason and the result files at the end; an error on the way keeps its precedence over theirs."""
    try:
        yield
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        with contextlib.suppress(Exception):  # the error under way says more than one of writing a report
            store.put_fact("stopped_because", "interrupted" if interrupted else f"error: {str(error).splitlines()[0]}")
            _report(folder, store, tables)
        if not interrupted:
            raise
    else:
        _report(folder, store, tables)


def _report(folder: Path, store: Store, tables: Callable[[], Tables]) -> None:
    if store.counts["done"]:
        Run(folder).report()
    elif len(store):
        tables().write()


def try_weights(job: WeightsJob, executor: Executor, folder: Path) -> tuple[str, bool, float]:
    """What a checkpoint gives to the unmodified skeleton, in words, whether it has not seen the held-out part for certain, and
    the seconds that it took to find out.

    Raises:
        StartError: nothing, or it is no checkpoint.
    """
    executor.start(Attempt("weights", TRY_WEIGHTS, asdict(job)))
    while not (events := [event for event in executor.poll(POLL_SECONDS) if not isinstance(event, Report)]):
        pass
    event = events[0]
    if not isinstance(event, Result):
        raise StoppedError(f"{job.weights} could not be tried: {event.reason}", f"see {folder / 'workers'}")
    if "fault" in event.data:
        raise StartError(event.data["fault"], event.data["cure"])
    count, of = event.data["transferred"]
    fresh = bool(event.data["fresh"])
    seen = "" if fresh else ", which has seen the held-out part if it was trained on train"
    return f"the skeleton: {count} of {of} tensors from {Path(job.weights).name}{seen}", fresh, event.seconds


def open_executor(config: RunConfig, folder: Path) -> Executor:
    """The executor that a configuration asks for; its workers log to `folder`."""
    target = Target.parse(config.target)
    lane = worker_environment(1, target.device, threads=target.threads)[0]
    if config.executor == "ray":
        from nas.execution.ray.executor import RayExecutor  # noqa: PLC0415  (ray is heavy)

        cores = config.devices if config.address else threads_per_worker(config.workers, config.device)
        ray = RayExecutor(
            worker_environment(1, config.device, threads=1 if config.address else cores)[0],
            lane,
            folder / "workers",
            workers=None if config.elastic else config.workers,
            cores=cores,
            gpus=config.gpus_per_trial if config.device == "cuda" else 0.0,
            address=config.address,
            offered=config.lane is not None,
            lane_gpu=target.device == "cuda",
        )
        return Watched(ray)
    from nas.execution.local import LocalExecutor  # noqa: PLC0415

    workers = worker_environment(config.workers, config.device, gpus_per_trial=config.gpus_per_trial)
    return Watched(LocalExecutor(workers, lane, folder / "workers"))


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM ends what runs as Ctrl-C does, by an exception: results are written, workers are ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def interruptible(study: Study) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM lets running trials end, the second ends the search now."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(*_: object) -> None:
        for number in before:
            signal.signal(number, signal.default_int_handler)  # by an exception: what runs is charged, the front written
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
