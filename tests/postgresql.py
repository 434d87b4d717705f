"""A PostgreSQL server of the tests' own, in a folder that goes with it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import optuna
import psycopg
import pytest
from sqlalchemy.pool import NullPool

PASSWORD = "pass wörd:/@7"
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "fsync": "off",  # nobody pulls the plug of this machine
    "full_page_writes": "off",
    "shared_buffers": "16MB",
    "max_connections": "30",
}


def binaries() -> Path:
    """The folder of `initdb` and `pg_ctl`; without it the test is skipped."""
    found = [Path(tool).resolve().parent] if (tool := shutil.which("initdb")) else []
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in found:
        if (folder / "pg_ctl").is_file():
            return folder
    pytest.skip("no PostgreSQL server is installed (initdb, pg_ctl)")


def reader(url: str) -> optuna.storages.RDBStorage:
    """Optuna's own storage of any database, which leaves no connection open."""
    return optuna.storages.RDBStorage(url, engine_kwargs={"poolclass": NullPool})


class Server:
    """A server on a port of 127.0.0.1, with the user `nas`, who has a password."""

    def __init__(self, folder: Path) -> None:
        self._bin, self._data = binaries(), folder / "data"
        # PostgreSQL refuses to run as root.
        self._user = "postgres" if os.getuid() == 0 else None
        if self._user is not None:
            shutil.chown(folder, self._user)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        secret = folder / "password"
        secret.write_text(PASSWORD)
        if self._user is not None:
            shutil.chown(secret, self._user)
        self._do("initdb", "--username=nas", "--auth=scram-sha-256", f"--pwfile={secret}", "--no-sync", "--encoding=UTF8")
        options = SETTINGS | {"port": str(self.port), "unix_socket_directories": str(folder)}
        with (self._data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in options.items())

    def _do(self, tool: str, *arguments: str) -> None:
        command = [str(self._bin / tool), "-D", str(self._data), *arguments]
        group = {} if self._user is None else {"user": self._user, "group": self._user, "extra_groups": []}
        with (self._data.parent / "log").open("a") as log:
            subprocess.run(command, check=True, stdout=log, stderr=log, cwd="/", timeout=60, **group)

    def start(self) -> None:
        self._do("pg_ctl", "start", "--wait")

    def stop(self) -> None:
        """As a crash does: all connections break."""
        self._do("pg_ctl", "stop", "--mode=immediate", "--wait")

    def url(self, database: str, *, password: str | None = PASSWORD, scheme: str = "postgresql") -> str:
        secret = "" if password is None else f":{quote(password, safe='')}"
        return f"{scheme}://nas{secret}@127.0.0.1:{self.port}/{database}"

    def execute(self, database: str, sql: str) -> list[tuple]:
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(sql)
            return cursor.fetchall() if cursor.description else []

    def make_database(self, name: str, template: str = "template1") -> None:
        self.execute("postgres", f"CREATE DATABASE {name} TEMPLATE {template}")


@contextmanager
def running_server() -> Iterator[Server]:
    """Not below pytest's own folder, which only its owner may enter."""
    with tempfile.TemporaryDirectory(prefix="nas-pg-") as folder:
        server = Server(Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.stop()
