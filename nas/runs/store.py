"""The store: one Optuna study per rung in one database, written by the search process alone.

Everything that is known of a trial stands in it, so that a search which was killed goes on where it was: parameters and
values as Optuna keeps them, and the user attributes named in `Entry`. A trial of `rung0` is told once, when it is done,
failed or rejected; a rejected or failed one is told as Optuna's FAIL, which samplers leave out.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, Trial, TrialState

from nas.errors import InputError
from nas.search.sampler import make_sampler
from nas.space.architecture import Architecture
from nas.space.search_space import Choice, SearchSpace

optuna.logging.set_verbosity(optuna.logging.WARNING)

VERSION = 1
RUNG = "rung0"
LIMIT = "latency limit"


@dataclass(frozen=True)
class Entry:
    """One trial of a rung.

    `state` is one of proposed, rejected, queued, running, done, failed; `price` is what `LatencyCache` keeps; `result`
    what a proxy training returned; `attempts` one mapping {seconds, outcome} per execution.
    """

    number: int
    architecture: Architecture | None
    state: str = "proposed"
    reason: str | None = None
    price: Mapping[str, Any] | None = None
    result: Mapping[str, Any] | None = None
    attempts: tuple[Mapping[str, Any], ...] = field(default=())

    @property
    def seconds(self) -> float:
        """Device seconds charged to this trial."""
        return float(sum(attempt["seconds"] for attempt in self.attempts))


class Store:
    """The trials of one run.

    Args:
        folder: the run folder; the database is `study.db` in it.

    Raises:
        InputError: the database is missing, unreadable or of another version.
    """

    def __init__(self, folder: Path, *, create: bool) -> None:
        path = folder / "study.db"
        if not create and not path.is_file():
            raise InputError(f"{folder}: holds no study.db", "give the folder of a run, for example results/search")
        try:
            storage = optuna.storages.RDBStorage(
                f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": 60}}, skip_table_creation=not create
            )
            if create:
                self._study = optuna.create_study(study_name=RUNG, storage=storage, directions=["maximize", "minimize"])
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                    self._study.set_metric_names(["mAP50-95", "latency ms"])
                self._study.set_user_attr("version", VERSION)
            else:
                self._study = optuna.load_study(study_name=RUNG, storage=storage)
            self._facts = dict(self._study.user_attrs)
            found = self._facts["version"]
            self._entries = {t.number: _entry(t) for t in self._study.get_trials(deepcopy=False)} if found == VERSION else {}
        except Exception as error:
            # SQLAlchemy, sqlite3 and Optuna each have their own ways to say that this is not a usable database.
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            raise InputError(f"{path}: cannot be used: {reason}", "restore the file, or start a new run") from error
        if found != VERSION:
            raise InputError(f"{path}: written by version {found} of the store, this is {VERSION}", "use the nas that wrote it")
        self._trials: dict[int, Trial] = {}

    @property
    def entries(self) -> list[Entry]:
        """All trials in the order of their numbers."""
        return [self._entries[number] for number in sorted(self._entries)]

    def __getitem__(self, number: int) -> Entry:
        return self._entries[number]

    def __len__(self) -> int:
        return len(self._entries)

    def propose(self, space: SearchSpace, sampler: str, seed: int, fixed: Architecture | None = None) -> Entry:
        """A new trial: `fixed`, or what the sampler draws."""
        number = len(self._entries)
        if fixed is not None:
            self._add(space, fixed)
            return self._put(Entry(number, fixed))
        self._study.sampler = make_sampler(sampler, seed, number)
        trial = self._trials[number] = self._study.ask()
        drawn = space.draw(lambda name, choices: choices[choices.index(trial.suggest_categorical(name, list(choices)))])
        trial.set_user_attr("architecture", _named(drawn))
        return self._put(Entry(number, drawn))

    def _add(self, space: SearchSpace, architecture: Architecture) -> None:
        """A trial of a given architecture, in one step; without parameters where the space does not allow it (the skeleton)."""
        params = space.params(architecture)
        distributions: dict[str, BaseDistribution] = {}

        def choose(name: str, choices: Sequence[Choice]) -> Choice:
            distributions[name] = CategoricalDistribution(list(choices))
            return (params or {})[name]

        if params is not None:
            space.draw(choose)
        attrs = {"architecture": _named(architecture)}
        running = TrialState.RUNNING
        self._study.add_trial(optuna.create_trial(state=running, params=params, distributions=distributions, user_attrs=attrs))

    def queue(self, number: int, price: Mapping[str, Any], over_limit_ms: float | None) -> None:
        """A priced trial waits for a worker. `over_limit_ms`: latency less the limit, where there is a limit."""
        trial = self._trial(number)
        trial.set_user_attr("price", dict(price))
        if over_limit_ms is not None and LIMIT not in self._frozen(number).constraints:  # as an earlier process may have
            trial.set_constraint(LIMIT, over_limit_ms)
        self._state(number, "queued", price=price)

    def start(self, number: int) -> None:
        """A worker has the trial: a new attempt, charged from now on."""
        attempts = (*self[number].attempts, {"seconds": 0.0, "outcome": "running"})
        self._attempts(number, attempts)
        self._state(number, "running", attempts=attempts)

    def charge(self, number: int, seconds: float, outcome: str = "running") -> None:
        """Write down what the latest attempt has cost so far, and how it ended."""
        attempts = (*self[number].attempts[:-1], {"seconds": round(seconds, 3), "outcome": outcome})
        self._attempts(number, attempts)
        self._put(replace(self[number], attempts=attempts))

    def requeue(self, number: int) -> None:
        """The latest attempt came to nothing; the trial waits again."""
        self._state(number, "queued")

    def finish(self, number: int, result: Mapping[str, Any]) -> None:
        """The trial is done. The result is written before Optuna is told, so a crash in between loses nothing."""
        trial = self._trial(number)
        trial.set_user_attr("result", dict(result))
        self._tell(number, result)

    def reject(self, number: int, reason: str, price: Mapping[str, Any] | None = None) -> None:
        """The trial is not trained: over-latency, repeat, forbidden, invalid."""
        if price is not None:
            self._trial(number).set_user_attr("price", dict(price))
        self._end(number, "rejected", reason, price)

    def fail(self, number: int, reason: str) -> None:
        self._end(number, "failed", reason, self[number].price)

    def reopen(self) -> list[Entry]:
        """After a crash or an interruption: bring every open trial to a state to go on from; returns the queued ones.

        What was written down as ended is told to Optuna. A running attempt is closed as lost with the seconds last
        charged. A proposal that was not priced yet stays a proposal.
        """
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            number, entry = trial.number, self[trial.number]
            if entry.state == "done":
                self._tell(number, entry.result or {})
            elif entry.reason is not None:
                self._end(number, entry.state, entry.reason, entry.price)
            elif entry.architecture is None:
                self.reject(number, "interrupted before it was written down")
            elif entry.state != "proposed":
                if entry.attempts and entry.attempts[-1]["outcome"] == "running":
                    self.charge(number, entry.attempts[-1]["seconds"], "lost")
                self.requeue(number)
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
        self._study.set_user_attr(name, value)

    def _tell(self, number: int, result: Mapping[str, Any]) -> None:
        price = self[number].price or {}
        self._study.tell(number, [result["map"], price["ms"]])
        self._state(number, "done", result=result, write=False)

    def _end(self, number: int, state: str, reason: str, price: Mapping[str, Any] | None) -> None:
        self._trial(number).set_user_attr("reason", reason)
        self._state(number, state, reason=reason, price=price)
        self._study.tell(number, state=TrialState.FAIL)

    def _attempts(self, number: int, attempts: tuple[Mapping[str, Any], ...]) -> None:
        self._trial(number).set_user_attr("attempts", [dict(attempt) for attempt in attempts])

    def _state(self, number: int, state: str, *, write: bool = True, **changes: Any) -> None:
        if write:
            self._trial(number).set_user_attr("state", state)
        self._put(replace(self[number], state=state, **changes))

    def _put(self, entry: Entry) -> Entry:
        self._entries[entry.number] = entry
        return entry

    def _trial(self, number: int) -> Trial:
        """Optuna's handle of an open trial, also of one that an earlier process asked for."""
        if number not in self._trials:
            self._study.sampler = make_sampler("random", 0, 0)  # the handle asks it for parameters that it has already
            self._trials[number] = Trial(self._study, self._frozen(number)._trial_id)
        return self._trials[number]

    def _frozen(self, number: int) -> FrozenTrial:
        return self._study.get_trials(deepcopy=False)[number]


def _named(architecture: Architecture) -> dict[str, Any]:
    return {"id": architecture.id, **architecture.to_dict()}


def _entry(trial: FrozenTrial) -> Entry:
    """A trial as it lies in the database. A result or a reason counts, told to Optuna or not: it is written first."""
    attrs = trial.user_attrs
    attempts = tuple(attrs.get("attempts", ()))
    state = attrs.get("state", "proposed")
    if "result" in attrs:
        state = "done"
    elif "reason" in attrs and state not in {"failed", "rejected"}:
        state = "failed" if attempts else "rejected"
    return Entry(
        trial.number,
        Architecture.from_dict(attrs["architecture"]) if "architecture" in attrs else None,
        state,
        attrs.get("reason"),
        attrs.get("price"),
        attrs.get("result"),
        attempts,
    )
