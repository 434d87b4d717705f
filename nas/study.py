"""The loop of a search: probe, then ask -> price -> train -> record until the budget ends.

It decides and writes; everything slow happens in the executor's workers, and it never waits for one of them alone.
A trial's way: proposed -> rejected (over the limit, a repeat, forbidden) | queued -> running -> done | failed.
"""

from __future__ import annotations

import itertools
import logging
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from nas.config import RunConfig
from nas.errors import InfeasibleError, NasError, StartError, StoppedError
from nas.execution.executor import Attempt, Event, Executor, Failed, Lost, Progress, Result
from nas.execution.work import PRICE, TRAIN, UNSTABLE, PriceJob, TrainJob
from nas.latency.cache import LatencyCache, model_key
from nas.review.progress import Status
from nas.review.record import metric_of
from nas.runs.ledger import Ledger
from nas.runs.store import Entry, Store
from nas.runs.trials import TrialFolders
from nas.search.unseen import ENUMERABLE, find_unseen
from nas.seeds import derive
from nas.space.architecture import Architecture, model_yaml
from nas.space.search_space import SearchSpace

log = logging.getLogger("nas")

POLL_SECONDS = 0.5
HEARTBEAT_SECONDS = 5.0
MAX_ATTEMPTS = 3
SAME_FAILURES = 8
MISSES = 5
MANY_MISSES = 500
EVERYTHING_TRIED = "every architecture of the space was tried"
NOTHING_NEW = f"{MANY_MISSES} proposals in a row were over the limit, forbidden or known"
PRICED_AHEAD = 1
REPEAT_SECONDS = 20.0
NOISY_HINT = "let the machine come to rest, or resume with --allow-noisy"


class Study:
    """One search over one store.

    Args:
        config: what to do.
        space: where to search.
        nc: number of classes of the dataset.
        store: the trials, empty or of an earlier session.
        executor: who runs; closed by whoever made it.
        prices: latencies known already.
        jobs: makes the training job of a model YAML.
        folder: the run folder, for post-mortems.
        watch: called whenever something changed, at least twice a second.
        record: called after every trial that has ended.
        blocks: the user's block files that the space needs.
    """

    def __init__(
        self,
        config: RunConfig,
        space: SearchSpace,
        nc: int,
        store: Store,
        executor: Executor,
        prices: LatencyCache,
        ledger: Ledger,
        jobs: Callable[[dict[str, Any]], TrainJob],
        folder: Path,
        watch: Callable[[Status], None],
        record: Callable[[], None],
        blocks: Sequence[str] = (),
    ) -> None:
        self._config, self._space, self._nc, self._store = config, space, nc, store
        self._executor, self._prices, self._ledger = executor, prices, ledger
        self._jobs, self._watch, self._record = jobs, watch, record
        self._folder, self._folders = folder, TrialFolders(folder)
        self._blocks = list(blocks)
        self._seen: set[str] = set()
        self._queue: deque[int] = deque()
        self._pricing: dict[str, int] = {}
        self._unmeasured: Counter[int] = Counter()
        self._repeat: tuple[int, float] | None = None  # a trial to be measured again, and when
        self._running: dict[str, int] = {}
        self._began: dict[int, float] = {}
        self._epochs: dict[int, tuple[int, int]] = {}
        self._heartbeat: dict[int, float] = {}
        self._saved = 0.0
        self._best: Entry | None = None
        self._misses = 0
        self._keys = itertools.count()
        self._phase = "probe"
        self._stopping: str | None = None
        self._exhausted: str | None = None
        self._hopeless: NasError | None = None

    def interrupt(self) -> None:
        """Start nothing more; `run` returns when what is running has ended. Safe in a signal handler."""
        self._stopping = "interrupted"
        self._phase = "ending when the running trials have ended (Ctrl-C again: now)"

    def run(self) -> str:
        """Search until the budget ends, the space is exhausted or `interrupt` is called; says which.

        Raises:
            InfeasibleError: no probed architecture meets the latency limit; nothing was trained.
            StoppedError: trial after trial fails with the same reason.
            StartError: there are no images to train on.
        """
        self._ledger.begin()
        try:
            self._resume()
            self._probe()
            self._phase = "explore"
            if len(self._store) == 0:
                self._propose(self._space.baseline)
            while self._step():
                self._save_clock()
                self._watch(self._status())
        finally:
            for number, began in self._began.items():
                if number in self._running.values():
                    self._store.charge(number, time.monotonic() - began)
            self._ledger.save()
        return self._stopping or self._exhausted or "budget spent"

    def _resume(self) -> None:
        """Take up an earlier session: queued and running trials wait again.

        The limit may have changed since: what waits over a lower one is rejected, and what was rejected over the old one
        may be proposed again under a higher one.
        """
        for entry in self._store.reopen():
            if self._too_slow(entry):
                self._reject(entry.number, "over-latency", entry.price)
            else:
                self._queue.append(entry.number)
        entries = self._store.entries
        for entry in entries:
            self._compare(entry)
        let_in = {e.number for e in entries if e.reason == "over-latency" and not self._too_slow(e)}
        self._seen = {e.architecture.id for e in entries if e.number not in let_in and e.reason != "repeat"}

    def _too_slow(self, entry: Entry) -> bool:
        """Whether a priced trial is over the limit and not the baseline, which is trained in any case."""
        limit = self._config.max_latency_ms
        over = limit is not None and entry.price is not None and entry.price["ms"] > limit
        return over and not entry.architecture.is_skeleton

    def _step(self) -> bool:
        """One round: start what can start, wait for events, take them in. False when all is done."""
        self._start()
        if self._repeat is not None and (self._stopping or time.monotonic() >= self._repeat[1]):
            number, self._repeat = self._repeat[0], None
            self._price(number)
        if self._wants_more():
            self._propose()
            self._start()
        if not self._queue and not self._running and not self._pricing and self._repeat is None:
            return self._wants_more()
        if not self._running and not self._pricing and self._repeat is None and not self._may_start():
            return False  # what waits in the queue no longer fits: it stays queued for a larger budget
        # A cached price leaves nothing to wait for: the next proposal comes at once.
        for event in self._executor.poll(0.0 if self._wants_more() else POLL_SECONDS):
            self._take(event)
        if self._hopeless:
            raise self._hopeless
        if self._running and self._ledger.exhausted(self._elapsed()):
            self._stop_running()
        return True

    def _wants_more(self) -> bool:
        """Whether to propose now: nothing says stop, the lane is free, little waits, and the budget has room."""
        if (
            self._stopping
            or self._exhausted
            or self._pricing
            or self._repeat
            or not self._executor.lane_free
            or len(self._queue) >= PRICED_AHEAD
        ):
            return False
        return self._ledger.fits(self._elapsed(), len(self._queue))

    def _may_start(self) -> bool:
        """The baseline always starts; another trial when it fits the budget, and nobody asked to stop."""
        if not self._queue or self._stopping:
            return False
        return self._ledger.fits(self._elapsed(), 0) or (self._queue[0] == 0 and not self._ledger.exhausted(()))

    def _elapsed(self) -> list[float]:
        now = time.monotonic()
        return [now - self._began.get(number, now) for number in self._running.values()]

    def _probe(self) -> None:
        """Time the smallest architectures before anything is trained: is the limit within reach at all?"""
        limit = self._config.max_latency_ms
        if limit is None or any(e.state == "done" and e.price and e.price["ms"] <= limit for e in self._store.entries):
            return
        fastest: tuple[float, Architecture] | None = None
        trouble = "nothing was measured"
        for architecture in (self._space.baseline, *self._space.smallest(self._config.imgsz)):
            price = self._price_now(architecture)
            if isinstance(price, str):
                trouble = price
            elif fastest is None or price["ms"] < fastest[0]:
                fastest = price["ms"], architecture
            if fastest is not None and fastest[0] <= limit:
                return
            if self._stopping:
                return
        if fastest is None:
            hint = NOISY_HINT if trouble.startswith(UNSTABLE) else "see workers/lane.log"
            raise StoppedError(f"no architecture could be measured on {self._config.target}: {trouble}", hint)
        what = "; ".join(f"{k}={v}" for k, v in fastest[1].describe(self._space.skeleton).items()) or "the skeleton"
        found = f"the fastest of the probed takes {fastest[0]:.3g} ms ({what})"
        hint = "raise --max-latency, lower --imgsz, or take a smaller skeleton"
        raise InfeasibleError(f"nothing meets {limit:g} ms on {self._config.target}: {found}", hint)

    def _price_now(self, architecture: Architecture) -> Mapping[str, Any] | str:
        """The price of an architecture, waiting for the lane; a reason in words where it has none."""
        model = self._model(architecture)
        key = model_key(model, self._config.imgsz)
        if known := self._prices.get(key):
            return known
        reason = ""
        for _ in range(MAX_ATTEMPTS):
            event = self._measured(self._price_attempt(model))
            if isinstance(event, Result):
                self._prices.put(key, dict(event.data))
                return event.data
            reason = event.reason
            log.warning("probe %s: %s", architecture.id, reason)
            if (isinstance(event, Failed) and not _unstable(event)) or self._stopping:
                break
        return reason

    def _measured(self, attempt: Attempt) -> Result | Failed | Lost:
        """How a measurement ends, waiting for it."""
        self._executor.start(attempt)
        while True:
            self._watch(self._status())
            for event in self._executor.poll(POLL_SECONDS):
                if not isinstance(event, Progress):
                    self._store.add_seconds(lane=event.seconds)
                    return event

    def _model(self, architecture: Architecture) -> dict[str, Any]:
        return model_yaml(self._space.skeleton, architecture, self._nc)

    def _price_attempt(self, model: dict[str, Any]) -> Attempt:
        # The baseline stands in every report: it is measured well also where it is far over the limit.
        limit = None if model == self._model(self._space.baseline) else self._config.max_latency_ms
        job = PriceJob(
            model,
            self._config.target,
            self._config.imgsz,
            limit,
            weights=self._config.weights,
            allow_noisy=self._config.allow_noisy,
            blocks=self._blocks,
        )
        return Attempt(f"price{next(self._keys)}", PRICE, asdict(job), quiet=True)

    def _propose(self, fixed: Architecture | None = None) -> None:
        """Ask for one architecture and have it priced; a repeat or a forbidden one is rejected at once.

        Where the sampler finds nothing new, look for one ourselves.
        """
        number = len(self._store)
        if fixed is None and self._misses >= MISSES:
            near = [e.architecture for e in self._store.entries if e.state in {"done", "queued", "running"}]
            rng = random.Random(derive(self._config.seed, number, "fallback"))
            fixed = find_unseen(self._space, self._seen, near, self._config.imgsz, rng)
            if fixed is None:
                self._exhausted = EVERYTHING_TRIED if self._space.size <= ENUMERABLE else NOTHING_NEW
                return
            if self._misses >= MANY_MISSES:
                self._exhausted = NOTHING_NEW
                return
        architecture = self._store.propose(self._space, self._config.sampler, self._config.seed, fixed).architecture
        if architecture.id in self._seen:
            self._reject(number, "repeat")
            return
        self._seen.add(architecture.id)
        rule = self._space.forbidding_rule(architecture, self._config.imgsz)
        if rule is not None and not architecture.is_skeleton:
            self._reject(number, f"forbidden: {rule.text}")
            return
        self._price(number)

    def _price(self, number: int) -> None:
        """Have a proposal measured, unless somebody asked to stop: a resumed search then draws it again."""
        if self._stopping:
            return
        model = self._model(self._architecture(number))
        if known := self._prices.get(model_key(model, self._config.imgsz)):
            self._priced(number, known)
        else:
            attempt = self._price_attempt(model)
            self._pricing[attempt.key] = number
            self._executor.start(attempt)

    def _priced(self, number: int, price: Mapping[str, Any]) -> None:
        limit = self._config.max_latency_ms
        over = None if limit is None else price["ms"] - limit
        if over is not None and over > 0 and not self._architecture(number).is_skeleton:
            self._reject(number, "over-latency", price)
            return
        self._misses = 0
        self._store.queue(number, price, over)
        self._queue.append(number)

    def _reject(self, number: int, reason: str, price: Mapping[str, Any] | None = None) -> None:
        self._misses += 1
        self._store.reject(number, reason, price)
        log.info("trial %d rejected: %s", number, reason)

    def _start(self) -> None:
        while self._executor.free > 0 and self._may_start():
            number = self._queue.popleft()
            state, keep = self._folders.state(number), self._folders.weights(number)
            job = replace(self._jobs(self._model(self._architecture(number))), state=str(state), keep=str(keep))
            attempt = Attempt(
                f"trial{number}-{next(self._keys)}", TRAIN, asdict(job), derive(self._config.seed, number, "train")
            )
            self._store.start(number)
            self._running[attempt.key] = number
            self._began[number] = time.monotonic()
            self._executor.start(attempt)

    def _take(self, event: Event) -> None:
        if event.key in self._pricing:
            self._take_price(event)
        elif event.key in self._running:
            self._take_training(event)

    def _take_price(self, event: Event) -> None:
        if isinstance(event, Progress):
            return
        number = self._pricing.pop(event.key)
        self._store.add_seconds(lane=event.seconds)
        if isinstance(event, Result):
            self._prices.put(model_key(self._model(self._architecture(number)), self._config.imgsz), dict(event.data))
            self._priced(number, event.data)
        elif isinstance(event, Lost) and self._unmeasured[number] + 1 < MAX_ATTEMPTS:
            self._unmeasured[number] += 1
            log.warning("trial %d: measurement lost (%s): tried again", number, event.reason)
            self._price(number)
        elif _unstable(event) and not self._unmeasured[number]:
            self._unmeasured[number] += 1
            log.warning("trial %d: %s: measured again in %.0f s", number, event.reason, REPEAT_SECONDS)
            self._repeat = number, time.monotonic() + REPEAT_SECONDS
        else:
            reason = f"invalid: {event.reason}"
            self._reject(number, reason)
            self._post_mortem(number, event)
            self._stop_if_all_fail_alike(reason)

    def _take_training(self, event: Event) -> None:
        number, now = self._running[event.key], time.monotonic()
        self._began[number] = now - event.seconds  # the worker's own clock: it may have had to start first
        if isinstance(event, Progress):
            if note := event.data.get("note"):
                log.warning("trial %d: %s", number, note)
            self._epochs[number] = (event.data["epoch"], event.data["epochs"])
            if now - self._heartbeat.get(number, 0.0) >= HEARTBEAT_SECONDS:
                self._heartbeat[number] = now
                self._store.charge(number, event.seconds)
            return
        del self._running[event.key]
        self._forget(number)
        if isinstance(event, Result) and "fault" in event.data:
            self._store.charge(number, event.seconds, "stopped: nothing to train on")
            self._hopeless = StartError(event.data["fault"], event.data["cure"])
        elif isinstance(event, Result):
            if (skipped := event.data.get("skipped")) and number == 0:
                log.warning("%d images cannot be read and are left out: %s", len(skipped), ", ".join(skipped))
            self._store.finish(number, event.seconds, event.data)
            self._compare(self._store[number])
            if transferred := event.data.get("transferred"):
                weights = Path(self._config.weights or "").name
                log.info("trial %d: %d of %d tensors from %s", number, *transferred, weights)
            what = metric_of(self._space.skeleton)
            log.info("trial %d done: %s %.4f in %.1f s", number, what, event.data["map"], event.seconds)
            self._stop_if_nothing_is_learned()
        elif isinstance(event, Lost) and self._losses(number) + 1 < MAX_ATTEMPTS:
            self._store.charge(number, event.seconds, "lost")
            self._queue.appendleft(number)
            log.warning("trial %d lost (%s): tried again", number, event.reason)
        else:
            self._store.fail(number, event.seconds, event.reason)
            self._post_mortem(number, event)
            self._stop_if_all_fail_alike(event.reason)
        self._record()

    def _save_clock(self) -> None:
        """kill -9 takes no leave: it costs the wall clock a few seconds at most."""
        now = time.monotonic()
        if now - self._saved >= HEARTBEAT_SECONDS:
            self._saved = now
            self._ledger.save()

    def _forget(self, number: int) -> None:
        """An attempt has ended: nothing of it is under way any more."""
        self._began.pop(number, None)
        self._epochs.pop(number, None)
        self._heartbeat.pop(number, None)

    def _losses(self, number: int) -> int:
        return sum(attempt["outcome"] == "lost" for attempt in self._store[number].attempts)

    def _post_mortem(self, number: int, event: Failed | Lost) -> None:
        log.warning("trial %d: %s", number, event.reason)
        self._folders.failed(number, event.reason, event.detail if isinstance(event, Failed) else event.reason)

    def _stop_if_all_fail_alike(self, reason: str) -> None:
        ended = [e for e in self._store.entries if e.state in {"done", "failed"} or (e.reason or "").startswith("invalid")]
        ended = ended[-SAME_FAILURES:]
        if len(ended) == SAME_FAILURES and all(e.reason == reason for e in ended):
            hint = NOISY_HINT if UNSTABLE in reason else f"see {self._folder / 'trials'}"
            self._hopeless = StoppedError(f"{SAME_FAILURES} trials in a row failed alike: {reason}", hint)

    def _stop_if_nothing_is_learned(self) -> None:
        if self._store.counts["done"] == SAME_FAILURES and not any(e.result and e.result["map"] for e in self._store.entries):
            hint = "train longer or larger: raise --epochs or --imgsz; check that the labels belong to the images"
            self._hopeless = StoppedError(f"the first {SAME_FAILURES} trials all have mAP 0: nothing can be ranked", hint)

    def _stop_running(self) -> None:
        """The budget is used up: what still runs ends now and stays queued, so that a larger budget can take it up."""
        for key, number in list(self._running.items()):
            self._store.charge(number, self._executor.stop(key), "stopped: budget spent")
            del self._running[key]
            self._forget(number)

    def _architecture(self, number: int) -> Architecture:
        return self._store[number].architecture

    def _compare(self, entry: Entry) -> None:
        """Keep the best trial within the limit, and the weights of those that none dominates."""
        limit = self._config.max_latency_ms
        if entry.state != "done" or not entry.result or not entry.price:
            return
        feasible = limit is None or entry.price["ms"] <= limit
        self._folders.ended(entry, feasible=feasible)
        if feasible:
            best = self._best
            if best is None or not best.result or entry.result["map"] > best.result["map"]:
                self._best = entry

    def _status(self) -> Status:
        return Status(
            phase=self._phase,
            counts=dict(self._store.counts),
            running={n: self._epochs.get(n, (0, self._config.epochs)) for n in self._running.values()},
            budget=self._ledger.budget.text,
            share=min(1.0, self._ledger.used(self._elapsed()) / self._ledger.budget.amount),
            wall_seconds=self._ledger.wall_seconds,
            baseline=_point(self._store[0]) if len(self._store) else None,
            best=_point(self._best),
        )


def _unstable(event: Failed | Lost) -> bool:
    """Whether a measurement failed for what the machine did meanwhile."""
    return isinstance(event, Failed) and event.reason.startswith(UNSTABLE)


def _point(entry: Entry | None) -> tuple[float, float] | None:
    """mAP and latency of a finished trial."""
    return (entry.result["map"], entry.price["ms"]) if entry and entry.result and entry.price else None
