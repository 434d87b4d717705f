"""The store: one Optuna study per rung in one database, written by the search process alone.

Everything that is known of a trial stands in it, so that a search which was killed goes on where it was. What Optuna
itself asks for (parameters, states, values) is kept in a study in memory too, rebuilt from the database on opening: the
samplers draw from that one, and a trial is written, whole and in one transaction, once it is priced. A killed process
loses at most one proposal, which the same (seed, trial, results) draws again. Rejected and failed trials are Optuna's
FAIL, which samplers leave out.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import optuna
import sqlalchemy.exc
from optuna.trial import FrozenTrial, Trial, TrialState

from nas.errors import InputError
from nas.search.sampler import make_sampler
from nas.space.architecture import Architecture
from nas.space.search_space import SearchSpace

optuna.logging.set_verbosity(optuna.logging.WARNING)

VERSION = 1
RUNG = "rung0"
LIMIT = "latency limit"
END = "end"  # the attribute {state, reason} of a rejected or failed trial
# What SQLite's troubles (a full disk, a read-only file) arrive as, once a store is open.
STORE_ERRORS = (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError)
DIRECTIONS: tuple[Literal["maximize"], Literal["minimize"]] = ("maximize", "minimize")


@dataclass(frozen=True)
class Entry:
    """One trial of a rung.

    `state` is one of proposed, rejected, queued, running, done, failed; `price` is what `LatencyCache` keeps; `result`
    what a proxy training returned; `attempts` one mapping {seconds, outcome} per execution.
    """

    number: int
    architecture: Architecture
    state: str = "proposed"
    reason: str | None = None
    price: Mapping[str, Any] | None = None
    result: Mapping[str, Any] | None = None
    attempts: tuple[Mapping[str, Any], ...] = ()

    @property
    def seconds(self) -> float:
        """Device seconds charged to this trial."""
        return float(sum(attempt["seconds"] for attempt in self.attempts))


class Store:
    """The trials of one run.

    Args:
        folder: the run folder; the database is `study.db` in it.
        create: make the database; otherwise it must be there.

    Raises:
        InputError: the database is missing, unreadable or of another version.
    """

    def __init__(self, folder: Path, *, create: bool) -> None:
        path = folder / "study.db"
        if not create and not path.is_file():
            raise InputError(f"{folder}: holds no study.db", "give the folder of a run, for example results/search")
        try:
            self._database, study = _open(path, create=create)
            self._facts = dict(study.user_attrs)
            found = self._facts["version"]
            trials = study.get_trials(deepcopy=False) if found == VERSION else []
            self._entries = {trial.number: _entry(trial) for trial in trials}
        except Exception as error:
            # SQLAlchemy, sqlite3 and Optuna each have their own ways to say that this is not a usable database.
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            raise InputError(f"{path}: cannot be used: {reason}", "restore the file, or start a new run") from error
        if found != VERSION:
            raise InputError(f"{path}: written by version {found} of the store, this is {VERSION}", "use the nas that wrote it")
        self._study_id = study._study_id
        self._memory = optuna.create_study(directions=DIRECTIONS)
        self._memory.add_trials(trials)
        self._draft: Trial | None = None
        self._ids = {trial.number: trial._trial_id for trial in trials}

    @property
    def entries(self) -> list[Entry]:
        """All trials in the order of their numbers."""
        return list(self._entries.values())

    def __getitem__(self, number: int) -> Entry:
        return self._entries[number]

    def __len__(self) -> int:
        return len(self._entries)

    def propose(self, space: SearchSpace, sampler: str, seed: int, fixed: Architecture | None = None) -> Entry:
        """A new trial: `fixed`, or what the sampler draws. It is written by `queue` or `reject`, before the next proposal.

        Raises:
            RuntimeError: the proposal before is neither queued nor rejected.
        """
        if self._draft is not None:
            raise RuntimeError("the proposal before is still open")
        number = len(self._entries)
        self._memory.sampler = make_sampler(sampler, seed, number)
        params = space.params(fixed) if fixed is not None else None
        if params:
            self._memory.enqueue_trial(params)
        self._draft = trial = self._memory.ask()
        if fixed is None or params is not None:
            architecture = space.draw(
                lambda name, choices: choices[choices.index(trial.suggest_categorical(name, list(choices)))]
            )
        else:
            architecture = fixed  # the skeleton, where the space itself does not allow it
        return self._put(Entry(number, architecture))

    def queue(self, number: int, price: Mapping[str, Any], over_limit_ms: float | None) -> None:
        """A priced proposal waits for a worker. `over_limit_ms`: latency less the limit, where there is a limit."""
        draft = self._open_draft(number)
        if over_limit_ms is not None:
            draft.set_constraint(LIMIT, over_limit_ms)
        self._write(draft, replace(self[number], state="queued", price=price))

    def reject(self, number: int, reason: str, price: Mapping[str, Any] | None = None) -> None:
        """A trial is not trained: over-latency, repeat, forbidden, invalid. It may have been queued under another limit."""
        entry = replace(self[number], state="rejected", reason=reason, price=price)
        if self._draft is None:
            self._end(entry)
        else:
            draft = self._open_draft(number)
            self._memory.tell(number, state=TrialState.FAIL)
            self._write(draft, entry)

    def start(self, number: int) -> None:
        """A worker has the trial: a new attempt, charged from now on."""
        attempts = (*self[number].attempts, {"seconds": 0.0, "outcome": "running"})
        self._set(number, attempts=attempts)
        self._put(replace(self[number], state="running", attempts=attempts))

    def charge(self, number: int, seconds: float, outcome: str = "running") -> None:
        """Write down what the latest attempt has cost so far, and how it ended; a trial whose attempt ended waits again."""
        attempts = (*self[number].attempts[:-1], {"seconds": round(seconds, 3), "outcome": outcome})
        self._set(number, attempts=attempts)
        self._put(replace(self[number], attempts=attempts, state="running" if outcome == "running" else "queued"))

    def finish(self, number: int, result: Mapping[str, Any]) -> None:
        """The trial is done. The result is written before Optuna is told, so a crash in between loses nothing."""
        self._set(number, result=dict(result))
        self._tell(replace(self[number], result=result))

    def fail(self, number: int, reason: str) -> None:
        """The trial has ended without a result."""
        self._end(replace(self[number], state="failed", reason=reason))

    def reopen(self) -> list[Entry]:
        """After a crash or an interruption, bring every open trial to where it can go on; returns those that wait.

        A running attempt is closed as interrupted, with the seconds last charged; an end that Optuna was not told is told.
        """
        for trial in self._memory.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            entry = self[trial.number]
            if entry.state == "done":
                self._tell(entry)
            elif entry.state in {"failed", "rejected"}:
                self._end(entry)
            elif entry.state == "running":
                self.charge(entry.number, entry.attempts[-1]["seconds"], "interrupted")
        return [entry for entry in self.entries if entry.state == "queued"]

    def add_seconds(self, **seconds: float) -> None:
        """Add to the run's own clocks: `wall`, `lane`."""
        for name, value in seconds.items():
            self.put_fact(f"{name}_seconds", round(self.seconds(name) + value, 3))

    def seconds(self, name: str) -> float:
        return float(self.fact(f"{name}_seconds") or 0.0)

    def fact(self, name: str) -> Any:
        """A fact about the run that was kept with `put_fact`, or None."""
        return self._facts.get(name)

    def put_fact(self, name: str, value: Any) -> None:
        """Keep a fact about the run: plain data."""
        self._facts[name] = value
        self._database.set_study_user_attr(self._study_id, name, value)

    def _open_draft(self, number: int) -> Trial:
        if self._draft is None or self._draft.number != number:
            raise RuntimeError(f"trial {number} is not the open proposal")
        return self._draft

    def _write(self, draft: Trial, entry: Entry) -> None:
        """Write a proposal whole: parameters, attributes and state in one transaction."""
        architecture = {"id": entry.architecture.id, **entry.architecture.to_dict()}
        known = {"architecture": architecture, "price": entry.price, END: _ended(entry)}
        drawn = self._memory.get_trials(deepcopy=False)[draft.number]
        rejected = drawn.state == TrialState.FAIL  # nobody learns from its parameters: they would only cost time
        trial = optuna.trial.create_trial(
            state=drawn.state,
            params={} if rejected else drawn.params,
            distributions={} if rejected else drawn.distributions,
            system_attrs=drawn.system_attrs,
            user_attrs={name: value for name, value in known.items() if value is not None},
        )
        self._ids[draft.number] = self._database.create_new_trial(self._study_id, trial)
        self._draft = None
        self._put(entry)

    def _end(self, entry: Entry) -> None:
        """Write that a trial has ended without a result, and why, in one; then tell Optuna."""
        self._set(entry.number, **{END: _ended(entry)})
        self._memory.tell(entry.number, state=TrialState.FAIL)
        self._database.set_trial_state_values(self._ids[entry.number], TrialState.FAIL)
        self._put(entry)

    def _tell(self, entry: Entry) -> None:
        if entry.result is None or entry.price is None:
            raise RuntimeError(f"trial {entry.number} has no result or no price")
        values = [float(entry.result["map"]), float(entry.price["ms"])]
        self._memory.tell(entry.number, values)
        self._database.set_trial_state_values(self._ids[entry.number], TrialState.COMPLETE, values)
        self._put(replace(entry, state="done"))

    def _set(self, number: int, **attributes: Any) -> None:
        for name, value in attributes.items():
            self._database.set_trial_user_attr(self._ids[number], name, value)

    def _put(self, entry: Entry) -> Entry:
        self._entries[entry.number] = entry
        return entry


def _open(path: Path, *, create: bool) -> tuple[optuna.storages.RDBStorage, optuna.Study]:
    storage = optuna.storages.RDBStorage(
        f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": 60}}, skip_table_creation=not create
    )
    if not create:
        return storage, optuna.load_study(study_name=RUNG, storage=storage)
    study = optuna.create_study(study_name=RUNG, storage=storage, directions=DIRECTIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names(["mAP50-95", "latency ms"])
    study.set_user_attr("version", VERSION)
    return storage, study


def _ended(entry: Entry) -> dict[str, str | None] | None:
    return {"state": entry.state, "reason": entry.reason} if entry.state in {"rejected", "failed"} else None


def _entry(trial: FrozenTrial) -> Entry:
    """A trial as it lies in the database. A result or an end counts, told to Optuna or not: it is written first."""
    attrs = trial.user_attrs
    attempts = tuple(attrs.get("attempts", ()))
    end = attrs.get(END, {"state": "queued", "reason": None})
    state = end["state"]
    if "result" in attrs:
        state = "done"
    elif END not in attrs and attempts and attempts[-1]["outcome"] == "running":
        state = "running"
    architecture = Architecture.from_dict(attrs["architecture"])
    return Entry(trial.number, architecture, state, end["reason"], attrs.get("price"), attrs.get("result"), attempts)
