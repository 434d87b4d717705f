"""The loop of a search: probe, then ask -> price -> train -> record until the budget ends.

It decides and writes; everything slow happens in the executor's workers, and it never waits for one of them alone.
A trial's way: proposed -> rejected (over a limit, a repeat, forbidden) | queued -> running -> done | failed; with several
rungs it is paused after each but the last, and queued again when it is promoted. Of what is done, the front is trained once
more in the end, with other seeds.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nas.climb import Climb
from nas.config import RunConfig
from nas.errors import NasError, StartError, StoppedError
from nas.execution.executor import Attempt, Event, Executor, Failed, Lost, Progress, Result
from nas.hopeless import all_fail_alike, nothing_is_told_apart
from nas.jobs import Jobs, Step
from nas.post_mortem import disk_full, post_mortem, sound
from nas.pricing import POLL_SECONDS, Priced, Prices, Unpriced
from nas.proposals import Proposals
from nas.review.progress import Status
from nas.room import Room
from nas.runs.folder import resume_command
from nas.runs.ledger import Ledger
from nas.runs.store import Entry, Store
from nas.runs.trials import PostMortem, TrialFolders
from nas.screening import REPEAT, Screening
from nas.seeds import derive
from nas.settling import Settling
from nas.space.architecture import Architecture
from nas.space.protocol import Space
from nas.taking_up import open_again, taken_up
from nas.under_way import HEARTBEAT_SECONDS, UnderWay

log = logging.getLogger("nas")

MAX_ATTEMPTS = 3
HOUR = 3600.0
FLAT_RESULTS = 20  # before so many results nobody can say that no more is to be found
INTERRUPTED = "interrupted"
SPENT = "budget spent"
OVERDRAWN = 1.02  # share of the budget that nothing goes beyond, not even measuring who is on the front
PRICED_AHEAD = 1


class Study:
    """One search over one store.

    Args:
        config: what to do.
        space: where to search.
        store: the trials, empty or of an earlier session.
        executor: who runs; closed by whoever made it.
        pricing: what architectures cost.
        proposals: the sampler of each trial.
        jobs: the trainings.
        folders: what trials leave on disk.
        watch: called with what tells how the search stands whenever something changed, at least twice a second.
        record: called after every trial that has ended.
        prepare: what is done between probing and exploring; given a function to be called with a phase at least twice a
            second, and one that says whether somebody asked to stop.
        seeds: what to propose first, beside the baseline; None as long as too little is known of latencies.
        prune: why an architecture is not worth an evaluation, if it is known.
        metric: what architectures are ranked by, in words.
        patience: seconds to wait for news at a time.
        clock: seconds, of which only differences count.
    """

    def __init__(
        self,
        config: RunConfig,
        space: Space,
        store: Store,
        executor: Executor,
        pricing: Prices,
        proposals: Proposals,
        ledger: Ledger,
        jobs: Jobs,
        folders: TrialFolders,
        watch: Callable[[Callable[[], Status]], None],
        record: Callable[[], None],
        prepare: Callable[[Callable[[str], None], Callable[[], bool]], None] | None = None,
        seeds: Callable[[], Sequence[Architecture] | None] = tuple,
        prune: Callable[[Architecture], str | None] = lambda _: None,
        metric: str = "mAP50-95",
        patience: float = POLL_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config, self._space, self._store = config, space, store
        self._executor, self._ledger, self._pricing, self._proposals = executor, ledger, pricing, proposals
        self._jobs, self._record, self._metric = jobs, record, metric
        self._folders, self._patience, self._clock, self._prepare = folders, patience, clock, prepare
        self._watch: Callable[[], None] = lambda: watch(self._status)
        self._climb = Climb(store, jobs.shares, config.confirm)
        self._screening = Screening(config, space, store, jobs, seeds, prune)
        self._queue: deque[Step] = deque()
        self._running = UnderWay(clock)
        self._saved = 0.0
        self._settling = Settling(store, folders, pricing, self._settled)
        self._room = Room(ledger, config.workers, self._running, self._climb, self._settling, folders, jobs)
        self._keys = itertools.count()
        ledger.measuring = lambda: pricing.elapsed
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
                self._screening.want(self._pricing.probe(self._look))
            if self._prepare is not None and not self._stopping:
                self._prepare(self._enter, lambda: self._stopping is not None)
            self._enter("explore")
            if len(self._store) == 0:
                self._propose(self._space.baseline)
            while self._step():
                self._look()
            if not self._stopping:
                self._folders.settle()
        finally:
            for _, training in self._running:
                self._store.charge(training.step.number, self._ledger.cost(self._running.seconds(training)))
            self._pricing.save()
            self._ledger.save()
            if self._pricing.error is not None:
                self._store.put_fact("latency_error", asdict(self._pricing.error))
        return self._stopping or self._exhausted or SPENT

    def _enter(self, phase: str) -> None:
        if not self._stopping:
            self._phase = phase
        self._look()

    def _look(self) -> None:
        self._save_clock()
        self._watch()

    def _resume(self) -> None:
        """Take up an earlier session: queued and running trials wait again; what waits over a limit is rejected, and what was
        rejected over one that is higher now may be proposed again."""
        for entry, reason in taken_up(self._store, self._pricing, self._config.limits):
            if reason and entry.results:
                self._store.rest(entry.number)
            elif reason:
                self._reject(entry.number, reason, entry.price)
            else:
                self._queue.append(Step(entry.number, len(entry.results)))
        entries = self._store.entries
        for entry in entries:
            self._compare(entry)
        self._proposals.open_again = open_again(self._store, self._pricing)
        self._screening.resume(entries, self._proposals.open_again)
        for entry in entries:
            if (entry.price or {}).get("source") == "measured":
                self._pricing.remember(entry.architecture)

    @property
    def _within_reach(self) -> bool:
        """Whether a trained architecture already meets the limits, or there are none."""
        limits = self._config.limits
        return not limits or any(e.results and limits.met(e.price or {}) for e in self._store.entries)

    def _step(self) -> bool:
        """One round: start what can start, wait for events, take them in. False when all is done."""
        self._start()
        self._pricing.repeat()
        if self._wants_more():
            self._propose()
            self._start()
        elif not self._pricing.busy and not self._stopping:
            self._use_lane()
        over = self._stopping or self._ledger.exhausted(())
        if not self._running and not self._pricing.under_way and (self._executor.free or over):
            self._start()  # settling may have changed the front
            if not self._running:
                # what still waits in the queue no longer fits: it stays queued for a larger budget
                return not self._queue and self._wants_more()
        # A cached price leaves nothing to wait for: the next proposal comes at once.
        for event in self._executor.poll(0.0 if self._wants_more() else self._wait):
            self._take(event)
        if self._hopeless:
            raise self._hopeless
        if self._ledger.exhausted(self._room.elapsed):
            self._stop_running()
            self._pricing.stop(but=self._settling)
            self._exhausted = self._exhausted or SPENT  # what is stopped may have cost a little less than it seemed
            if self._ledger.exhausted(self._room.elapsed, OVERDRAWN):
                self._pricing.stop(but=())
                self._settling.leave()
        return True

    @property
    def _wait(self) -> float:
        """How long nothing but news can matter: the budget may end before the next of them."""
        share = OVERDRAWN if self._settling and self._ledger.exhausted(self._room.elapsed) else 1.0
        return max(0.0, min(self._patience, self._ledger.time_left(len(self._running), self._room.elapsed, share)))

    def _wants_more(self) -> bool:
        """Whether to propose now: nothing says stop, the lane is free, little waits, and the budget has room."""
        if self._stopping or self._exhausted or self._pricing.busy or len(self._queue) >= PRICED_AHEAD:
            return False
        return self._room.for_trial(len(self._queue))

    def _use_lane(self) -> None:
        """The lane is free: what needs to be measured comes first, what makes predictions better last."""
        if self._settling.measure() or self._ledger.exhausted(()) or self._settling.measure_again():
            return
        if self._room.for_trial(0):  # who proposes no more needs no better predictions
            self._pricing.calibrate()

    def _settled(self, number: int, price: Mapping[str, Any]) -> None:
        """A trained architecture was predicted and is measured now, or measured again."""
        self._store.reprice(number, price, self._config.limits.excess(price))
        self._compare(self._store[number])
        self._record()

    def _next(self) -> Step | None:
        """What to train now: what is promoted, what waits, and when nothing more is proposed, what is to be confirmed."""
        if self._stopping:
            return None
        step = self._climb.promotion(final=self._explored)
        if step is not None and self._room.for_step(step):
            self._store.promote(step.number)
            self._climb.promoted(step.number)
            self._phase = "promote" if self._explored else self._phase
            return step
        if self._queue and self._room.for_step(self._queue[0]):
            return self._queue.popleft()
        if not self._explored:
            return None
        self._phase = "promote" if any(not step.again for step in self._running.steps) else "confirm"
        if self._phase == "promote":
            return None
        step, front, running = None, self._folders.front, self._running.steps
        if self._jobs.validates:  # costs next to nothing, so it comes first
            step = self._climb.validation(front, running)
        step = step or self._climb.confirmation(front, running)
        return step if step is not None and self._room.for_step(step) else None

    @property
    def _explored(self) -> bool:
        """Whether nothing more will be proposed."""
        if not len(self._store) or self._store.counts["proposed"] or self._settling:
            return False
        return self._exhausted is not None or not self._room.for_trial(0)

    def _propose(self, fixed: Architecture | None = None) -> None:
        """Ask for one architecture and have it priced, unless it is refused at once."""
        self._phase, number = "explore", len(self._store)  # also where what seemed to be needed for the end is not
        fixed = fixed or self._screening.first(number)
        if self._screening.exhausted:
            self._exhausted = self._screening.exhausted
            return
        architecture = self._store.propose(self._space, self._proposals.sampler(number, fixed), fixed).architecture
        refusal = self._screening.refusal(architecture)
        if refusal != REPEAT:
            self._look_ahead()
        if refusal is None:
            self._price(number)
        else:
            self._reject(number, refusal)

    def _look_ahead(self) -> None:
        """What more of the budget would be worth; the end of proposing where that is less than was asked for."""
        ranked, least = self._store.tally.ranked, self._config.stop_when_flat
        if not ranked:
            return
        self._proposals.look(HOUR * ranked / max(self._store.tally.charged, 1e-9))
        outlook = self._proposals.outlook
        if least is not None and outlook is not None and ranked >= FLAT_RESULTS and outlook.gain < least:
            self._exhausted = f"flat: another device-hour is expected to raise the hypervolume by {outlook.gain:.2%}"

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
        self._screening.hit()
        self._store.queue(number, price, self._config.limits.excess(price))
        self._queue.append(Step(number, 0))

    def _reject(self, number: int, reason: str, price: Mapping[str, Any] | None = None) -> None:
        self._screening.missed()
        self._store.reject(number, reason, price)
        log.info("trial %d rejected: %s", number, reason)

    def _start(self) -> None:
        while self._executor.free > 0 and (step := self._next()) is not None:
            kind, payload = self._jobs.job(step, self._pricing.model(self._architecture(step.number)))
            which = f"train again {step.repeat}" if step.repeat else "validate" if step.validates else "train"
            seed, printed = derive(self._config.seed, step.number, which), str(self._folders.log(step.number))
            attempt = Attempt(f"trial{step.number}-{next(self._keys)}", kind, payload, seed, log=printed)
            self._store.start(step.number)
            self._running.begin(attempt.key, step)
            self._executor.start(attempt)

    def _take(self, event: Event) -> None:
        if self._pricing.owns(event):
            self._take_price(event)
        elif event.key in self._running:
            self._take_training(event)

    def _take_price(self, event: Event) -> None:
        told = self._pricing.take(event)
        if isinstance(told, Priced) and self._store[told.number].state == "done":
            self._settling.take(told.number, told.price)
        elif isinstance(told, Priced):
            self._priced(told.number, told.price)
        elif isinstance(told, Unpriced) and self._store[told.number].state == "done":
            self._settling.give_up(told.number, told.reason)
        elif isinstance(told, Unpriced):
            reason = f"invalid: {told.reason}"
            self._reject(told.number, reason)
            died = PostMortem(0, "invalid", told.reason, told.seconds, "it is rejected", final=True, detail=told.detail)
            self._folders.post_mortem(told.number, died)
            self._hopeless = self._hopeless or all_fail_alike(self._store, reason, self._folders.folder(0).parent)

    def _take_training(self, event: Event) -> None:
        training = self._running.hear(event)
        step, number = training.step, training.step.number
        if isinstance(event, Progress):
            if note := event.data.get("note"):
                log.warning("trial %d: %s", number, note)
            if self._running.is_due(training):
                self._store.charge(number, self._ledger.cost(event.seconds))
            return
        self._running.end(event.key)
        event = sound(event)
        if isinstance(event, Result) and "fault" in event.data:
            self._store.charge(number, self._ledger.cost(event.seconds), "stopped: nothing to train on")
            self._hopeless = StartError(event.data["fault"], event.data["cure"])
        elif isinstance(event, Result):
            self._passed(step, event)
        elif disk_full(event):
            self._store.charge(number, self._ledger.cost(event.seconds), "stopped: disk full")
            what = f"trial {number} found no room on the disk: {event.reason}"
            self._hopeless = StoppedError(what, f"make room, then: {resume_command(self._folders.folder(0).parents[1])}")
        else:
            self._died(step, event)
        self._record()

    def _died(self, step: Step, event: Failed | Lost) -> None:
        """An attempt has ended without a result: it is tried again where its worker is to blame, and not for ever."""
        number, attempt, cost = step.number, len(self._store[step.number].attempts), self._ledger.cost(event.seconds)
        again = isinstance(event, Lost) and self._losses(number) + 1 < MAX_ATTEMPTS
        if again:
            self._store.charge(number, cost, "lost")
            if not step.again:
                self._queue.appendleft(step)
            then = "tried again"
        elif step.again:
            self._store.charge(number, cost, "failed")
            self._climb.give_up(step)
            then = f"the trial is not {'validated' if step.validates else 'confirmed'}"
        else:
            self._store.fail(number, cost, event.reason)
            self._compare(self._store[number])
            self._hopeless = self._hopeless or all_fail_alike(self._store, event.reason, self._folders.folder(0).parent)
            then = "the trial has failed"
        died = post_mortem(event, attempt, then, final=not again and not step.again)
        self._folders.post_mortem(number, died)
        log.warning("trial %d %s: %s: %s", number, died.kind, event.reason, then)

    def _passed(self, step: Step, event: Result) -> None:
        """A trial has passed a rung, was confirmed or validated."""
        number, data, what, cost = step.number, event.data, self._metric, self._ledger.cost(event.seconds)
        if step.validates:
            self._store.validate(number, cost, data)
            log.info("trial %d validated: %s %.4f on val", number, what, data["map"])
        elif step.repeat:
            self._store.confirm(number, cost, data)
            maps = ", ".join(f"{value:.4f}" for value in self._store[number].maps)
            log.info("trial %d confirmed: %s %s", number, what, maps)
            self._settling.add_again(number)
        else:
            if (skipped := data.get("skipped")) and number == 0:
                log.warning("%d images cannot be read and are left out: %s", len(skipped), ", ".join(skipped))
            top = step.rung == len(self._jobs.shares)
            self._store.finish(number, cost, data, paused=not top)
            if (transferred := data.get("transferred")) and not self._config.imitate:
                weights = Path(self._config.weights or "").name
                log.info("trial %d: %d of %d tensors from %s", number, *transferred, weights)
            word = "done" if top else f"paused at rung {step.rung}"
            log.info("trial %d %s: %s %.4f in %.1f s", number, word, what, data["map"], event.seconds)
            if not step.rung:
                self._hopeless = self._hopeless or nothing_is_told_apart(self._store)
        self._compare(self._store[number])

    def _save_clock(self) -> None:
        """kill -9 takes no leave: it costs the wall clock and the lane's a few seconds at most."""
        now = self._clock()
        if now - self._saved >= HEARTBEAT_SECONDS:
            self._saved = now
            self._pricing.save()
            self._ledger.save()

    def _losses(self, number: int) -> int:
        return sum(attempt["outcome"] == "lost" for attempt in self._store[number].attempts)

    def _stop_running(self) -> None:
        """The budget is used up: what still runs ends now and stays queued, so that a larger budget can take it up."""
        for key, training in self._running:
            cost = self._ledger.cost(self._executor.stop(key))
            self._store.charge(training.step.number, cost, "stopped: budget spent")
            self._running.end(key)

    def _architecture(self, number: int) -> Architecture:
        return self._store[number].architecture

    def _compare(self, entry: Entry) -> None:
        """What a trial that rests means for the others: who is promoted, who is on the front, whose weights stay."""
        if not entry.results or not entry.price:
            return
        feasible = self._config.limits.met(entry.price)
        self._climb.note(entry, feasible=feasible)
        if entry.state != "done":
            return
        if feasible and entry.price.get("source") == "predicted" and self._pricing.measures:
            self._settling.add(entry.number)
            return
        self._folders.ended(entry, feasible=feasible)

    def _status(self) -> Status:
        return Status(
            phase=self._phase,
            counts=dict(self._store.counts),
            running={number: epochs or (0, self._config.epochs) for number, epochs in self._running.shown.items()},
            budget=self._ledger.budget.text,
            share=min(1.0, self._ledger.used(self._room.elapsed) / self._ledger.budget.amount),
            wall_seconds=self._ledger.wall_seconds,
            left=None if self._stopping or self._exhausted else self._ledger.ends_in(self._config.workers, self._room.elapsed),
            baseline=_point(self._store[0]) if len(self._store) else None,
            taus=self._climb.taus,
            outlook=self._proposals.outlook,
            best=_point(max(self._folders.front, key=lambda entry: entry.map, default=None)),
        )


def _point(entry: Entry | None) -> tuple[float, float] | None:
    """mAP and latency of a trained trial."""
    return (entry.map, entry.price["ms"]) if entry and entry.results and entry.price else None
