"""Where a search trains: on this host, or on the hosts of a Ray cluster, and then how many at once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nas.config import RunConfig, check_gpus
from nas.errors import InputError, UnreachableError
from nas.execution.ray.address import OFFER
from nas.hardware import cuda_devices, default_workers, gpu_places, most_gpus_alike

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


def trials_at_once(per_trial: float, cluster: Offer | None, workers: int | None, *, cuda: bool) -> int:
    """How many trials train at once: as many as are asked for, or as many as there are devices for.

    Args:
        per_trial: GPUs that each holds, see `RunConfig`.
        cluster: what the cluster has that they train on; None for this host.
        workers: how many are asked for; of a cluster whose nodes come and go, at most.

    Raises:
        InputError: more GPUs for a trial than this host or any of the cluster has, or more trials than this host has GPUs for.
        UnreachableError: there is no GPU at all.
    """
    check_gpus(per_trial)
    if not cuda:
        if per_trial != 1:
            raise InputError(f"--gpus-per-trial {per_trial:g}: proxies do not train on a GPU", "leave it out")
        possible = cluster.workers(1, 0) if cluster else default_workers()
        return possible if workers is None else workers
    most = cluster.most_gpus if cluster else most_gpus_alike()
    if not most:
        where = "the cluster" if cluster else "this host"
        raise UnreachableError(
            f"trials train on a GPU, and {where} has none", "search where there is one, or with --device cpu"
        )
    if per_trial > most:
        kind = f"{most} GPU{'s' * (most > 1)}"
        why = f"no host of the cluster has more than {kind}" if cluster else f"this host has {kind} that can train one trial"
        raise InputError(f"--gpus-per-trial {per_trial:g}: {why}", f"--gpus-per-trial {most}")
    if cluster:
        possible = cluster.workers(max(1, int(per_trial)), per_trial)
        return possible if workers is None else workers
    possible = len(gpu_places(per_trial))
    if workers is not None and workers > possible:
        share = math.floor(1000 / math.ceil(workers / cuda_devices())) / 1000
        what = f"--workers {workers} with --gpus-per-trial {per_trial:g}: this host has GPUs for {possible} at once"
        raise InputError(what, f"--workers {possible}" + f", or --gpus-per-trial {share:g}" * (share > 0))
    return possible if workers is None else workers


def placed_again(config: RunConfig, changes: Mapping[str, Any]) -> tuple[RunConfig, Site | None]:
    """Where a resumed run trains, and the node of the cluster that measures where one did before.

    Raises:
        InputError: as a new search.
        UnreachableError: as a new search; also where no node offers to measure any more.
    """
    asked, before, address = config.workers if "workers" in changes else None, config, None
    if config.executor != "local" or "address" in changes:
        executor, address = place(config.executor, changes.get("address"))
        address = address or config.address
        config = replace(config, executor=executor)
    elastic = bool(address) and asked is None and (before.elastic or before.address is None)
    cluster = offer_of(address, config.target if config.lane else None) if address else None
    lane = None
    if cluster and config.lane is not None:
        if cluster.site is None:
            what = f"latency was measured on {config.lane}: no host of the Ray cluster at {address} offers `latency` now"
            raise UnreachableError(what, f"on that host: {OFFER}")
        lane = cluster.site.host
    cuda = config.device == "cuda"
    workers = trials_at_once(config.gpus_per_trial, cluster, asked, cuda=cuda)
    if asked is None and not elastic and (address or not (before.elastic or "gpus_per_trial" in changes)):
        workers = min(config.workers, workers) if cuda and not address else config.workers
    config = replace(config, address=address, elastic=elastic, workers=workers, lane=lane)
    return config, cluster.site if cluster else None
