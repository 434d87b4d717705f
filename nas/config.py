"""What a search was asked to do: `RunConfig`, and the units people type (`64gpu-h`, `30min`, `20trials`, `2ms`, `3M`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from nas.errors import InputError, did_you_mean
from nas.limits import FIGURES, Limits
from nas.storage import check_storage

BudgetKind = Literal["device", "wall", "trials"]

_SECONDS = {"s": 1.0, "sec": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_BUDGET_HINT = "write a number with a unit: 64gpu-h, 30gpu-min (device time), 2h, 30min (wall clock) or 20trials"
RUNG_FACTOR = 3
MOST_GPUS = 64
_QUANTITY = re.compile(r"\s*([+-]?\d*\.?\d+(?:[eE][+-]?\d+)?)\s*([A-Za-zµμ-]*)\s*")


def _quantity(text: str, what: str, hint: str) -> tuple[float, str]:
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise InputError(f"{what} '{text}' is not a number with a unit", hint)
    amount, unit = float(match[1]), match[2].lower()
    if not unit:
        raise InputError(f"{what} '{text}' has no unit", hint)
    if not 0 < amount < float("inf"):
        raise InputError(f"{what} '{text}' must be greater than 0", hint)
    return amount, unit


def _scaled(amount: float, scale: float, what: str, text: str) -> float:
    """`amount` in our own unit. Raises InputError where that leaves the range of numbers."""
    scaled = amount * scale
    if not 0 < scaled < float("inf"):
        raise InputError(f"{what} '{text}' is too {'large' if scaled else 'small'}", "check its unit")
    return scaled


@dataclass(frozen=True)
class Budget:
    """How much a search may use.

    `kind` is `device` (GPUs times seconds, summed over all attempts; without a GPU a worker's CPU cores count as one device),
    `wall` (seconds since the first attempt) or `trials` (finished trials of the lowest rung).
    """

    kind: BudgetKind
    amount: float
    text: str

    def plus(self, other: Budget) -> Budget:
        """Both together. Raises InputError where they are of different kinds."""
        if self.kind != other.kind:
            raise InputError(f"cannot add '{other.text}' to a budget of '{self.text}'", "add the same kind of budget")
        amount = self.amount + other.amount
        if self.kind == "trials":
            return Budget.parse(f"{amount:.15g}trials")
        unit = next(u for u in ("h", "min", "s") if amount % _SECONDS[u] == 0 or u == "s")
        return Budget.parse(f"{amount / _SECONDS[unit]:.15g}{'gpu-' if self.kind == 'device' else ''}{unit}")

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read `64gpu-h`, `30gpu-min`, `2h`, `30min`, `20trials`. Raises InputError."""
        amount, unit = _quantity(text, "budget", _BUDGET_HINT)
        clean = text.strip()
        if unit in {"trial", "trials"}:
            if amount != int(amount):
                raise InputError(f"budget '{clean}' must be a whole number of trials", _BUDGET_HINT)
            return cls("trials", amount, clean)
        kind: BudgetKind = "wall"
        if unit.startswith("gpu-"):
            kind, unit = "device", unit.removeprefix("gpu-")
        if unit not in _SECONDS:
            known = [*_SECONDS, *(f"gpu-{u}" for u in _SECONDS), "trials"]
            raise InputError(f"budget '{clean}' has an unknown unit; {did_you_mean(unit, known)}", _BUDGET_HINT)
        return cls(kind, _scaled(amount, _SECONDS[unit], "budget", clean), clean)


def parse_duration(text: str, what: str) -> float:
    """Read `90s`, `5min`, `2h`, `1d` as seconds. Raises InputError, which calls it `what`."""
    hint = "write a number with a unit: 90s, 5min, 2h or 1d"
    amount, unit = _quantity(text, what, hint)
    if unit not in _SECONDS:
        raise InputError(f"{what} '{text.strip()}' has an unknown unit; {did_you_mean(unit, _SECONDS)}", hint)
    return _scaled(amount, _SECONDS[unit], what, text.strip())


# what a limit may be given in -> how much that is in the unit of `Limits`, and how to write it
_COUNTS = {"k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9}
_UNITS: Mapping[str, tuple[str, Mapping[str, float], str]] = {
    "ms": ("latency", {"ms": 1.0, "us": 1e-3, "µs": 1e-3, "μs": 1e-3, "s": 1e3}, "2ms, 800us or 0.01s"),
    "params": ("number of parameters", _COUNTS, "3M, 2.5M or 800K"),
    "gmacs": ("number of multiply-adds", {unit: scale / 1e9 for unit, scale in _COUNTS.items()}, "4G or 500M"),
    "size_mb": ("size", {"kb": 1e-3, "mb": 1.0, "gb": 1e3}, "10MB, 800kB or 1GB"),
}


def _parse_limit(figure: str, text: str) -> float:
    what, units, examples = _UNITS[figure]
    hint = f"write a number with a unit: {examples}"
    amount, unit = _quantity(text, what, hint)
    if unit not in units:
        known = [name for name in units if name.isascii()]
        raise InputError(f"{what} '{text.strip()}' has an unknown unit; {did_you_mean(unit, known)}", hint)
    return _scaled(amount, units[unit], what, text.strip())


def parse_latency(text: str) -> float:
    """Read `2ms`, `800us`, `0.01s` as milliseconds. Raises InputError."""
    return _parse_limit("ms", text)


def parse_limits(
    max_latency: str | None = None, max_params: str | None = None, max_macs: str | None = None, max_size: str | None = None
) -> dict[str, Any]:
    """Read the limits that are given (`2ms`, `3M`, `4G`, `10MB`) as fields of `RunConfig`. Raises InputError."""
    typed = {"ms": max_latency, "params": max_params, "gmacs": max_macs, "size_mb": max_size}
    limits = {figure: _parse_limit(figure, text) for figure, text in typed.items() if text is not None}
    return {"max_latency_ms" if figure == "ms" else f"max_{figure}": limit for figure, limit in limits.items()}


def check_gpus(share: float) -> None:
    """Raises InputError for what can be no number of GPUs that a training holds."""
    if not 0 < share <= MOST_GPUS or (share > 1 and share != int(share)):
        near = f"{int(share)} or {int(share) + 1}" if 1 < share < MOST_GPUS else str(MOST_GPUS if share > 1 else 1)
        what = f"--gpus-per-trial {share:g}: neither a share of one GPU nor 1 to {MOST_GPUS} of them"
        raise InputError(what, f"give a share of one GPU, for example 0.25, or a whole number: {near}")


SAMPLERS = ("front", "tpe", "random")
EXECUTORS = ("local", "ray")
DEVICES = ("cpu", "cuda")

# annotation of a field -> what its value must be, and how that is called
_TYPES: Mapping[str, tuple[Any, str]] = {
    "str": (str, "a text"),
    "str | None": (str | None, "a text"),
    "int": (int, "a whole number"),
    "float": (int | float, "a number"),
    "float | None": (int | float | None, "a number"),
    "bool": (bool, "true or false"),
    "bool | None": (bool | None, "true or false"),
}


@dataclass(frozen=True)
class RunConfig:
    """Everything that is needed to repeat a search; `run.yaml` of a run folder holds it.

    Args:
        data: dataset YAML.
        space: search space YAML.
        budget: see `Budget`, as typed.
        max_latency_ms: the hard limit in ms, or None.
        max_params: likewise on the parameters of the fused model.
        max_gmacs: likewise on the multiply-adds of one image, in 1e9.
        max_size_mb: likewise on the weights as the target stores them, in 1e6 bytes.
        target: what latency is measured on, in full and with its image size (see `nas.latency.target`).
        imgsz: side of the square input of proxies in pixels.
        epochs: of the highest rung.
        rungs: how many there are, each about a third as long as the next; trials climb them by `nas.search.ladder`.
        confirm: with how many more seeds the front's members are trained in the end.
        batch: images per training step.
        lr0: peak learning rate.
        weights: checkpoint that proxies start from, or None for a start from scratch; with `imitate` the teacher, or what its
            training starts from.
        imitate: whether blocks learn from a teacher, and architectures begin assembled from what they have learned; None until
            the search has found out whether its budget pays for that (see `Teaching.pays`).
        fraction: share of the rest of `train` that proxies train on.
        held_out: share of `train` that ranks the proxies and that none of them trains on.
        sampler: who proposes.
        executor: who runs the proxy trainings.
        address: of the Ray cluster that runs them (see `nas.execution.ray.address`); None for one of our own.
        lane: the host of that cluster on which latency is measured; None for the one on which the search runs.
        workers: trials trained at the same time; where `elastic`, only how many the cluster held in the beginning.
        elastic: whether as many are trained at once as the cluster holds.
        gpus_per_trial: how many GPUs a training holds: a share of one that others share with it, or a whole number.
        device: `cpu` or `cuda`, what proxies train on.
        seed: of every random draw, together with the trial number.
        prior: run whose trials `front` learns from, or None.
        stop_when_flat: a search proposes nothing more when an hour of a device is expected to raise the hypervolume by less
            than this share, or None.
        allow_noisy: whether a latency of a machine that is not quiet counts, marked and with a wider interval.
        storage: the PostgreSQL database that holds the Optuna study, without its password (see `nas.storage`); None for
            `study.db` in the run folder.
        study: how the study is called in `storage`, where others may lie too; None for `study.db`.
    """

    data: str
    space: str
    budget: str
    target: str
    max_latency_ms: float | None = None
    max_params: float | None = None
    max_gmacs: float | None = None
    max_size_mb: float | None = None
    imgsz: int = 640
    epochs: int = 5
    rungs: int = 1
    confirm: int = 1
    batch: int = 8
    lr0: float = 0.004
    weights: str | None = None
    imitate: bool | None = False
    held_out: float = 0.2
    fraction: float = 1.0
    sampler: str = "front"
    executor: str = "local"
    address: str | None = None
    lane: str | None = None
    workers: int = 1
    elastic: bool = False
    gpus_per_trial: float = 1.0
    device: str = "cpu"
    seed: int = 0
    prior: str | None = None
    stop_when_flat: float | None = None
    allow_noisy: bool = False
    storage: str | None = None
    study: str | None = None

    def __post_init__(self) -> None:
        for entry in fields(self):
            value, (kind, called) = getattr(self, entry.name), _TYPES[str(entry.type)]
            if (isinstance(value, bool) and kind not in (bool, bool | None)) or not isinstance(value, kind):
                raise InputError(f"{entry.name} is {value!r}", f"give {called}")
        Budget.parse(self.budget)
        for name, low, high in (
            ("imgsz", 32, 4096),
            ("epochs", 1, 10_000),
            ("batch", 1, 4096),
            ("workers", 1, 4096),
            ("confirm", 0, 20),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise InputError(f"{name} is {value!r}", f"give a whole number from {low} to {high}")
        check_gpus(self.gpus_per_trial)
        if self.batch < self.devices:
            what = f"--gpus-per-trial {self.devices}: each GPU takes a share of a batch, and a batch has {self.batch} images"
            raise InputError(what, f"--set batch={self.devices}, or --gpus-per-trial {self.batch}")
        if not 1 <= self.rungs <= self.epochs:
            raise InputError(
                f"rungs is {self.rungs}", f"{self.epochs} epochs allow 1 to {self.epochs}; raise --epochs for more"
            )
        if self.imgsz % 32:
            near = max(32, round(self.imgsz / 32) * 32)
            raise InputError(f"imgsz {self.imgsz} is not a multiple of 32", f"use {near}")
        if not 0 < self.held_out < 1:
            raise InputError(f"held_out is {self.held_out}", "give a share between 0 and 1, for example 0.2")
        if not 0 < self.fraction <= 1:
            raise InputError(f"fraction is {self.fraction}", "give a share above 0 and up to 1, for example 0.5")
        if not 0 < self.lr0 < 1:
            raise InputError(f"lr0 is {self.lr0}", "give a learning rate between 0 and 1, for example 0.004")
        for figure, limit in self.limits.known.items():
            if not 0 < limit < float("inf"):
                raise InputError(f"the {FIGURES[figure].word} limit is {limit}", "give a limit above 0")
        for name in ("prior", "stop_when_flat"):
            if getattr(self, name) is not None and self.sampler != "front":
                flag = {"prior": "--from"}.get(name, "--stop-when-flat")
                raise InputError(f"{flag} needs --sampler front, which has a model of the accuracy", f"leave out {flag}")
        if self.stop_when_flat is not None and not 0 < self.stop_when_flat < 1:
            raise InputError(f"stop-when-flat is {self.stop_when_flat}", "give a share between 0 and 1, for example 0.005")
        if self.storage is not None:
            check_storage(self.storage)
        if self.seed < 0:
            raise InputError(f"seed is {self.seed}", "give a whole number from 0 on")
        for name, known in (("sampler", SAMPLERS), ("executor", EXECUTORS), ("device", DEVICES)):
            if getattr(self, name) not in known:
                raise InputError(f"unknown {name} '{getattr(self, name)}'", did_you_mean(getattr(self, name), known))

    @property
    def held(self) -> float:
        """GPUs that an attempt of a trial holds, of which its seconds are charged. Without a GPU a worker's cores are one."""
        return self.gpus_per_trial if self.device == "cuda" else 1.0

    @property
    def devices(self) -> int:
        """On how many devices, each with a process of its own, a trial trains."""
        return max(1, int(self.held))

    @property
    def limits(self) -> Limits:
        """What no architecture that is trained may be over, but for the baseline."""
        return Limits(self.max_latency_ms, self.max_params, self.max_gmacs, self.max_size_mb)

    @property
    def rung_epochs(self) -> list[int]:
        """Epochs of each rung, rising: about a third of the next, but at least one fewer."""
        found = [max(rung + 1, round(self.epochs / RUNG_FACTOR ** (self.rungs - 1 - rung))) for rung in range(self.rungs)]
        return [max(found[: rung + 1]) for rung in range(self.rungs)]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: Path) -> RunConfig:
        """The inverse of `to_dict`. Raises InputError naming `where` for unknown or missing keys and bad values."""
        known = {f.name for f in fields(cls)}
        if unknown := set(values) - known:
            word = sorted(map(str, unknown))[0]
            raise InputError(f"{where}: unknown key '{word}'", did_you_mean(word, known))
        if missing := {f.name for f in fields(cls) if f.default is MISSING} - set(values):
            raise InputError(f"{where}: no '{sorted(missing)[0]}'", "restore the file, or start a new run")
        try:
            return cls(**values)
        except InputError as error:
            raise InputError(f"{where}: {error.message}", error.hint) from error


SETTABLE: Mapping[str, type[int] | type[float]] = {
    "lr0": float,
    "batch": int,
    "epochs": int,
    "held_out": float,
}


def parse_settings(pairs: tuple[str, ...]) -> dict[str, Any]:
    """Read `--set lr0=0.01` pairs. Raises InputError naming the nearest known setting."""
    settings: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise InputError(f"--set {pair} is not NAME=VALUE", "for example --set lr0=0.01")
        if name not in SETTABLE:
            raise InputError(f"unknown setting '{name}'", did_you_mean(name, SETTABLE))
        try:
            settings[name] = SETTABLE[name](text)
        except ValueError:
            raise InputError(f"--set {name}={text} is not a number", f"for example --set {name}=0.01") from None
    return settings
