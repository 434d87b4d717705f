"""The loop of a search: probe, then ask -> price -> train -> record until the budget ends.

It decides and writes; everything slow happens in the executor's workers, and it never waits for one of them alone.
A trial's way: proposed -> rejected (over a limit, a repeat, forbidden) | queued -> running -> done | failed.
"""

from __future__ import annotations

import itertools
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from nas.config import RunConfig
from nas.errors import NasError, StartError, StoppedError
from nas.execution.executor import Attempt, Event, Executor, Failed, Lost, Progress, Result
from nas.execution.work import TRAIN, UNSTABLE, TrainJob
from nas.latency.cache import LatencyCache
from nas.latency.table import TablePrices
from nas.pricing import NOISY_HINT, POLL_SECONDS, Priced, Pricing, Unpriced
from nas.review.progress import Status
from nas.review.record import metric_of
from nas.runs.ledger import Ledger
from nas.runs.store import Entry, Store
from nas.runs.trials import TrialFolders
from nas.search.unseen import ENUMERABLE, find_unseen
from nas.seeds import derive
from nas.space.architecture import Architecture
from nas.space.search_space import SearchSpace

log = logging.getLogger("nas")

HEARTBEAT_SECONDS = 5.0
MAX_ATTEMPTS = 3
SAME_FAILURES = 8
MISSES = 5
MANY_MISSES = 500
EVERYTHING_TRIED = "every architecture of the space was tried"
NOTHING_NEW = f"{MANY_MISSES} proposals in a row were over a limit, forbidden or known"
INTERRUPTED = "interrupted"
PRICED_AHEAD = 1


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
        table: the latencies of a target that is another device's.
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
        table: TablePrices | None = None,
    ) -> None:
        self._config, self._space, self._nc, self._store = config, space, nc, store
        self._executor, self._ledger = executor, ledger
        self._jobs, self._watch, self._record = jobs, watch, record
        self._folder, self._folders = folder, TrialFolders(folder)
        self._table = table
        self._pricing = Pricing(
            config, space, nc, executor, prices, blocks, lambda seconds: store.add_seconds(lane=seconds), table
        )
        self._seen: set[str] = set()
        self._queue: deque[int] = deque()
        self._running: dict[str, int] = {}
        self._began: dict[int, float] = {}
        self._epochs: dict[int, tuple[int, int]] = {}
        self._heartbeat: dict[int, float] = {}
        self._saved = 0.0
        self._best: Entry | None = None
        self._unsure: set[int] = set()
        self._misses = 0
        self._keys = itertools.count()
        self._phase = "probe"
        self._stopping: str | None = None
        self._exhausted: str | None = None
        self._hopeless: NasError | None = None

    def interrupt(self) -> None:
        """Start nothing more; `run` returns when what is running has ended. Safe in a signal handler."""
        self._stopping = INTERRUPTED
        self._pricing.stopping = True
        self._phase = "ending when the running trials have ended (Ctrl-C again: now)"

    def run(self) -> str:
        """Search until the budget ends, the space is exhausted or `interrupt` is called; says which.

        Raises:
            InfeasibleError: no probed architecture meets the limits; nothing was trained.
            StoppedError: trial after trial fails with the same reason.
            StartError: there are no images to train on.
        """
        self._ledger.begin()
        try:
            self._resume()
            if not self._within_reach:
                self._pricing.probe(lambda: self._watch(self._status()))
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
            if self._pricing.error is not None:
                self._store.put_fact("latency_error", asdict(self._pricing.error))
        return self._stopping or self._exhausted or "budget spent"

    def _resume(self) -> None:
        """Take up an earlier session: queued and running trials wait again.

        The limits may have changed since: what waits over a lower one is rejected, and what was rejected over an old one
        may be proposed again under a higher one. The same goes for a table that has changed.
        """
        waiting = [entry.number for entry in self._store.reopen()]
        self._reprice()
        for entry in map(self._store.__getitem__, waiting):
            if reason := self._broken(entry):
                self._reject(entry.number, reason, entry.price)
            else:
                self._queue.append(entry.number)
        entries = self._store.entries
        for entry in entries:
            self._compare(entry)
        slow = [e for e in entries if e.state == "rejected" and e.price]
        now = self._now(slow)
        let_in = {e.number for e in slow if self._pricing.broken(now[e.number]) is None}
        self._seen = {e.architecture.id for e in entries if e.number not in let_in and e.reason != "repeat"}

    def _now(self, entries: Sequence[Entry]) -> dict[int, Mapping[str, Any]]:
        """The prices of priced trials by number, with the latencies of the table as it is now, if there is one."""
        prices = {e.number: e.price for e in entries if e.price}
        if self._table is None:
            return prices
        timed = [e for e in entries if "ms" in (e.price or {})]
        latencies = self._table.prices([e.architecture for e in timed])
        return prices | {e.number: {**(e.price or {}), **latency} for e, latency in zip(timed, latencies, strict=True)}

    def _reprice(self) -> None:
        """What waits or has ended gets the latency that the table has for it now."""
        if self._table is not None:
            for number, price in self._now([e for e in self._store.entries if e.state in {"queued", "done"}]).items():
                if price != self._store[number].price:
                    self._store.reprice(number, price, self._config.limits.excess(price))

    def _broken(self, entry: Entry) -> str | None:
        """The limit that a priced trial breaks; the baseline is trained in any case."""
        if entry.price is None or entry.architecture.is_skeleton:
            return None
        return self._pricing.broken(entry.price)

    @property
    def _within_reach(self) -> bool:
        """Whether a trained architecture already meets the limits, or there are none."""
        limits = self._config.limits
        return not limits or any(e.state == "done" and limits.met(e.price or {}) for e in self._store.entries)

    def _step(self) -> bool:
        """One round: start what can start, wait for events, take them in. False when all is done."""
        self._start()
        self._pricing.repeat()
        if self._wants_more():
            self._propose()
            self._start()
        elif not self._pricing.busy and not self._stopping and not self._settle() and not self._ledger.exhausted(()):
            self._pricing.calibrate()
        if not self._queue and not self._running and not self._pricing.under_way:
            return self._wants_more()
        if not self._running and not self._pricing.under_way and not self._may_start():
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
        if self._stopping or self._exhausted or self._pricing.busy or len(self._queue) >= PRICED_AHEAD:
            return False
        return self._ledger.fits(self._elapsed(), len(self._queue))

    def _settle(self) -> bool:
        """Measure a trained architecture that a prediction has brought to the front; whether one is being measured.

        So nobody's place on the front is predicted; what a measured trial dominates even at its best needs no measurement.
        """
        while self._unsure:
            entry = max((self._store[number] for number in self._unsure), key=lambda e: (_map(e), -e.number))
            price = entry.price or {}
            if self._folders.dominated(_map(entry), price["low"]):
                self._unsure.remove(entry.number)
                self._folders.ended(entry, feasible=True)
                continue
            known = self._pricing.ask(entry.number, entry.architecture, measured=True)
            if known is None:
                return True
            self._settled(entry.number, known)
        return False

    def _settled(self, number: int, price: Mapping[str, Any]) -> None:
        """A trained architecture was predicted and is measured now."""
        self._unsure.remove(number)
        self._store.reprice(number, price, self._config.limits.excess(price))
        self._compare(self._store[number])
        self._record()

    def _may_start(self) -> bool:
        """The baseline always starts; another trial when it fits the budget, and nobody asked to stop."""
        if not self._queue or self._stopping:
            return False
        return self._ledger.fits(self._elapsed(), 0) or (self._queue[0] == 0 and not self._ledger.exhausted(()))

    def _elapsed(self) -> list[float]:
        now = time.monotonic()
        return [now - self._began.get(number, now) for number in self._running.values()]

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
        """Have a proposal priced, unless somebody asked to stop: a resumed search then draws it again."""
        if self._stopping:
            return
        price = self._pricing.ask(number, self._architecture(number))
        if price is not None:
            self._priced(number, price)

    def _priced(self, number: int, price: Mapping[str, Any]) -> None:
        reason = self._pricing.broken(price)
        if reason is not None and not self._architecture(number).is_skeleton:
            self._reject(number, reason, price)
            return
        self._misses = 0
        self._store.queue(number, price, self._config.limits.excess(price))
        self._queue.append(number)

    def _reject(self, number: int, reason: str, price: Mapping[str, Any] | None = None) -> None:
        self._misses += 1
        self._store.reject(number, reason, price)
        log.info("trial %d rejected: %s", number, reason)

    def _start(self) -> None:
        while self._executor.free > 0 and self._may_start():
            number = self._queue.popleft()
            state, keep = self._folders.state(number), self._folders.weights(number)
            job = replace(self._jobs(self._pricing.model(self._architecture(number))), state=str(state), keep=str(keep))
            attempt = Attempt(
                f"trial{number}-{next(self._keys)}", TRAIN, asdict(job), derive(self._config.seed, number, "train")
            )
            self._store.start(number)
            self._running[attempt.key] = number
            self._began[number] = time.monotonic()
            self._executor.start(attempt)

    def _take(self, event: Event) -> None:
        if self._pricing.owns(event):
            self._take_price(event)
        elif event.key in self._running:
            self._take_training(event)

    def _take_price(self, event: Event) -> None:
        told = self._pricing.take(event)
        if isinstance(told, Priced) and told.number in self._unsure:
            self._settled(told.number, told.price)
        elif isinstance(told, Priced):
            self._priced(told.number, told.price)
        elif isinstance(told, Unpriced) and told.number in self._unsure:
            self._unsure.remove(told.number)
            log.warning("trial %d: its latency stays predicted: %s", told.number, told.reason)
        elif isinstance(told, Unpriced):
            reason = f"invalid: {told.reason}"
            self._reject(told.number, reason)
            self._post_mortem(told.number, told.reason, told.detail)
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
            self._post_mortem(number, event.reason, event.detail if isinstance(event, Failed) else event.reason)
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

    def _post_mortem(self, number: int, reason: str, detail: str) -> None:
        log.warning("trial %d: %s", number, reason)
        self._folders.failed(number, reason, detail)

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
        """Keep the best trial within the limits, and the weights of those that none dominates."""
        if entry.state != "done" or not entry.result or not entry.price:
            return
        feasible = self._config.limits.met(entry.price)
        if feasible and entry.price.get("source") == "predicted" and self._pricing.measures:
            self._unsure.add(entry.number)
            return
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


def _map(entry: Entry) -> float:
    return float(entry.result["map"]) if entry.result else 0.0


def _point(entry: Entry | None) -> tuple[float, float] | None:
    """mAP and latency of a finished trial."""
    return (entry.result["map"], entry.price["ms"]) if entry and entry.result and entry.price else None
