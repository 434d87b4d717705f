"""`nas latency`: the price of one model that somebody asks for by hand, in this process. No torch before it is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nas.blocks.user import load_blocks
from nas.errors import InputError
from nas.execution.work import PriceJob, price
from nas.latency.target import Target, chosen_because, parse_imgsz
from nas.outcome import architecture_of, winner_of
from nas.run import Run
from nas.runs.folder import find_folder
from nas.space.architecture import Architecture, model_yaml
from nas.space.skeleton import read_skeleton

IMGSZ = 640


@dataclass(frozen=True)
class Quote:
    """What a model costs on a target.

    Args:
        name: what was measured, in words.
        target: in full.
        why: why `auto` became this target; empty where it was named.
        price: see `nas.execution.work.price`.
    """

    name: str
    target: Target
    why: str
    price: Mapping[str, Any]

    @property
    def lines(self) -> list[str]:
        """The quote for people."""
        p = self.price
        found = f"{p['ms']:#.4g} ms ({p['low']:#.4g} to {p['high']:#.4g}), p90 {p['p90']:#.4g} ms, {p['runs']} runs"
        noisy = ["The machine was not quiet: the interval is wider for that."] if p["noisy"] else []
        return [
            f"{self.name} on {self.target}{self.why}",
            found,
            *noisy,
            self.target.scope(end2end=p["end2end"]),
            f"{p['params']:,} parameters, {p['gmacs']:.3f} G multiply-adds per image",
        ]


def quote(
    what: str,
    *,
    target: str | None = None,
    imgsz: str | None = None,
    pick: str | None = None,
    allow_noisy: bool = False,
    blocks: Sequence[str | Path] = (),
) -> Quote:
    """Measure a model.

    Args:
        what: a model YAML of Ultralytics or nas, by name or path, or a run by name or folder.
        target: see `nas.latency.target`; `auto`, for a run its own.
        imgsz: `640` or `384x640`; 640, for a run its own.
        pick: which trial of the run; its winner where None.
        allow_noisy: give a figure also where the machine is not quiet.
        blocks: files with blocks of your own that the model needs; their code runs.

    Raises:
        InputError: no such model, run, trial or target.
        UnreachableError: the target is not there.
        UnstableError: the machine is not quiet.
    """
    files = [str(Path(file).absolute()) for file in blocks]
    load_blocks(*files)
    if Path(what).suffix in {".yaml", ".yml"}:
        if pick is not None:
            raise InputError(f"--pick {pick}: {what} is a model, not a run", "leave it out, or name a run")
        skeleton = read_skeleton(what)
        name, model, size, named = what, model_yaml(skeleton, Architecture(skeleton.name)), IMGSZ, target or "auto"
    else:
        run = Run(find_folder(what))
        if pick is None and (winner := winner_of(run.records, run.config.max_latency_ms)) is not None:
            pick = winner.id
        record = run.pick(pick or "best")
        model = model_yaml(run.space.skeleton, architecture_of(run.entries, record), len(run.summary.classes))
        name, size, named = f"{record.id}, trial {record.trial} of {run.folder}", run.config.imgsz, target or run.config.target
    measured_on = Target.parse(named)
    if imgsz is not None:
        measured_on = _sized(measured_on, imgsz)
    measured_on = measured_on.at(size)
    measured_on.require()
    job = PriceJob(model, str(measured_on), size, allow_noisy=allow_noisy, blocks=files)
    return Quote(name, measured_on, chosen_because(named), price(asdict(job), 0, lambda _: None))


def _sized(target: Target, imgsz: str) -> Target:
    size = parse_imgsz(imgsz)
    if target.imgsz not in {None, size}:
        raise InputError(f"--imgsz {imgsz}: target {target} names another image size", "give it once")
    return target.at(size)
