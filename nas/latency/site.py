"""Where latency is measured: a target as the machine has it that measures, which may be a node of a cluster. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from nas.latency.target import OWN, Target, chosen_because, own_version

MACHINE = ("machine", "gpu")  # of a stamp: latencies of two of these cannot be compared
Stamp = Mapping[str, str]


@dataclass(frozen=True)
class Site:
    """A target on one machine.

    Args:
        target: in full, but for the image size until `at` says it.
        because: why `auto` became it, to be put behind it; empty for one that was named.
        stamp: all that its latencies depend on, see `Target.stamp`.
        host: address of the cluster's node that measures; None for this host.
    """

    target: Target
    because: str
    stamp: Stamp
    host: str | None = None

    def at(self, imgsz: int) -> Site:
        """With this image size, unless the target names its own."""
        target = self.target.at(imgsz)
        return replace(self, target=target, stamp={**self.stamp, "target": str(target)})

    def __str__(self) -> str:
        where = f", on {self.host} ({' with '.join(self.machine)}), a host of the cluster" if self.host else ""
        return f"{self.target}{self.because}{where}"

    @property
    def machine(self) -> list[str]:
        """What it is measured on: processor with host name, and GPU where that counts."""
        return [self.stamp[key] for key in MACHINE if key in self.stamp]


def site(name: str) -> Site:
    """A target, or `auto`, on this machine.

    Raises:
        InputError: it has no such name.
        UnreachableError: it is not there.
    """
    target = Target.parse(name)
    target.require()
    return Site(target, chosen_because(name), target.stamp())


def as_sent(stamp: Stamp) -> dict[str, str]:
    """The stamp of a machine to which our own code was sent, whatever version is installed there."""
    return {**stamp, **({OWN: own_version()} if OWN in stamp else {})}


def differences(began: Stamp, now: Stamp, *, but_for_host: bool = False) -> list[str]:
    """What is other in two stamps, each in words: all of it that both name.

    Args:
        but_for_host: hosts of another name count as equal.
    """
    if but_for_host:
        began, now = _nameless(began), _nameless(now)
    return [f"{began[key]}, now {now.get(key)}" for key in began if began[key] != now.get(key)]


def of_machine(stamp: Stamp) -> dict[str, str]:
    """The part of a stamp that is the machine."""
    return {key: stamp[key] for key in MACHINE if key in stamp}


def _nameless(stamp: Stamp) -> dict[str, str]:
    """Without the host's name, which stands in brackets behind the processor's."""
    return {**stamp, **({"machine": stamp["machine"].rpartition(" (")[0]} if "machine" in stamp else {})}
