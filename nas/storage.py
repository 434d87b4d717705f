"""The address of a database as people type it, and its password, which is written nowhere.

`postgresql://user:password@host:5432/database` becomes the *storage* `postgresql://user@host:5432/database`. This process
remembers the password of a storage; another one has it from PGPASSWORD or ~/.pgpass, where PostgreSQL's own tools look.
"""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit, urlunsplit

from nas.errors import InputError

_SCHEMES = ("postgresql", "postgres")
_HINT = "give postgresql://user@host:5432/database"
_ESCAPES = "write special characters of a password as %40 (for @) and so on, or give it in PGPASSWORD"
# Up to the last @: who types one in a password should not find the rest of it in a log.
_PASSWORDS = re.compile(r"(?<=://)([^\s:/@]*):\S*@|(\w*(?:password|secret)=)[^&\s]*")
_remembered: dict[str, str] = {}


def parse_storage(text: str) -> str:
    """The storage that `text` is the address of. Its password is remembered, as long as this process lives.

    Raises:
        InputError: no address of a PostgreSQL database; says so without repeating what might hold a password.
    """
    if re.search(r"\s", text):
        raise InputError("--storage: a blank in the address", _ESCAPES)
    scheme, found, _ = text.partition("://")
    if not found or not re.fullmatch(r"[\w+.-]*", scheme):
        raise InputError("--storage is no address of a database", _HINT)
    if scheme not in _SCHEMES:
        hint = f"{_HINT}; without --storage the study is RUN/study.db"
        raise InputError(f"--storage: nas keeps no studies in '{scheme}://'", hint)
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise InputError("--storage: what stands before the database is not user:password@host:port", _ESCAPES) from None
    if "@" in parts.path + parts.query or parts.fragment or port == 0:
        raise InputError("--storage: a stray '@', '#' or port 0", _ESCAPES)
    if not re.fullmatch(r"/[^/]+", parts.path):
        raise InputError("--storage names no database", _HINT)
    if _PASSWORDS.search(f"?{parts.query}"):
        raise InputError("--storage: a password stands behind the '?'", "give it as user:password@host, or in PGPASSWORD")
    host = parts.netloc.rpartition("@")[2]
    user = f"{parts.username}@" if parts.username else ""
    storage = urlunsplit(("postgresql", user + host, parts.path, parts.query, ""))
    if not host:  # urlunsplit would leave out the slashes
        storage = f"postgresql://{user}{parts.path}" + (f"?{parts.query}" if parts.query else "")
    if parts.password:
        _remembered[storage] = unquote(parts.password)
    return storage


def check_storage(storage: str) -> None:
    """Raises InputError where a storage is none, or holds a password."""
    if masked(storage) != storage:
        raise InputError("the storage holds a password", "take it out, and give it in PGPASSWORD or ~/.pgpass")
    parse_storage(storage)


def password_of(storage: str) -> str | None:
    """The password that was last typed with this storage, if one was."""
    return _remembered.get(storage)


def masked(text: str) -> str:
    """A text with `***` for every password of an address in it."""
    return _PASSWORDS.sub(lambda found: f"{found[1]}:***@" if found[2] is None else f"{found[2]}***", text)
