"""A study in a PostgreSQL database, beside those of other runs."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy
from sqlalchemy.pool import NullPool

from nas.errors import InputError, NasError, UnreachableError
from nas.runs.database import Database, add_study, open_storage
from nas.runs.folder import resume_command
from nas.storage import password_of

if TYPE_CHECKING:
    import psycopg

DIALECT = "postgresql+psycopg://"  # where to connect to, libpq reads from the storage itself
LOCKS = 0x6E6173  # nas: the first half of the keys of our advisory locks; the second is the study's number, or:
TABLES = 0
# What libpq would wait for without end, it gives up after seconds, unless the storage says otherwise.
PATIENCE = {
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}
# A searching host that vanishes holds its study until the server notices: after two minutes, not two hours.
NOTICE = "SET tcp_keepalives_idle = 60; SET tcp_keepalives_interval = 10; SET tcp_keepalives_count = 6"
HOLDER = """
SELECT application_name, host(client_addr) FROM pg_locks JOIN pg_stat_activity USING (pid)
WHERE locktype = 'advisory' AND granted AND objsubid = 2 AND classid = %s
  AND objid = (SELECT study_id FROM studies WHERE study_name = %s)
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


@dataclass(frozen=True)
class PostgresStudy:
    """A study called `study` in the database that `storage` is the address of, see `nas.runs.place.Place`.

    Args:
        folder: the run folder that it belongs to.
    """

    storage: str
    study: str
    folder: Path

    def __str__(self) -> str:
        return f"study '{self.study}' in {self.storage}"

    @property
    def missing(self) -> InputError:
        what = f"{self.folder}: {self.storage} holds no study '{self.study}'"
        return InputError(what, f"if it has moved: {resume_command(self.folder)} --storage postgresql://…")

    @property
    def cure(self) -> str:
        return "restore the database, or start a new run; its user must be allowed to make and change tables there"

    def exists(self) -> bool:
        with self._connect() as connection:
            import psycopg  # noqa: PLC0415  (it is there)

            try:
                return bool(connection.execute("SELECT 1 FROM studies WHERE study_name = %s", [self.study]).fetchall())
            except psycopg.errors.UndefinedTable:
                return False

    def create(self, facts: Mapping[str, Any]) -> None:
        with self._connect() as guard:  # two searches that begin at once must not make the same tables
            guard.execute("SELECT pg_advisory_lock(%s, %s)", [LOCKS, TABLES])
            storage = open_storage(DIALECT, make_tables=True, creator=self._connect, poolclass=NullPool)
            add_study(storage, self.study, facts)

    def open(self, *, exclusive: bool) -> Database:
        writer = self._writer() if exclusive else None
        try:
            storage = open_storage(DIALECT, make_tables=False, creator=self._connect, poolclass=NullPool)
            return Database(storage, self.study, writer)
        except BaseException:
            if writer is not None:
                writer.dispose()
            raise

    def failure(self, error: Exception) -> NasError:
        original: BaseException = error
        while original.__cause__ is not None:
            original = original.__cause__
        what = f"{self.storage}: {_first_line(original)}"
        return UnreachableError(what, f"nothing is lost; once that is put right: {resume_command(self.folder)}")

    def remove(self) -> None:
        self.open(exclusive=False).remove()

    def _connect(self) -> psycopg.Connection[Any]:
        """A new connection.

        Raises:
            UnreachableError: the server cannot be reached, or refuses.
            InputError: there is no driver, or libpq does not understand the storage.
        """
        try:
            import psycopg  # noqa: PLC0415
        except ImportError:
            raise InputError(f"{self.storage} needs psycopg", "pip install 'psycopg[binary]'") from None
        try:
            asked: dict[str, Any] = PATIENCE | dict(psycopg.conninfo.conninfo_to_dict(self.storage))
        except psycopg.ProgrammingError as error:
            raise InputError(f"--storage {self.storage}: {_first_line(error)}", "correct the address") from error
        if (password := password_of(self.storage)) is not None:
            asked["password"] = password
        name = f"nas process {os.getpid()} on {platform.node()}"
        try:
            return psycopg.connect(**asked | {"application_name": name})
        except psycopg.Error as error:
            raise _unreachable(self.storage, asked.get("dbname"), error) from error

    def _writer(self) -> sqlalchemy.Engine:
        """An engine of one connection, which holds the study. Once that is lost, somebody else may have written: no other
        takes its place."""
        held = False

        def connect() -> psycopg.Connection[Any]:
            nonlocal held
            if held:
                import psycopg  # noqa: PLC0415

                raise psycopg.OperationalError("the connection was lost")
            connection = self._hold()
            held = True
            return connection

        engine = sqlalchemy.create_engine(DIALECT, creator=connect, pool_size=1, max_overflow=0)
        engine.connect().close()  # now, not with the first write
        return engine

    def _hold(self) -> psycopg.Connection[Any]:
        """A new connection which no second one like it can stand beside, on any host. Raises InputError where one does."""
        connection = self._connect()
        try:
            connection.execute(NOTICE)
            lock = "SELECT pg_try_advisory_lock(%s, study_id) FROM studies WHERE study_name = %s"
            held = connection.execute(lock, [LOCKS, self.study]).fetchone()
            if held is None:
                raise self.missing
            if not held[0]:
                who = connection.execute(HOLDER, [LOCKS, self.study]).fetchone()
                raise InputError(f"{self} is in use by {_named(*who or ('', None))}", "wait for it to end, or stop it")
            connection.commit()
        except BaseException:
            connection.close()
            raise
        return connection


def _named(application: str | None, address: str | None) -> str:
    """Who holds a study, as far as the server tells: of other users it tells nothing."""
    name = (application or "another process").removeprefix("nas ")
    return name if address is None else f"{name} ({address})"


def _unreachable(storage: str, database: str | None, error: Exception) -> UnreachableError:
    reason = _first_line(error)
    hint = "is the server running, and do host and port lead to it?"
    if "password" in reason:
        hint = "give the right one in PGPASSWORD, in ~/.pgpass, or as postgresql://user:password@host/database"
    elif "database" in reason and "not exist" in reason:
        hint = f"make it: createdb {database}"
    elif "role" in reason:
        hint = "name another user: postgresql://user@host/database"
    return UnreachableError(f"{storage}: {reason}", hint)


def _first_line(error: BaseException) -> str:
    """What the driver says, in a line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = next((line for line in lines if "FATAL:" in line), lines[0] if lines else type(error).__name__)
    return said.rpartition("FATAL:")[2].strip().removeprefix("connection failed: ")[:200]
