"""Where a search trains: on this host, or on the hosts of a Ray cluster, and then how many at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nas.config import RunConfig
from nas.hardware import cuda_devices, default_workers

if TYPE_CHECKING:
    from nas.execution.ray.cluster import Offer


def place(executor: str, address: str | None) -> tuple[str, str | None]:
    """The executor and the address of the cluster, where there is one. Raises InputError for what is no address."""
    from nas.execution.ray.address import asked_of_environment, door_of  # noqa: PLC0415

    if address is None and executor == "ray":
        address = asked_of_environment()
    if address is not None:
        door_of(address)
    return "ray" if address is not None else executor, address


def offer_of(address: str) -> Offer:
    """What a cluster has. Raises UnreachableError, within seconds."""
    from nas.execution.ray.cluster import offer  # noqa: PLC0415  (ray is heavy)

    return offer(address)


def placed_again(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """Where a resumed run trains. Raises InputError and UnreachableError as a new search."""
    before = config
    if config.executor == "local" and "address" not in changes:
        config = replace(config, address=None, elastic=False)
        if "workers" in changes or not before.elastic:
            return config
        return replace(config, workers=default_workers(cuda_devices() if config.device == "cuda" else 0, config.gpus_per_trial))
    executor, address = place(config.executor, changes.get("address"))
    address = address or config.address
    elastic = bool(address) and "workers" not in changes and (config.elastic or config.address is None)
    config = replace(config, executor=executor, address=address, elastic=elastic)
    if address is None:
        return config
    cluster = offer_of(address)
    if not elastic:
        return config
    return replace(config, workers=cluster.workers(1, config.gpus_per_trial * (config.device == "cuda")))
