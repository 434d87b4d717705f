"""The lock files belong to pyproject.toml: every direct dependency is pinned in them, to a version that it allows."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize(("file", "extra"), [("requirements.txt", "build"), ("requirements-dev.txt", "dev")])
def test_the_lock_holds_what_the_project_asks_for(file: str, extra: str) -> None:
    text = (ROOT / file).read_text()
    assert "://" not in re.sub(r"(?m)^#.*$", "", text)  # no registry host
    pins: dict[str, list[str]] = {}
    for name, version in re.findall(r"(?m)^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^\s;\\]+)", text):
        pins.setdefault(canonicalize_name(name), []).append(version)
    assert text.count("--hash=sha256:") >= sum(map(len, pins.values()))
    for line in (*PROJECT["dependencies"], *PROJECT["optional-dependencies"][extra]):
        wanted = Requirement(line)
        found = pins.get(canonicalize_name(wanted.name))
        assert found, f"{wanted.name} is not locked: run scripts/lock"
        assert all(wanted.specifier.contains(version) for version in found), f"{line} against {found}: run scripts/lock"
