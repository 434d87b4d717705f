"""What is other on this machine than where a run began: its manifest tells."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from nas.latency.site import Site, differences, of_machine


def other_versions(manifest: Mapping[str, Any]) -> list[str]:
    """Python and packages that have another version now, each in words."""
    then = {"python": str(manifest.get("python")), **manifest.get("versions", {})}
    now = {name: platform.python_version() if name == "python" else _version(name) for name in then}
    return [f"{name} {then[name]}, now {now[name]}" for name in then if then[name] != now[name]]


def other_machine(manifest: Mapping[str, Any], site: Site) -> list[str]:
    """What latency is measured on now where it was another, each in words. Of a cluster's hosts that offer to measure, those
    that are alike but for their name count as one: so whoever offers them says."""
    began = of_machine(manifest.get("machine", {}))
    return differences(began, site.stamp, but_for_host=site.host is not None)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
