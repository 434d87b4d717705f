"""Addresses of databases: what is kept of them, and that no password is."""

import pytest

from nas import storage
from nas.errors import InputError
from nas.storage import check_storage, masked, parse_storage, password_of


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch):
    monkeypatch.setattr(storage, "_remembered", {})


@pytest.mark.parametrize(
    ("typed", "kept", "password"),
    [
        ("postgresql://u:p@h:5433/d", "postgresql://u@h:5433/d", "p"),
        ("postgres://u:p%40%2F@h/d?sslmode=require", "postgresql://u@h/d?sslmode=require", "p@/"),
        ("postgresql://u:a:b@c@h/d", "postgresql://u@h/d", "a:b@c"),
        ("postgresql://h/d", "postgresql://h/d", None),
        ("postgresql://u@[::1]:5433/d", "postgresql://u@[::1]:5433/d", None),
        ("postgresql:///d?host=/run/postgresql", "postgresql:///d?host=/run/postgresql", None),
        ("postgresql://u:p@/d?host=/run/postgresql", "postgresql://u@/d?host=/run/postgresql", "p"),
    ],
)
def test_what_is_kept_of_an_address(typed, kept, password):
    assert parse_storage(typed) == kept
    assert password_of(kept) == password
    check_storage(kept)
    if password is not None:
        assert masked(f"a {typed} b").split(":***@") == ["a " + typed.split(":")[0] + "://u", typed.rpartition("@")[2] + " b"]
        with pytest.raises(InputError, match="holds a password"):
            check_storage(typed)


@pytest.mark.parametrize(
    "typed",
    [
        "",
        "secret",
        "u:secret@h/d",
        "mysql://u:secret@h/d",
        "postgresql://u:secret@h",
        "postgresql://u:secret@h/",
        "postgresql://u:secret@h/d/e",
        "postgresql://u:secret#1@h/d",
        "postgresql://u:12/secret@h/d",
        "postgresql://u:1/d?secret@h/d",
        "postgresql://u:secret",
        "postgresql://u:a secret@h/d",
        "postgresql://u@h/d?password=secret",
        "postgresql://u@h/d?sslmode=require&sslpassword=secret",
        "postgresql://u:secret@h:0/d",
        "postgresql://[u:secret@h/d",
    ],
)
def test_what_is_no_address_is_not_repeated(typed):
    with pytest.raises(InputError) as error:
        parse_storage(typed)
    assert "secret" not in str(error.value) and error.value.hint
    assert storage._remembered == {}


@pytest.mark.parametrize("text", ["--max-latency 2ms", "mail to a@b, see https://example.org:80/x", "postgresql://h:5/d a@b"])
def test_other_text_stays(text):
    assert masked(text) == text
