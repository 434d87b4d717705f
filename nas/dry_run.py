"""`nas search --dry-run`: what a search would have to choose from and what its budget buys, told before it begins.

No trial is trained and no run folder is made. What is measured on the way is kept in the latency cache, so that the search
profits from it. Everything slow happens in the executor's workers, as in a search.
"""

from __future__ import annotations

import json
import logging
import math
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

from nas.cache import cache_root, room_for_images
from nas.climb import RESERVE_SHARE
from nas.config import Budget, RunConfig
from nas.dataset.description import Dataset, read_dataset
from nas.devices import table_prices
from nas.dry_imitation import climbs, meet, rehearse_learning, shares, too_little
from nas.dry_imitation import lines as phase_lines
from nas.errors import StoppedError
from nas.execution.executor import Attempt, Executor, Progress, Result
from nas.execution.work import TRAIN, TrainJob, WeightsJob
from nas.jobs import training_job
from nas.latency.cache import LatencyCache
from nas.latency.target import Target
from nas.limits import Limits, infeasible
from nas.pricing import POLL_SECONDS, Intervals, Price, Pricing
from nas.review.record import duration, milliseconds
from nas.search.ladder import FACTOR
from nas.seeds import derive
from nas.session import open_executor, try_weights
from nas.space.architecture import Architecture, model_yaml
from nas.space.search_space import SearchSpace
from nas.syllabus import split_name

logging.getLogger("nas").addHandler(logging.NullHandler())  # there is no run folder to keep a log in

SAMPLE_SECONDS = 20.0
MOST_DRAWN = 2000
Z90 = 1.6449  # 90% of a normal distribution lie within so many standard deviations
USUAL_FRONT = 6  # members
STORE_BYTES = 9 * 1024
REHEARSED_PASSES, REHEARSED_IMAGES, REHEARSED_WORKERS = 4, 32, 8


@dataclass(frozen=True)
class Share:
    """How much of a space is within the limits: `met` of `of` drawn, and the 90% interval of the share."""

    met: int
    of: int
    low: float
    high: float

    @classmethod
    def of_sample(cls, met: int, of: int, *, whole: bool = False) -> Share:
        """By Wilson's interval (E. B. Wilson, JASA 22, 1927); of a `whole` space there is nothing to estimate."""
        if of == 0:
            return cls(0, 0, 0.0, 1.0)
        if whole:
            return cls(met, of, met / of, met / of)
        share, z = met / of, Z90**2 / of
        middle, half = share + z / 2, math.sqrt(z * share * (1 - share) + z**2 / 4)
        return cls(met, of, max(0.0, min(share, (middle - half) / (1 + z))), min(1.0, max(share, (middle + half) / (1 + z))))

    @classmethod
    def of_predictions(cls, latencies: Intervals, limit_ms: float) -> Share:
        """Of architectures drawn at random, by predicted latencies: as wide as the draw and the predictions leave open."""
        of = len(latencies.ms)
        least = cls.of_sample(int((latencies.high <= limit_ms).sum()), of)
        most = cls.of_sample(int((latencies.low <= limit_ms).sum()), of)
        return cls(int((latencies.ms <= limit_ms).sum()), of, least.low, most.high)

    @property
    def likely(self) -> float:
        """The share to reckon with: above 0 also where none was met."""
        return max(self.met, 0.5) / self.of if self.of else 1.0

    def __str__(self) -> str:
        if self.of == 0:
            return "not known: none could be priced"
        if self.low == self.high:
            return f"{self.met:,} of all {self.of:,}: {self.low:.0%}"
        return f"{self.met:,} of {self.of:,} drawn at random: {self.low:.1%} to {self.high:.1%} of the space (90% interval)"


@dataclass(frozen=True)
class Rehearsal:
    """What a proxy training of the skeleton costs, in seconds, with `workers` of them side by side: before its first step, a
    step of one batch, and scoring one image. Measured over `steps` steps and `images` images."""

    start: float
    step: float
    image: float
    steps: int
    images: int
    workers: int

    def trial(self, config: RunConfig, fit: int, held_out: int) -> float:
        """Seconds of a whole trial that trains on `fit` images and is scored on `held_out`: on several rungs, those of one that
        is promoted as often as `nas.search.ladder` promotes."""
        legs = [end - begin for begin, end in pairwise((0, *config.rung_epochs))]
        each = [self._leg(epochs, config, fit, held_out) for epochs in legs]
        return math.fsum(seconds / FACTOR**rung for rung, seconds in enumerate(each))

    def confirmation(self, config: RunConfig, fit: int, held_out: int) -> float:
        """Seconds of training a front of usual size once more with each of the other seeds."""
        return USUAL_FRONT * config.confirm * self._leg(config.epochs, config, fit, held_out)

    def validation(self, val: int) -> float:
        """Seconds of scoring the baseline and a front of usual size on so many images."""
        return (USUAL_FRONT + 1) * self.scoring(val)

    def assembled(self, config: RunConfig, fit: int, held_out: int) -> tuple[float, float, float]:
        """Seconds of a trial of a search by imitation, of confirming a front of usual size, and of what is spent once: the
        baseline and such a front go all the way, whoever else is promoted."""
        begun, members = self.scoring(held_out), USUAL_FRONT + 1
        legs = [end - begin for begin, end in pairwise((0, *config.rung_epochs))]
        more, whole = climbs([self._leg(epochs, config, fit, held_out) for epochs in legs], begun)
        again = USUAL_FRONT * config.confirm * (begun + self._leg(config.epochs, config, fit, held_out))
        return begun + more, again, members * whole

    def epoch(self, config: RunConfig, fit: int) -> float:
        """Seconds of one epoch."""
        return fit // min(config.batch, fit) * self.step

    def scoring(self, images: int) -> float:
        """Seconds of scoring so many images, and nothing else."""
        return self.start + images * self.image

    def _leg(self, epochs: int, config: RunConfig, fit: int, held_out: int) -> float:
        return self.scoring(held_out) + epochs * self.epoch(config, fit)


@dataclass(frozen=True)
class Purchase:
    """What a budget buys: trials, and proposals to find them among; how long a trial and all of it take, in seconds."""

    trials: float
    proposals: float
    trial_seconds: float
    seconds: float


def purchase(
    budget: Budget, trial: float, workers: int, proposal: float, share: float, most: float, held: float = 1.0
) -> Purchase:
    """Reckon with trials of `trial` seconds on `workers` of `held` GPUs each, `proposal` seconds to price each of the
    `1 / share` proposals that a trial takes, while workers stand still, and `most` architectures that there are."""
    beside = proposal / share
    wall, device = trial / workers + beside, trial * held + beside
    trials = {"trials": budget.amount, "wall": budget.amount / wall, "device": budget.amount / device}[budget.kind]
    trials = min(trials, most)
    return Purchase(trials, trials / share, trial, trials * wall)


def forecast(
    config: RunConfig,
    space: SearchSpace,
    dataset: Dataset,
    blocks: Sequence[str],
    digest: str | None,
    say: Callable[[str], None],
    stamp: Mapping[str, str],
) -> list[str]:
    """What a search would find and could afford, in lines.

    Args:
        config: what the search was asked to do.
        blocks: the user's block files, absolute.
        digest: of the checkpoint that proxies start from, if there is one.
        say: told what is going on.
        stamp: of what latency is measured on.

    Raises:
        InfeasibleError: nothing that was priced is within the limits.
        StoppedError: nothing could be priced, or the skeleton not be trained.
        InputError: see `room_for_images`, and StartError: the checkpoint or the images cannot be used.
    """
    room = room_for_images(len(dataset.train), config.imgsz)
    lines = [f"space      {space.size:,} architectures of {space.skeleton.name}" + (", less its rules" if space.forbid else "")]
    with tempfile.TemporaryDirectory(prefix="nas-") as name, closing(open_executor(config, Path(name))) as executor:
        common = training_job(config, dataset, blocks)
        met = meet(config, space, dataset, common, executor, Path(name)) if config.imitate is not False else None
        seen = met is not None and met.seen

        def try_checkpoint(path: str) -> bool:
            model = model_yaml(space.skeleton, space.baseline, dataset.nc)
            checkpoint = WeightsJob(model, path, list(dataset.names), list(blocks), split_name(dataset, common))
            words, fresh, _ = try_weights(checkpoint, executor, Path(name))
            lines.append(f"weights    {words}")
            return not fresh

        if config.weights is not None and met is None:
            seen = try_checkpoint(config.weights)
        lane: list[float] = []
        target = Target.parse(config.target)
        known, table = LatencyCache(cache_root() / "latency", target, digest, stamp), table_prices(target, space, [])
        pricing = Pricing(config, space, dataset.nc, executor, known, blocks, lane.append, table)
        say(f"pricing architectures on {config.target}")
        probed, _ = _measured(pricing, (space.baseline, *space.smallest(config.imgsz)), math.inf)
        drawn, whole = _measured(pricing, _draws(space, config), SAMPLE_SECONDS)
        good = [(a, p) for a, p in (*probed, *drawn) if not isinstance(p, str)]
        if not good:
            what = f"no architecture could be measured on {config.target}: {probed[0][1]}"
            raise StoppedError(what, "see what else runs on this machine, or try another --target")
        if not any(config.limits.met(price) for _, price in good):
            raise infeasible(config.limits, config.target, config.imgsz, [(a.text(space.skeleton), p) for a, p in good])
        prices = [price for _, price in drawn if not isinstance(price, str)]
        share = Share.of_sample(sum(map(config.limits.met, prices)), len(prices), whole=whole)
        # With a limit on latency alone, a latency model says more of many than measuring does of a few.
        latencies = pricing.predict([] if whole else list(_draws(space, config)))
        if latencies is not None and config.limits == Limits(ms=config.max_latency_ms) and config.max_latency_ms is not None:
            share = Share.of_predictions(latencies, config.max_latency_ms)
        lines += _found(config, space, good, share, [price for _, price in drawn if isinstance(price, str)])
        say("rehearsing the training of the skeleton")
        job, rehearsed = _small(config, space, dataset, Path(name), blocks)
        rehearsal = _rehearse(job, rehearsed, config, executor, Path(name))
        parts = [len(part) for part in dataset.split(config.held_out, derive(config.seed, 0, "split"))]
        fit = max(1, round(config.fraction * parts[0]))
        images = (fit, parts[1])
        if met is not None and config.imitate is None:
            why = too_little(config, met, rehearsal.epoch(config, fit) + rehearsal.image * parts[1])
            if why:
                lines.append(f"way        {why}")
                seen, met = config.weights is not None and try_checkpoint(config.weights), None
        if met is not None:
            say("rehearsing imitation")
            learning = rehearse_learning(space, job, rehearsed[0], executor, Path(name))
    trial, again = rehearsal.trial(config, *images), rehearsal.confirmation(config, *images)
    proposal = statistics.mean(lane) if lane else 0.0
    budget = asked = Budget.parse(config.budget)
    side, held = config.workers if budget.kind == "wall" else 1, config.held if budget.kind == "device" else 1.0
    told, ahead = list[str](), 0.0  # seconds before the first trial, and those that trials cost once, however many they are
    if met is not None:
        trial, again, once = rehearsal.assembled(config, *images)
        epoch, meeting = rehearsal.epoch(config, fit), rehearsal.scoring(parts[1])
        costs = {"epoch": epoch, "meeting": meeting, "epochs": config.epochs, "images": fit, "workers": config.workers}
        seconds = replace(budget, amount=budget.amount / held)  # of workers
        phases = shares(seconds, met, learning, **costs)  # type: ignore[arg-type]
        told = phase_lines(seconds, met, phases)
        ahead = phases.teach + phases.imitate[1] * side / config.workers + once / config.workers
        left = phases.left if budget.kind == "trials" else max(0.0, phases.left - once / side)
        budget = replace(budget, amount=held * left)
    if seen:
        again += rehearsal.validation(len(dataset.val))
    if budget.kind != "trials":
        budget = replace(budget, amount=max(0.0, budget.amount - min(RESERVE_SHARE * asked.amount, again * held / side)))
    bought = purchase(budget, trial, config.workers, proposal, share.likely, share.likely * space.size, config.held)
    told += _bought(config, bought, rehearsal, proposal)
    return [*lines, *told, _disk(room, bought, good[0][1]), _end(config, bought.seconds + ahead)]


def _draws(space: SearchSpace, config: RunConfig) -> Iterator[Architecture]:
    """Architectures that no rule forbids, each as likely as any other; of a small space all of them, in any order."""
    rng = random.Random(derive(config.seed, 0, "dry run"))
    if space.size <= MOST_DRAWN:
        allowed = [a for a in space.enumerate() if space.forbidding_rule(a, config.imgsz) is None]
        yield from rng.sample(allowed, len(allowed))
        return
    for _ in range(MOST_DRAWN):
        architecture = space.uniform(rng)
        if space.forbidding_rule(architecture, config.imgsz) is None:
            yield architecture


def _measured(
    pricing: Pricing, architectures: Iterable[Architecture], seconds: float
) -> tuple[list[tuple[Architecture, Price | str]], bool]:
    """The price of one after the other, or why it has none, for so many seconds; and whether these were all."""
    found: list[tuple[Architecture, Price | str]] = []
    until = time.monotonic() + seconds
    for architecture in architectures:
        if time.monotonic() >= until:
            return found, False
        found.append((architecture, pricing.now(architecture, lambda: None)))
    return found, len(found) < MOST_DRAWN


def _found(
    config: RunConfig, space: SearchSpace, good: Sequence[tuple[Architecture, Price]], share: Share, bad: Sequence[str]
) -> list[str]:
    """What is within the limits, the fastest of it, and the baseline beside it."""
    fastest, price = min(((a, p) for a, p in good if config.limits.met(p)), key=lambda pair: float(pair[1]["ms"]))
    told = [f"within     {config.limits} on {config.target}: {share}"]
    told += [f"           {len(bad)} more could not be priced: {bad[0]}"] if bad else []
    told.append(f"fastest    {milliseconds(price['ms'])} ({fastest.text(space.skeleton)})")
    own = next((p for a, p in good if a.is_skeleton), None)
    if own is None:
        return [*told, "baseline   not known: it could not be measured"]
    over = config.limits.broken(own)
    state = f", over the limit on {over.removeprefix('over-')}" if over else ""
    return [*told, f"baseline   {milliseconds(own['ms'])}{state}"]


def _bought(config: RunConfig, bought: Purchase, rehearsal: Rehearsal, proposal: float) -> list[str]:
    """The trials that the budget buys, and on what that rests."""
    priced = f", and {duration(proposal)} to price each of about {bought.proposals:,.0f} proposals" if proposal else ""
    side = f" with {rehearsal.workers} side by side" if rehearsal.workers > 1 else ""
    held = f" of {config.held:g} GPU{'s' * (config.held > 1)} each" if config.held != 1 else ""
    return [
        f"trials     about {bought.trials:,.0f} in {config.budget}: {duration(bought.trial_seconds)} each on {config.workers} "
        f"worker{'s'[: config.workers > 1]}{held}{priced}",
        f"           an estimate from {rehearsal.steps} steps of the skeleton ({rehearsal.step:.2g} s each), one validation "
        f"({rehearsal.image:.2g} s an image) and {rehearsal.start:.2g} s to begin{side}",
    ]


def _end(config: RunConfig, seconds: float) -> str:
    budget = Budget.parse(config.budget)
    seconds = budget.amount if budget.kind == "wall" else seconds
    return f"ends       {datetime.now().astimezone() + timedelta(seconds=seconds):%Y-%m-%d %H:%M}, if it begins now"


def _disk(room: str, bought: Purchase, skeleton: Price) -> str:
    store, weights = bought.proposals * STORE_BYTES / 1e6, 2 * skeleton["params"] / 1e6  # checkpoints are in half precision
    return f"disk       {room}; store {store:.2g} MB; weights {weights:.2g} MB for each trial on the front"


def _small(
    config: RunConfig, space: SearchSpace, dataset: Dataset, folder: Path, blocks: Sequence[str]
) -> tuple[TrainJob, tuple[int, int]]:
    """A training of the skeleton for two epochs of a few steps on a few images, and how many these are, to train on and to
    score. It is kept where somebody is to imitate it."""
    sample = _few_images(config, dataset, folder)
    small = read_dataset(sample, folder, polygons=space.skeleton.task == "segment")
    held_out = min(0.5, REHEARSED_IMAGES / len(small.train))
    job = replace(
        training_job(config, dataset, blocks),
        model=model_yaml(space.skeleton, space.baseline, dataset.nc),
        data=str(sample),
        root=str(folder),
        cache=str(folder / "cache"),
        rungs=[2],
        held_out=held_out,
        fraction=1.0,
        weights=config.weights if config.imitate is False else None,
        keep=None if config.imitate is False else str(folder / "skeleton.pt"),
    )
    fit, scored = map(len, small.split(held_out, job.split_seed))
    return job, (fit, scored)


def _rehearse(job: TrainJob, images: tuple[int, int], config: RunConfig, executor: Executor, folder: Path) -> Rehearsal:
    """Train it as many times at once as there are workers.

    Raises:
        StoppedError: it fails.
    """
    fit, scored = images
    steps = fit // min(config.batch, fit)
    for _ in range(2):  # the first time workers import what they need, and decode
        runs = _side_by_side(job, min(config.workers, executor.free, REHEARSED_WORKERS), config, executor, folder)

    def middle(figure: Callable[[Mapping[str, Any], Sequence[float], float], float]) -> float:
        return max(0.0, statistics.median(figure(*run) for run in runs))

    return Rehearsal(
        start=middle(lambda result, _, seconds: seconds - result["seconds"]),
        step=middle(lambda _, epochs, __: (epochs[1] - epochs[0]) / steps),
        image=middle(lambda result, epochs, _: (result["seconds"] - epochs[1]) / scored),
        steps=steps,
        images=scored,
        workers=len(runs),
    )


def _few_images(config: RunConfig, dataset: Dataset, folder: Path) -> Path:
    """A dataset of a few of the training images. The precision that this machine trains with is taken along."""
    count = min(len(dataset.train), REHEARSED_PASSES * config.batch + REHEARSED_IMAGES)
    images = [str(dataset.train[index * len(dataset.train) // count]) for index in range(count)]
    (folder / "images.txt").write_text("\n".join(images), encoding="utf-8")
    sample = folder / "data.yaml"
    described = {"path": str(folder), "train": "images.txt", "val": "images.txt", "names": list(dataset.names)}
    sample.write_text(json.dumps(described), encoding="utf-8")
    if (precision := cache_root() / "precision").is_dir():
        shutil.copytree(precision, folder / "cache" / "precision")
    return sample


def _side_by_side(
    job: TrainJob, count: int, config: RunConfig, executor: Executor, folder: Path
) -> list[tuple[Mapping[str, Any], list[float], float]]:
    """Of each of `count` equal trainings at once: its result, when each epoch ended, and the seconds that all of it took."""
    epochs: dict[str, list[float]] = {}
    for number in range(count):
        epochs[f"rehearsal{number}"] = []
        executor.start(Attempt(f"rehearsal{number}", TRAIN, asdict(job), derive(config.seed, number, "train")))
    runs: list[tuple[Mapping[str, Any], list[float], float]] = []
    while len(runs) < count:
        for event in executor.poll(POLL_SECONDS):
            if isinstance(event, Progress):
                epochs[event.key] += [event.data["seconds"]] if "seconds" in event.data else []
            elif not isinstance(event, Result):
                raise StoppedError(f"the skeleton cannot be trained: {event.reason}", f"see {folder}")
            elif "fault" in event.data:
                raise StoppedError(event.data["fault"], event.data["cure"])
            else:
                runs.append((event.data, epochs[event.key][-2:], event.seconds))
    return runs
