"""The phases *teach* and *imitate*: a teacher, and blocks that learn from it, before architectures are tried.

The teacher is the skeleton, trained on the data: the user's own checkpoint, or one that is trained here for at most a share of
the budget. Then as many alternatives as a second share buys learn from it, slot by slot in turn; what is left learns when an
architecture first needs it. Blocks lie in a library in the cache, so a second search finds them there. No torch.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from nas.config import RunConfig
from nas.dataset.description import Dataset
from nas.errands import Errands, Jobs
from nas.errors import StartError, StoppedError
from nas.execution.decode import DECODE
from nas.execution.executor import Executor
from nas.execution.imitate import MEET
from nas.execution.validate import VALIDATE
from nas.execution.work import TRAIN
from nas.groups import Groups
from nas.imitation.alternatives import Alternative
from nas.imitation.library import Library
from nas.jobs import training_job, validation
from nas.pace import Pace
from nas.pricing import Pricing
from nas.runs.ledger import Ledger
from nas.runs.store import Store
from nas.seeding import additive_members
from nas.space.architecture import Architecture, model_yaml
from nas.space.search_space import SearchSpace
from nas.syllabus import (
    IMITATE_SHARE,
    TEACH_SHARE,
    in_turn,
    library_of,
    split_name,
    teacher_epochs,
    teacher_job,
    worthwhile_epochs,
)

log = logging.getLogger("nas")

SLACK, SLACK_AN_IMAGE = 60.0, 0.02  # seconds that a worker may take to begin its first epoch, and to decode an image


class Teaching:
    """Brings a teacher and a library about; everything that is done stays done when the search is resumed.

    Args:
        say: takes what is to be shown, in a line.
        wait: called with the phase, at least twice a second.
        stopping: whether somebody asked to stop.
    """

    def __init__(
        self,
        config: RunConfig,
        space: SearchSpace,
        dataset: Dataset,
        blocks: Sequence[str],
        folder: Path,
        store: Store,
        ledger: Ledger,
        executor: Executor,
        say: Callable[[str], None],
    ) -> None:
        self._config, self._space, self._dataset, self._folder = config, space, dataset, folder
        self._store, self._ledger, self._say = store, ledger, say
        self._errands = Errands(store, ledger, executor, folder, config.seed)
        train = training_job(config, dataset, blocks)
        self._train = replace(train, left_out=split_name(dataset, train))
        self._met: dict[str, dict[str, Any]] = {}

    @property
    def library(self) -> Library:
        """Of the teacher that this run has. Raises KeyError before there is one."""
        return library_of(self._store.fact("teacher")["digest"], self._skeleton, self._dataset, self._train)

    def pays(self, wait: Callable[[str], None]) -> bool:
        """Whether the budget is large enough to imitate: the checkpoint is a teacher as it is, or the teacher's share trains
        one for some times the epochs of a trial. To find out, one epoch is trained at most.

        Raises:
            StartError, StoppedError: see `run`.
        """
        self._errands.wait, start = wait, self._config.weights
        if start is not None and "shortfall" not in self._meet(start):
            return True
        least = worthwhile_epochs(self._config.epochs)
        epochs = self._affordable(start, least)
        pays = epochs is not None and epochs >= least
        words = "blocks learn from it" if pays else "all is trained from scratch (--imitate would imitate nevertheless)"
        count = f"{epochs} epochs" if epochs is not None else f"fewer than {least} epochs"
        self._say(f"{TEACH_SHARE:.0%} of the budget buy a teacher {count}, imitation is worth it from {least} on: {words}")
        return pays

    def run(self, wait: Callable[[str], None], stopping: Callable[[], bool]) -> None:
        """Teach and imitate, as far as that is not done yet.

        Raises:
            StartError: the checkpoint is no teacher and can start none; there are no images; the teacher finds nothing.
            StoppedError: the budget ends before the teacher is trained, or the work fails.
        """
        self._errands.wait, self._errands.stopping = wait, stopping
        if self._store.fact("teacher") is None:
            self._teach()
        if self._store.fact("teacher") is not None and not stopping() and not self._ledger.exhausted(()):
            self._imitate()

    def seeds(self, pricing: Pricing) -> Sequence[Architecture] | None:
        """Members of the additive front of the whole space, spread along it; None as long as no latency can be guessed."""
        return additive_members(self._space, self.library, pricing, self._config.max_latency_ms, self._config.imgsz)

    def job(self) -> dict[str, Any]:
        """The fields of a `TeacherJob`, once there is a teacher."""
        path = self._store.fact("teacher")["path"]
        return asdict(teacher_job(self._train, self._skeleton, path or str(self._folder / "teacher.pt")))

    @property
    def is_users_own(self) -> bool:
        """Whether the teacher is the user's checkpoint as it is, and none that a search has trained on this split."""
        teacher = self._store.fact("teacher") or {}
        return teacher.get("path") is not None and not teacher.get("ours")

    @property
    def mean_ap(self) -> float:
        """The teacher's, on the held-out part."""
        return float(self._store.fact("teacher")["map"])

    @property
    def has_seen_all(self) -> bool:
        """Whether the teacher, or what its training began with, may have learned from the held-out part."""
        return self._store.fact("seen") is not None

    @property
    def _skeleton(self) -> dict[str, Any]:
        return model_yaml(self._space.skeleton, self._space.baseline, self._dataset.nc)

    def _teach(self) -> None:
        """Take the user's checkpoint as it is where that is possible; else train the skeleton."""
        path, start = self._config.weights, None
        if path is not None:
            told = self._meet(path)
            if not told:
                return
            name = Path(path).name
            if not told.get("fresh") and not told.get("left_out"):
                self._store.put_fact("seen", path)
            if "shortfall" not in told:
                seen = "it has seen the held-out part if it was trained on train"
                known = "an earlier search trained it, without the held-out part"
                self._settle(path, told, f"the teacher is {name}: {known if told.get('left_out') else seen}")
                return
            start = path
            self._say(f"{name} is no teacher as it is ({told['shortfall']}): the teacher's training starts from it")
        kept = str(self._folder / "teacher.pt")
        if not Path(kept).is_file():
            epochs = self._epochs(start)
            if epochs is None:
                return
            state = str(self._folder / "teacher.safetensors")
            job = replace(self._train, model=self._skeleton, rungs=[epochs], until=None, weights=start, state=state, keep=kept)
            job = replace(job, left_out=None) if self.has_seen_all else job
            if self._errands.done("teach", Jobs([(TRAIN, asdict(job))])) is None:
                return
        try:
            told = self._meet(kept)
        except StartError as error:  # no start failed: what was trained stays in the run folder
            raise StoppedError(error.message, error.hint) from error
        if "shortfall" in told:
            raise StoppedError(f"what was trained is no teacher: {told['shortfall']}", "search with --from-scratch")
        if told:
            begun = f", but from {Path(start).name}, which may have seen it" if start and self.has_seen_all else ""
            self._settle(None, told, f"the teacher was trained here, without the held-out part{begun}")

    def _epochs(self, start: str | None) -> int | None:
        """How long the teacher is trained: by what one epoch costs, so that it takes no more than its share of the budget."""
        if (known := self._store.fact("teacher_epochs")) is not None:
            return int(known)
        if (epochs := self._affordable(start)) is None:
            return None
        self._store.put_fact("teacher_epochs", epochs)
        share = f", within {TEACH_SHARE:.0%} of the budget" if self._ledger.budget.kind != "trials" else ""
        self._say(f"the teacher, {self._space.skeleton.name}, is trained for {epochs} epochs{share}")
        return epochs

    def _affordable(self, start: str | None, least: int = 1) -> int | None:
        """The teacher's epochs, by the time of one, which is trained to find out; None where somebody asked to stop, or one
        takes so long that fewer than `least` fit."""
        budget = self._ledger.budget
        if budget.kind == "trials":
            return teacher_epochs(budget, self._config.epochs, 0.0)
        if (seconds := self._store.fact("epoch_seconds")) is None:
            job = replace(self._train, model=self._skeleton, rungs=[1], until=None, weights=start)
            # what `seconds` of a worker cost of the budget, turned round; beside its epoch a worker begins and scores
            fit = TEACH_SHARE * budget.amount / (1.0 if budget.kind == "wall" else self._ledger.cost(1.0)) / least
            slack = SLACK + SLACK_AN_IMAGE * len(self._dataset.train)
            if least > 1 and not self._errands.done("teach", Jobs([(DECODE, asdict(job))])):  # whoever comes first would
                return None
            told = self._errands.done("teach", Jobs([(TRAIN, asdict(job))], most=math.inf if least == 1 else fit + slack))
            if not told:
                return None
            seconds = told[0]["seconds"]
            self._store.put_fact("epoch_seconds", seconds)
        return teacher_epochs(budget, self._config.epochs, seconds if budget.kind == "wall" else self._ledger.cost(seconds))

    def _meet(self, path: str) -> dict[str, Any]:
        if path not in self._met:
            told = self._errands.done("teach", Jobs([(MEET, asdict(teacher_job(self._train, self._skeleton, path)))]))
            if told is None:
                return {}
            self._met[path] = told[0]
        return self._met[path]

    def _settle(self, path: str | None, told: Mapping[str, Any], words: str) -> None:
        """Keep who the teacher is; without a path it is this run's own, wherever its folder is by then."""
        if "digest" in told:
            known = {"path": path, "digest": told["digest"], "map": told["map"], "map50": told.get("map50"), "words": words}
            known["val"] = self._on_val(path or str(self._folder / "teacher.pt")) if self.has_seen_all else None
            if self._errands.stopping() and self.has_seen_all and known["val"] is None:
                return  # met again when the search goes on
            self._store.put_fact("teacher", {**known, "ours": path is None or bool(told.get("left_out"))})
            self._say(f"{words}; mAP50-95 {told['map']:.3f} on the held-out part")

    def _on_val(self, path: str) -> float | None:
        """The mAP of the teacher on `val`, where nothing is claimed of the held-out part; None where it cannot be told."""
        job = VALIDATE, validation(self._train, self._skeleton, Path(path))
        told = self._errands.done("teach", Jobs([job], vital=False))
        return float(told[0]["map"]) if told else None

    def _imitate(self) -> None:
        """Groups of alternatives, every slot in turn, until all have learned or their share of the budget is used."""
        library, wanted = self.library, list(in_turn(self._space))
        self._store.put_fact("library", str(library.folder))
        failed, missing = self._store.fact("dropped") or {}, library.missing(wanted)
        todo = [each for each in missing if each.key not in failed]
        self._say(
            f"library: {len(wanted) - len(todo):,} of {len(wanted):,} alternatives have learned already ({library.folder.name})"
        )
        each = self._store.fact("alternative_seconds") or 0.0
        pace = Pace(self._imitation_seconds(), self._config.workers, self._store.seconds("imitate"), each)
        untried = len(missing) == len(wanted)
        budget, common = self._ledger.budget, self.job()
        wall = IMITATE_SHARE * budget.amount if budget.kind == "wall" else math.inf
        groups = Groups(todo, pace, common, library, self._store, self._ledger, self._folder, untried=untried, wall=wall)
        self._errands.done("imitate", groups)
        self._store.put_fact("learning", [])
        learned = [entry for a in wanted if (entry := library.get(a)) is not None]
        for entry in learned:
            if entry.dropped:
                log.warning("layer %d: %s was dropped: %s", entry.layer, entry.row[2], entry.dropped)
        failed = self._store.fact("dropped") or {}
        if later := sum(each.key not in failed for each in library.missing(wanted)):
            self._say(f"{later:,} alternatives are left to learn when an architecture needs them")

    def _imitation_seconds(self) -> float:
        """Device seconds that the phase may take."""
        budget = self._ledger.budget
        if budget.kind == "trials":
            return math.inf
        return IMITATE_SHARE * budget.amount * (self._ledger.cost(self._config.workers) if budget.kind == "wall" else 1)

    def dropped(self, alternative: Alternative) -> str:
        """Why no architecture may hold an alternative; empty where it may."""
        entry = self.library.get(alternative)
        return entry.dropped if entry is not None else (self._store.fact("dropped") or {}).get(alternative.key, "")
