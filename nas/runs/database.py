"""The database of a run: Optuna's own tables, of which each method reads or writes what belongs together, in one transaction.

Optuna's storage writes a trial's parameters and attributes one at a time and looks the trial up before each: about 1 ms of
CPU apiece, and a trial of the default space has some forty. Here they go in as rows, a statement per table, and a statement
is made once: SQLAlchemy needs three times as long to put one together as to find that it knows it. The tables are
what Optuna keeps compatible between its versions (it refuses to open others), so that `optuna.load_study`, Optuna's
samplers and optuna-dashboard read the study like any other.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.storages._rdb import models
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.dialects import postgresql, sqlite

DIRECTIONS: tuple[Literal["maximize"], Literal["minimize"]] = ("maximize", "minimize")
METRICS = {"study:metric_names": ["mAP50-95", "latency ms"]}  # the attribute that `Study.set_metric_names` sets
TRIALS: sqlalchemy.Table = models.TrialModel.__table__
PARAMS: sqlalchemy.Table = models.TrialParamModel.__table__
VALUES: sqlalchemy.Table = models.TrialValueModel.__table__
SYSTEM_ATTRIBUTES: sqlalchemy.Table = models.TrialSystemAttributeModel.__table__
USER_ATTRIBUTES: sqlalchemy.Table = models.TrialUserAttributeModel.__table__
STUDIES: sqlalchemy.Table = models.StudyModel.__table__
STUDY_DIRECTIONS: sqlalchemy.Table = models.StudyDirectionModel.__table__
STUDY_ATTRIBUTES: sqlalchemy.Table = models.StudyUserAttributeModel.__table__
STUDY_SYSTEM_ATTRIBUTES: sqlalchemy.Table = models.StudySystemAttributeModel.__table__
ADD_TRIAL = sqlalchemy.insert(TRIALS)
ADD_PARAMS = sqlalchemy.insert(PARAMS)
ADD_VALUES = sqlalchemy.insert(VALUES)
END_TRIAL = sqlalchemy.update(TRIALS).where(TRIALS.c.trial_id == sqlalchemy.bindparam("ended"))
REMOVE_VALUES = sqlalchemy.delete(VALUES).where(VALUES.c.trial_id == sqlalchemy.bindparam("corrected"))


class Database:
    """One study. A single process writes it; any other may read it meanwhile.

    Args:
        storage: Optuna's own access to the tables.
        study: the name of the study.
        engine: what to write with; that of `storage` where None.

    Raises, in every method, what SQLAlchemy, the database's driver and Optuna raise.
    """

    def __init__(self, storage: optuna.storages.RDBStorage, study: str, engine: sqlalchemy.Engine | None = None) -> None:
        self._storage, self._engine = storage, engine or storage.engine
        self._study_id = self._storage.get_study_id_from_name(study)
        self._distributions: dict[str, str] = {}

    def facts(self) -> dict[str, Any]:
        """The study's user attributes."""
        return self._storage.get_study_user_attrs(self._study_id)

    def trials(self) -> list[FrozenTrial]:
        """All trials in the order of their numbers."""
        return sorted(self._storage.get_all_trials(self._study_id, deepcopy=False), key=lambda trial: trial.number)

    def put_facts(self, facts: Mapping[str, Any]) -> None:
        """Set user attributes of the study."""
        with self._engine.begin() as connection:
            _put_attributes(connection, STUDY_ATTRIBUTES, self._study_id, facts)

    def add_trial(self, trial: FrozenTrial, attributes: Mapping[str, Any]) -> int:
        """Write a trial without values, under its own number, with these user attributes. Returns its key."""
        row = {
            "number": trial.number,
            "study_id": self._study_id,
            "state": trial.state,
            "datetime_start": _utc(trial.datetime_start),
            "datetime_complete": _utc(trial.datetime_complete),
        }
        with self._engine.begin() as connection:
            key = connection.execute(ADD_TRIAL, row).inserted_primary_key[0]  # type: ignore[index]
            params = [
                {
                    "trial_id": key,
                    "param_name": name,
                    "param_value": trial.distributions[name].to_internal_repr(value),
                    "distribution_json": self._json(name, trial.distributions[name]),
                }
                for name, value in trial.params.items()
            ]
            if params:
                connection.execute(ADD_PARAMS, params)
            _put_attributes(connection, SYSTEM_ATTRIBUTES, key, trial.system_attrs)
            _put_attributes(connection, USER_ATTRIBUTES, key, attributes)
        return int(key)

    def update_trial(
        self,
        key: int,
        attributes: Mapping[str, Any],
        state: TrialState | None = None,
        values: Sequence[float] = (),
    ) -> None:
        """Set user attributes of an open trial and, where `state` says so, end it, with these (finite) values."""
        with self._engine.begin() as connection:
            _put_attributes(connection, USER_ATTRIBUTES, key, attributes)
            if values:
                _insert_values(connection, key, values)
            if state is not None:
                now = _utc(datetime.now().astimezone())
                connection.execute(END_TRIAL, {"ended": key, "state": state, "datetime_complete": now})

    def correct_trial(
        self, key: int, attributes: Mapping[str, Any], system_attributes: Mapping[str, Any], values: Sequence[float]
    ) -> None:
        """Replace the values of a trial (none, if it has not ended), and set these attributes."""
        with self._engine.begin() as connection:
            _put_attributes(connection, USER_ATTRIBUTES, key, attributes)
            _put_attributes(connection, SYSTEM_ATTRIBUTES, key, system_attributes)
            connection.execute(REMOVE_VALUES, {"corrected": key})
            _insert_values(connection, key, values)

    def remove(self) -> None:
        """Remove the study with all its trials."""
        self._storage.delete_study(self._study_id)

    def close(self) -> None:
        """Give up the connections. Whoever reads or writes again opens new ones, but for a writer that held the study."""
        self._engine.dispose()
        self._storage.engine.dispose()

    def _json(self, name: str, distribution: BaseDistribution) -> str:
        """A parameter has one distribution in all trials of a study: Optuna allows no other."""
        if name not in self._distributions:
            self._distributions[name] = distribution_to_json(distribution)
        return self._distributions[name]


class MemoryDatabase:
    """As `Database`, of a run that is kept nowhere: its trials are what the store has in memory anyway."""

    def __init__(self, facts: Mapping[str, Any]) -> None:
        self._facts, self._trials = dict(facts), 0

    def close(self) -> None:
        pass

    def facts(self) -> dict[str, Any]:
        return dict(self._facts)

    def trials(self) -> list[FrozenTrial]:
        return []

    def put_facts(self, facts: Mapping[str, Any]) -> None:
        self._facts |= facts

    def add_trial(self, trial: FrozenTrial, attributes: Mapping[str, Any]) -> int:  # noqa: ARG002
        self._trials += 1
        return self._trials

    def update_trial(
        self, key: int, attributes: Mapping[str, Any], state: TrialState | None = None, values: Sequence[float] = ()
    ) -> None:
        pass

    def correct_trial(
        self, key: int, attributes: Mapping[str, Any], system_attributes: Mapping[str, Any], values: Sequence[float]
    ) -> None:
        pass


def add_study(storage: optuna.storages.RDBStorage, name: str, facts: Mapping[str, Any]) -> None:
    """Write an empty study with these user attributes, whole or not at all: readers may be waiting for it."""
    with storage.engine.begin() as connection:
        key = connection.execute(sqlalchemy.insert(STUDIES), {"study_name": name}).inserted_primary_key[0]  # type: ignore[index]
        directions = [
            {"study_id": key, "direction": StudyDirection[direction.upper()], "objective": objective}
            for objective, direction in enumerate(DIRECTIONS)
        ]
        connection.execute(sqlalchemy.insert(STUDY_DIRECTIONS), directions)
        _put_attributes(connection, STUDY_SYSTEM_ATTRIBUTES, key, METRICS)
        _put_attributes(connection, STUDY_ATTRIBUTES, key, facts)


def open_storage(url: str, *, make_tables: bool, **engine: Any) -> optuna.storages.RDBStorage:
    """Optuna's access to a database; `engine` goes to SQLAlchemy. Raises what SQLAlchemy, the driver and Optuna raise."""
    return optuna.storages.RDBStorage(url, engine_kwargs=engine, skip_table_creation=not make_tables)


def _put_attributes(
    connection: sqlalchemy.Connection, table: sqlalchemy.Table, key: int, attributes: Mapping[str, Any]
) -> None:
    """Set the named attributes of one study or trial; the others stay."""
    owner = _owner(table)
    rows = [{owner: key, "key": name, "value_json": json.dumps(value)} for name, value in attributes.items()]
    if rows:
        connection.execute(_put(table, connection.dialect.name), rows)


@functools.cache
def _put(table: sqlalchemy.Table, dialect: str) -> sqlalchemy.Executable:
    """Insert attributes, or give those that are there another value."""
    insert: Any = (postgresql if dialect == "postgresql" else sqlite).insert(table)
    return insert.on_conflict_do_update(  # type: ignore[no-any-return]
        index_elements=[_owner(table), "key"], set_={"value_json": insert.excluded.value_json}
    )


def _owner(table: sqlalchemy.Table) -> str:
    """The column that says whose attributes these are."""
    return "study_id" if "study_id" in table.c else "trial_id"


def _insert_values(connection: sqlalchemy.Connection, key: int, values: Sequence[float]) -> None:
    kind = models.TrialValueModel.TrialValueType.FINITE
    rows = [{"trial_id": key, "objective": i, "value": v, "value_type": kind} for i, v in enumerate(values)]
    if rows:
        connection.execute(ADD_VALUES, rows)


def _utc(moment: datetime | None) -> datetime | None:
    """As Optuna keeps moments in the database: UTC, without saying so."""
    return None if moment is None else moment.astimezone(UTC).replace(tzinfo=None)
