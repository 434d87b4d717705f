"""The store: one Optuna study in one database, written by the search process alone.

Everything that is known of a trial stands in it, so that a search which was killed goes on where it was. What Optuna
itself asks for (parameters, states, values) is kept in a study in memory too, rebuilt from the database on opening: the
samplers draw from that one. A trial that is priced is written together with what happens next, to it or to others, and from
then on whatever happens to it is one transaction: its end, too, with the result, the seconds and what Optuna is told. A
killed process loses at most one proposal, which the same (seed, trial, results) draws again. Rejected and failed trials are
Optuna's FAIL, which samplers leave out.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy.exc
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, Trial, TrialState

from nas.config import RunConfig
from nas.errors import InputError, NasError
from nas.runs.database import DIRECTIONS, Database, MemoryDatabase
from nas.runs.place import Place, place_of
from nas.runs.tally import Tally
from nas.space.architecture import Architecture
from nas.space.protocol import Space

optuna.logging.set_verbosity(optuna.logging.WARNING)

VERSION = 2
NOTHING: dict[str, Any] = {}  # what Optuna need not know of a rejected trial: one object for all
END = "end"  # the attribute {state, reason}, written where nothing else tells the state
# What a database's troubles (a full disk, a read-only file, a server that has gone) arrive as, once a store is open.
STORE_ERRORS = (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError)


@dataclass(frozen=True, slots=True)
class Entry:
    """One trial.

    `state` is one of proposed, rejected, queued, running, paused (between two rungs), done (past the highest), failed;
    `price` is what `LatencyCache` keeps; `results` is what the training to each rung returned, `repeats` what those to the
    highest with other seeds did, `val` what its kept weights are worth on `val`; `attempts` one mapping {seconds, outcome}
    per execution.
    """

    number: int
    architecture: Architecture
    state: str = "proposed"
    reason: str | None = None
    price: Mapping[str, Any] | None = None
    results: tuple[Mapping[str, Any], ...] = ()
    attempts: tuple[Mapping[str, Any], ...] = ()
    repeats: tuple[Mapping[str, Any], ...] = ()
    val: Mapping[str, Any] | None = None

    @property
    def result(self) -> Mapping[str, Any] | None:
        """Of the highest rung passed, with the first seed."""
        return self.results[-1] if self.results else None

    @property
    def maps(self) -> tuple[float, ...]:
        """mAP50-95 at the highest rung passed: of the first seed, then of the others."""
        return tuple(float(result["map"]) for result in (*self.results[-1:], *self.repeats))

    @property
    def map(self) -> float:
        """Mean of `maps`. Raises IndexError before the first rung."""
        first = float(self.results[-1]["map"])
        return (first + sum(float(result["map"]) for result in self.repeats)) / (1 + len(self.repeats))

    @property
    def seconds(self) -> float:
        """Device seconds charged to this trial."""
        return float(sum(attempt["seconds"] for attempt in self.attempts))


class Store:
    """The trials of one run. `tally` is what they add up to.

    Args:
        folder: the run folder; where its database lies, `place_of` knows. None keeps everything in memory, and loses it.
        create: make the database; otherwise it must be there.
        config: of the run; that of the folder's run.yaml where None.
        exclusive: keep every other exclusive store of this run from being opened, on any host, until this one is closed.
            Of a database in the run folder, the folder's lock does so.

    Raises:
        InputError: the database is missing, unreadable, of another version or held by another search.
        UnreachableError: its server cannot be reached.
    """

    def __init__(self, folder: Path | None, *, create: bool, config: RunConfig | None = None, exclusive: bool = False) -> None:
        self._place = place = None if folder is None else place_of(folder, config)
        facts = {"version": VERSION}
        with contextlib.ExitStack() as undo:
            try:
                self._database = _opened(place, facts if create else None, exclusive)
                undo.callback(self._database.close)
                self._facts = self._database.facts()
                found = self._facts["version"]
                trials = self._database.trials() if found == VERSION else []
                entries = [_entry(trial) for trial in trials]
            except NasError:
                raise
            except Exception as error:
                # SQLAlchemy, the drivers and Optuna each have their own ways to say that this is not a usable database.
                reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
                raise InputError(f"{place}: cannot be used: {reason}", "" if place is None else place.cure) from error
            if found != VERSION:
                what = f"{place}: written by version {found} of the store, this is {VERSION}"
                older = "go on with the nas that wrote it, which manifest.json names"
                cure = f"{older}; or begin anew: latencies that were measured are known to a new search"
                raise InputError(what, cure)
            undo.pop_all()
        self._told = optuna.storages.InMemoryStorage()
        self._memory = optuna.create_study(storage=self._told, directions=DIRECTIONS)
        self._memory.add_trials(trials)
        self._distributions: dict[str, BaseDistribution] = {}
        self._shared: dict[tuple[str, ...], dict[str, BaseDistribution]] = {}
        for trial in self._memory.get_trials(deepcopy=False):
            self._share_distributions(trial)
        self._draft: Trial | None = None
        self._keys = {trial.number: trial._trial_id for trial in trials}
        self._entries: dict[int, Entry] = {}
        self.tally = Tally()
        for entry in entries:
            self._put(entry)

    @property
    def counts(self) -> Counter[str]:
        """How many trials are in each state."""
        return self.tally.counts

    @property
    def entries(self) -> list[Entry]:
        """All trials in the order of their numbers."""
        return list(self._entries.values())

    def __getitem__(self, number: int) -> Entry:
        return self._entries[number]

    def __len__(self) -> int:
        return len(self._entries)

    def propose(self, space: Space, sampler: BaseSampler, fixed: Architecture | None = None) -> Entry:
        """A new trial: `fixed`, or what the sampler draws. It is for `queue` or `reject`, before the next proposal.

        Raises:
            RuntimeError: the proposal before is neither queued nor rejected.
        """
        self._flush()
        if self._draft is not None:
            raise RuntimeError("the proposal before is still open")
        number = len(self._entries)
        self._memory.sampler = sampler
        self._draft = draft = self._memory.ask()
        known: Mapping[str, Any] | None
        if fixed is None:
            known = draft.relative_params
        elif (known := space.params(fixed)) is None:  # the skeleton, where the space itself does not allow it
            return self._put(Entry(number, fixed))
        trial = self._memory.get_trials(deepcopy=False)[number]

        def choose(name: str, choices: Sequence[Any]) -> Any:
            """What `Trial.suggest_categorical` does, but for its copies and its checks of every parameter."""
            found = self._distributions.get(name) or self._distributions.setdefault(name, CategoricalDistribution(choices))
            value = known[name] if name in known else sampler.sample_independent(self._memory, trial, name, found)
            trial.params[name], trial.distributions[name] = value, found
            return choices[choices.index(value)]

        return self._put(Entry(number, space.draw(choose)))

    def queue(self, number: int, price: Mapping[str, Any], excess: Mapping[str, float]) -> None:
        """A priced proposal waits for a worker. `excess` is what `Limits.excess` says: Optuna's constraints.

        It is written with what comes next, which may be that a worker has it.
        """
        draft = self._open_draft(number)
        for name, value in excess.items():
            draft.set_constraint(name, value)
        self._put(replace(self[number], state="queued", price=price))

    def reject(self, number: int, reason: str, price: Mapping[str, Any] | None = None) -> None:
        """A trial is not trained: over a limit, repeat, forbidden, invalid. It may have been queued under another limit."""
        entry = replace(self[number], state="rejected", reason=reason, price=price)
        if entry.number in self._keys:
            self._end(entry, TrialState.FAIL)
        else:
            draft = self._open_draft(number)
            self._tell(number, TrialState.FAIL)
            self._write(draft, entry)

    def start(self, number: int) -> None:
        """A worker has the trial: a new attempt, charged from now on. What is done stays done: its repeat begins."""
        entry = self[number]
        state = "done" if entry.state == "done" else "running"
        self._update(replace(entry, state=state, attempts=(*entry.attempts, {"seconds": 0.0, "outcome": "running"})))

    def charge(self, number: int, seconds: float, outcome: str = "running") -> None:
        """Write down what the latest attempt has cost so far, and how it ended; a trial whose attempt ended waits again."""
        entry = _charged(self[number], seconds, outcome)
        state = "running" if outcome == "running" else "queued"
        self._update(replace(entry, state="done" if entry.state == "done" else state))

    def finish(self, number: int, seconds: float, result: Mapping[str, Any], *, paused: bool = False) -> None:
        """The trial has passed a rung after an attempt of so many seconds: the highest, or it is `paused`."""
        entry = _charged(self[number], seconds, "done")
        first = not entry.results
        entry = replace(entry, state="paused" if paused else "done", results=(*entry.results, dict(result)))
        if entry.price is None:
            raise RuntimeError(f"trial {number} has no price")
        if first:
            self._end(entry, TrialState.COMPLETE, entry.map, float(entry.price["ms"]))
        else:
            self._correct(entry)

    def promote(self, number: int) -> None:
        """A paused trial waits for a worker that takes it to the next rung."""
        self._update(replace(self[number], state="queued"))

    def rest(self, number: int) -> None:
        """A trial that waited for the next rung waits no longer."""
        self._update(replace(self[number], state="paused"))

    def confirm(self, number: int, seconds: float, result: Mapping[str, Any]) -> None:
        """A trial that is done was trained with another seed, in an attempt of so many seconds."""
        entry = _charged(self[number], seconds, "done")
        self._correct(replace(entry, repeats=(*entry.repeats, dict(result))))

    def validate(self, number: int, seconds: float, result: Mapping[str, Any]) -> None:
        """The kept weights of a trial that is done were scored on `val`, in an attempt of so many seconds."""
        self._update(replace(_charged(self[number], seconds, "validated"), val=dict(result)))

    def reprice(self, number: int, price: Mapping[str, Any], excess: Mapping[str, float]) -> None:
        """Another latency of a finished or waiting trial has come to be known: Optuna's samplers learn from that one."""
        self._correct(replace(self[number], price=price), excess)

    def _correct(self, entry: Entry, excess: Mapping[str, float] | None = None) -> None:
        """Something has come to be known after a trial was told to Optuna, or was queued: its values are replaced."""
        self._flush()
        trial = self._memory.get_trials(deepcopy=False)[entry.number]
        values = [entry.map, float(entry.price["ms"])] if trial.values and entry.price else []
        trial.values = values or None
        if excess is not None:
            trial.system_attrs = {n: v for n, v in trial.system_attrs.items() if n.rpartition(":")[2] not in excess}
            for name, value in excess.items():
                trial.set_constraint(name, value)  # which keeps the first that it was given
        changed = _attributes(entry, since=self[entry.number])
        self._database.correct_trial(self._keys[entry.number], changed, trial.system_attrs, values)
        self._put(entry)

    def fail(self, number: int, seconds: float, reason: str) -> None:
        """The trial has ended, after an attempt of so many seconds; what it was worth on lower rungs stays known."""
        entry = replace(_charged(self[number], seconds, "failed"), state="failed", reason=reason)
        if entry.results:
            self._update(entry)
        else:
            self._end(entry, TrialState.FAIL)

    def reopen(self) -> list[Entry]:
        """After a crash or an interruption, bring every open trial to where it can go on; returns those that wait.

        A running attempt is closed as interrupted, with the seconds last charged.
        """
        for entry in self.entries:
            if entry.attempts and entry.attempts[-1]["outcome"] == "running":
                self.charge(entry.number, entry.attempts[-1]["seconds"], "interrupted")
        return [entry for entry in self.entries if entry.state == "queued"]

    def close(self) -> None:
        """Let others open the database exclusively; what is known of the trials can still be read here."""
        self._flush()
        self._database.close()

    def failure(self, error: Exception) -> Exception:
        """What to raise for one of STORE_ERRORS that came up while this store was in use."""
        return error if self._place is None else self._place.failure(error)

    def add_seconds(self, **seconds: float) -> None:
        """Add to the run's own clocks: `wall`, `lane`."""
        self._put_facts({f"{name}_seconds": round(self.seconds(name) + value, 3) for name, value in seconds.items()})

    def seconds(self, name: str) -> float:
        return float(self.fact(f"{name}_seconds") or 0.0)

    def fact(self, name: str) -> Any:
        """A fact about the run that was kept with `put_fact`, or None."""
        return self._facts.get(name)

    def put_fact(self, name: str, value: Any) -> None:
        """Keep a fact about the run: plain data."""
        self._put_facts({name: value})

    def _put_facts(self, facts: Mapping[str, Any]) -> None:
        self._flush()
        self._database.put_facts(facts)
        self._facts |= facts

    def _open_draft(self, number: int) -> Trial:
        if self._draft is None or self._draft.number != number:
            raise RuntimeError(f"trial {number} is not the open proposal")
        return self._draft

    def _flush(self) -> None:
        """Write the proposal that is queued, if it is not yet."""
        if self._draft is not None and (entry := self[self._draft.number]).state != "proposed":
            self._write(self._draft, entry)

    def _write(self, draft: Trial, entry: Entry) -> None:
        """Write a proposal whole: parameters, attributes and state."""
        trial = self._memory.get_trials(deepcopy=False)[draft.number]
        self._share_distributions(trial)
        if trial.state == TrialState.FAIL:  # nobody learns from its parameters: they would only cost time and room
            trial.params, trial.distributions, trial.system_attrs = NOTHING, NOTHING, NOTHING
            trial.user_attrs, trial.intermediate_values = NOTHING, {}
        self._keys[entry.number] = self._database.add_trial(trial, _attributes(entry))
        self._draft = None
        self._put(entry)

    def _share_distributions(self, trial: FrozenTrial) -> None:
        """A parameter has the same distribution in all trials. One object for all saves memory, as does one mapping for all
        trials with the same parameters."""
        own, names = self._distributions, tuple(trial.distributions)
        if names not in self._shared:
            self._shared[names] = {name: own.setdefault(name, found) for name, found in trial.distributions.items()}
        trial.distributions = self._shared[names]

    def _update(self, entry: Entry) -> None:
        if self._draft is not None and self._draft.number == entry.number:
            self._write(self._draft, entry)
            return
        self._flush()
        self._database.update_trial(self._keys[entry.number], _attributes(entry, since=self[entry.number]))
        self._put(entry)

    def _end(self, entry: Entry, state: TrialState, *values: float) -> None:
        """A trial has ended. Raises ValueError for values that are no finite numbers."""
        if not all(map(math.isfinite, values)):
            raise ValueError(f"trial {entry.number} cannot have the values {values}")
        self._flush()
        self._tell(entry.number, state, values)
        self._database.update_trial(self._keys[entry.number], _attributes(entry, since=self[entry.number]), state, values)
        self._put(entry)

    def _tell(self, number: int, state: TrialState, values: Sequence[float] = ()) -> None:
        """What `Study.tell` does, but for a deep copy of the trial."""
        trial = self._memory.get_trials(deepcopy=False)[number]
        self._told.set_trial_state_values(trial._trial_id, state, values or None)

    def _put(self, entry: Entry) -> Entry:
        self.tally.change(self._entries.get(entry.number), entry)
        self._entries[entry.number] = entry
        return entry


def _opened(place: Place | None, facts: Mapping[str, Any] | None, exclusive: bool) -> Database | MemoryDatabase:
    """The database at a place, made with `facts` where these are given. Raises InputError where it is not there."""
    if place is None:
        return MemoryDatabase(facts or {})
    if facts is not None:
        place.create(facts)
    elif not place.exists():
        raise place.missing
    return place.open(exclusive=exclusive)


def _charged(entry: Entry, seconds: float, outcome: str) -> Entry:
    """The entry with the seconds and the outcome of its latest attempt."""
    return replace(entry, attempts=(*entry.attempts[:-1], {"seconds": round(seconds, 3), "outcome": outcome}))


def _attributes(entry: Entry, since: Entry | None = None) -> dict[str, Any]:
    """What the database keeps of an entry, plain data: all that is known, or what has come to be known since."""
    told = entry.state in {"rejected", "failed", "paused"} or (
        entry.results and (entry.state, len(entry.results)) != ("done", 1)
    )
    known = {
        "architecture": {"id": entry.architecture.id, **entry.architecture.to_dict()},
        "price": entry.price,
        "results": entry.results or None,
        "repeats": entry.repeats or None,
        "val": entry.val,
        "attempts": entry.attempts or None,
        END: {"state": entry.state, "reason": entry.reason} if told else None,
    }
    before = {} if since is None else _attributes(since)
    return {name: value for name, value in known.items() if value is not None and value != before.get(name)}


def _entry(trial: FrozenTrial) -> Entry:
    """A trial as it lies in the database."""
    attrs = trial.user_attrs
    attempts, results = tuple(attrs.get("attempts", ())), tuple(attrs.get("results", ()))
    end = attrs.get(END, {"state": "done" if results else "queued", "reason": None})
    state = end["state"]
    if state == "queued" and attempts and attempts[-1]["outcome"] == "running":
        state = "running"
    architecture = Architecture.from_dict(attrs["architecture"])
    repeats = tuple(attrs.get("repeats", ()))
    price, val = attrs.get("price"), attrs.get("val")
    return Entry(trial.number, architecture, state, end["reason"], price, results, attempts, repeats, val)
