"""Where a search trains: on this host, or on the hosts of a Ray cluster, and then how many at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nas.config import RunConfig
from nas.errors import UnreachableError
from nas.execution.ray.address import OFFER
from nas.hardware import cuda_devices, default_workers

if TYPE_CHECKING:
    from nas.execution.ray.cluster import Offer
    from nas.latency.site import Site


def place(executor: str, address: str | None) -> tuple[str, str | None]:
    """The executor and the address of the cluster, where there is one. Raises InputError for what is no address."""
    from nas.execution.ray.address import asked_of_environment, door_of  # noqa: PLC0415

    if address is None and executor == "ray":
        address = asked_of_environment()
    if address is not None:
        door_of(address)
    return "ray" if address is not None else executor, address


def offer_of(address: str, target: str | None = None) -> Offer:
    """What a cluster has, with the node that offers to measure on a `target`. Raises UnreachableError, within seconds."""
    from nas.execution.ray.cluster import offer  # noqa: PLC0415  (ray is heavy)

    return offer(address, target)


def placed_again(config: RunConfig, changes: Mapping[str, Any]) -> tuple[RunConfig, Site | None]:
    """Where a resumed run trains, and the node of the cluster that measures where one did before.

    Raises:
        InputError: as a new search.
        UnreachableError: as a new search; also where no node offers to measure any more.
    """
    before = config
    if config.executor == "local" and "address" not in changes:
        config = replace(config, address=None, elastic=False, lane=None)
        if "workers" in changes or not before.elastic:
            return config, None
        devices = cuda_devices() if config.device == "cuda" else 0
        return replace(config, workers=default_workers(devices, config.gpus_per_trial)), None
    executor, address = place(config.executor, changes.get("address"))
    address = address or config.address
    elastic = bool(address) and "workers" not in changes and (config.elastic or config.address is None)
    config = replace(config, executor=executor, address=address, elastic=elastic)
    if address is None:
        return config, None
    cluster = offer_of(address, config.target if config.lane else None)
    if config.lane is not None:
        if cluster.site is None:
            what = f"latency was measured on {config.lane}: no host of the Ray cluster at {address} offers `latency` now"
            raise UnreachableError(what, f"on that host: {OFFER}")
        config = replace(config, lane=cluster.site.host)
    if elastic:
        config = replace(config, workers=cluster.workers(1, config.gpus_per_trial * (config.device == "cuda")))
    return config, cluster.site
