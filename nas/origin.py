"""What is other on this machine than where a run began: its manifest tells."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from nas.latency.target import Target

MACHINE = ("machine", "gpu")  # of a target's stamp: latencies of two of these cannot be compared


def other_versions(manifest: Mapping[str, Any]) -> list[str]:
    """Python and packages that have another version now, each in words."""
    then = {"python": str(manifest.get("python")), **manifest.get("versions", {})}
    now = {name: platform.python_version() if name == "python" else _version(name) for name in then}
    return [f"{name} {then[name]}, now {now[name]}" for name in then if then[name] != now[name]]


def other_machine(manifest: Mapping[str, Any], target: Target) -> list[str]:
    """What latency is measured on now where it was another, each in words."""
    began, now = manifest.get("machine", {}), target.stamp()
    return [f"{began[key]}, now {now.get(key)}" for key in MACHINE if key in began and began[key] != now.get(key)]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
