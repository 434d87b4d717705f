"""The phases *teach* and *imitate*: a teacher, and blocks that learn from it, before architectures are tried.

The teacher is the skeleton, trained on the data: the user's own checkpoint, or one that is trained here for at most a share of
the budget. Then as many alternatives as a second share buys learn from it, slot by slot in turn; what is left learns when an
architecture first needs it. Blocks lie in a library in the cache, so a second search finds them there. No torch.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from nas.config import RunConfig
from nas.dataset.description import Dataset
from nas.errors import StartError, StoppedError
from nas.execution.executor import Attempt, Event, Executor, Failed, Lost, Progress, Result
from nas.execution.imitate import IMITATE, MEET, ImitateJob
from nas.execution.work import TRAIN
from nas.imitation.alternatives import Alternative
from nas.imitation.library import Library
from nas.jobs import training_job
from nas.pace import Pace
from nas.post_mortem import class_of, disk_full
from nas.pricing import POLL_SECONDS, Pricing
from nas.runs.folder import resume_command
from nas.runs.ledger import Ledger
from nas.runs.store import Store
from nas.seeding import additive_members
from nas.seeds import derive
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
TRIES = 3
SAME_FAILURES = 3  # alternatives that fail alike, each on its own, before one has learned: going on is of no use


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
        self._store, self._ledger, self._executor, self._say = store, ledger, executor, say
        train = training_job(config, dataset, blocks)
        self._train = replace(train, left_out=split_name(dataset, train))
        self._charged: dict[str, float] = {}
        self._met: dict[str, dict[str, Any]] = {}
        self._failures: dict[str, str] | None = {}  # key -> how it failed; None once an alternative has learned
        self._keys = itertools.count()
        self._wait: Callable[[str], None] = lambda _: None
        self._stopping: Callable[[], bool] = lambda: False

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
        self._wait, start = wait, self._config.weights
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
        self._wait, self._stopping = wait, stopping
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
            if self._done("teach", [(TRAIN, asdict(job))]) is None:
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
            told = self._done("teach", [(TRAIN, asdict(job))], most=math.inf if least == 1 else fit + slack)
            if not told:
                return None
            seconds = told[0]["seconds"]
            self._store.put_fact("epoch_seconds", seconds)
        return teacher_epochs(budget, self._config.epochs, seconds if budget.kind == "wall" else self._ledger.cost(seconds))

    def _meet(self, path: str) -> dict[str, Any]:
        if path not in self._met:
            told = self._done("teach", [(MEET, asdict(teacher_job(self._train, self._skeleton, path)))])
            if told is None:
                return {}
            self._met[path] = told[0]
        return self._met[path]

    def _settle(self, path: str | None, told: Mapping[str, Any], words: str) -> None:
        """Keep who the teacher is; without a path it is this run's own, wherever its folder is by then."""
        if "digest" in told:
            known = {"path": path, "digest": told["digest"], "map": told["map"], "words": words}
            self._store.put_fact("teacher", {**known, "ours": path is None or bool(told.get("left_out"))})
            self._say(f"{words}; mAP50-95 {told['map']:.3f} on the held-out part")

    def _imitate(self) -> None:
        """Groups of alternatives, every slot in turn, until all have learned or their share of the budget is used."""
        library, wanted = self.library, list(in_turn(self._space))
        self._store.put_fact("library", str(library.folder))
        failed, missing = self._store.fact("dropped") or {}, library.missing(wanted)
        todo = [each for each in missing if each.key not in failed]
        self._failures = {} if len(missing) == len(wanted) else None
        self._say(
            f"library: {len(wanted) - len(todo):,} of {len(wanted):,} alternatives have learned already ({library.folder.name})"
        )
        each = self._store.fact("alternative_seconds") or 0.0
        pace = Pace(self._imitation_seconds(), self._config.workers, self._store.seconds("imitate"), each)
        self._done("imitate", self._groups(todo, pace), pace)
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

    def _groups(self, todo: Sequence[Alternative], pace: Pace) -> Callable[[], tuple[str, Mapping[str, Any]] | None]:
        """Makes a job for a group when it is to begin: first what an earlier session was about, whose learning lies on disk,
        then as many alternatives as the phase has time for by then."""
        by_key, folder = {each.key: each for each in todo}, str(self.library.folder)
        begun = [[by_key.pop(key) for key in keys if key in by_key] for keys in self._store.fact("learning") or []]
        groups, left = deque(group for group in begun if group), deque(by_key.values())

        def make() -> tuple[str, Mapping[str, Any]] | None:
            size = min(pace.group(), len(left))
            group = groups.popleft() if groups and not pace.over else [left.popleft() for _ in range(size)]
            plain = [each.plain() for each in group]
            return (IMITATE, asdict(ImitateJob(**self.job(), alternatives=plain, library=folder))) if plain else None

        return make

    def _done(
        self,
        phase: str,
        jobs: Sequence[tuple[str, Mapping[str, Any]]] | Callable[[], tuple[str, Mapping[str, Any]] | None],
        pace: Pace | None = None,
        most: float = math.inf,
    ) -> list[dict[str, Any]] | None:
        """Run jobs side by side and return their results; None where somebody asked to stop. Lost ones are tried again.

        Args:
            jobs: all of them, or what makes the next one when a worker is free; None where there is no time for one beside
                those that run.
            pace: of jobs of imitation. What is left when their time is over stays undone.
            most: seconds after which a job is stopped; it has no result then.
        """
        make = jobs if callable(jobs) else partial(next, iter(jobs), None)
        again: list[tuple[str, Mapping[str, Any], int]] = []
        running: dict[str, tuple[str, Mapping[str, Any], int]] = {}
        results: list[dict[str, Any]] = []
        while True:
            if pace is not None and pace.over:
                again.clear()
            while self._executor.free > 0 and not self._stopping():
                new = None if again else make()
                job = again.pop(0) if again else new and (*new, 1)
                if not job:
                    break
                attempt = Attempt(f"{phase}{next(self._keys)}", job[0], job[1], derive(self._config.seed, 0, phase))
                running[attempt.key] = job
                if pace is not None:
                    pace.begun(len(job[1]["alternatives"]))
                    self._remember(running)
                self._executor.start(attempt)
            if not running and (self._executor.free or self._stopping()):
                break
            self._wait(phase)
            if self._ledger.exhausted(()):
                for key in running:
                    self._charge(phase, key, self._executor.stop(key))
                hint = f"give more, for example: {resume_command(self._folder)} --add-budget 1h; or search anew --from-scratch"
                raise StoppedError(f"the budget ended in the phase '{phase}'", hint)
            for event in self._executor.poll(POLL_SECONDS):
                if event.key not in running:
                    continue
                self._charge(phase, event.key, event.seconds)
                if isinstance(event, Progress):
                    if event.seconds > most:
                        self._charge(phase, event.key, self._executor.stop(event.key))
                        running.pop(event.key)
                    continue
                kind, payload, count = running.pop(event.key)
                if pace is not None:
                    pace.ended(len(payload["alternatives"]), self._ledger.cost(event.seconds), isinstance(event, Result))
                    self._store.put_fact("alternative_seconds", pace.each)
                    self._remember(running)
                if isinstance(event, Failed | Lost) and disk_full(event):
                    raise StoppedError(
                        f"the phase '{phase}' found no room on the disk: {event.reason}",
                        f"make room, then: {resume_command(self._folder)}",
                    )
                if isinstance(event, Lost) and count < TRIES:
                    log.warning("%s: lost (%s): tried again", phase, event.reason)
                    again.insert(0, (kind, payload, count + 1))
                elif kind == IMITATE and not isinstance(event, Result):
                    again[:0] = [(kind, part, 1) for part in self._halved(payload, event)]
                else:
                    self._failures = None if kind == IMITATE else self._failures
                    results.append(self._result(phase, event))
        return None if self._stopping() else results

    def _remember(self, running: Mapping[str, tuple[str, Mapping[str, Any], int]]) -> None:
        """Which groups learn now: after a kill the same ones go on, since what they have learned is known by the group."""
        groups = [[Alternative.of(plain).key for plain in payload["alternatives"]] for _, payload, _ in running.values()]
        self._store.put_fact("learning", groups)

    def _halved(self, payload: Mapping[str, Any], event: Failed | Lost) -> list[dict[str, Any]]:
        """What is left of a group whose work failed, in two parts; an alternative that fails alone is dropped."""
        left = self.library.missing(Alternative.of(plain) for plain in payload["alternatives"])
        reason = event.reason
        if len(left) == 1:
            self._count_failure(left[0].key, event)
            self._store.put_fact("dropped", {**(self._store.fact("dropped") or {}), left[0].key: reason})
            log.warning("layer %d: %s was dropped: %s", left[0].layer, left[0].module, reason)
            return []
        log.warning("imitate: %s: %d alternatives are tried in two parts", reason, len(left))
        parts = left[: len(left) // 2], left[len(left) // 2 :]
        return [{**payload, "alternatives": [each.plain() for each in part]} for part in parts if part]

    def _count_failure(self, key: str, event: Failed | Lost) -> None:
        """Whose fault is it? Where all that learn fail alike, not theirs: then none of them is dropped. Raises StoppedError."""
        if self._failures is None:
            return
        kind = class_of(event)
        self._failures[key] = event.reason if kind == "failed" else kind
        if len(self._failures) >= SAME_FAILURES and len(set(self._failures.values())) == 1:
            dropped = self._store.fact("dropped") or {}
            self._store.put_fact("dropped", {k: why for k, why in dropped.items() if k not in self._failures})
            what = f"the first {len(self._failures)} alternatives that were to learn failed alike: {event.reason}"
            raise StoppedError(what, f"see {self._folder / 'workers'}; then: {resume_command(self._folder)}")

    def dropped(self, alternative: Alternative) -> str:
        """Why no architecture may hold an alternative; empty where it may."""
        entry = self.library.get(alternative)
        return entry.dropped if entry is not None else (self._store.fact("dropped") or {}).get(alternative.key, "")

    def _result(self, phase: str, event: Event) -> dict[str, Any]:
        if not isinstance(event, Result):
            reason = getattr(event, "reason", "")
            raise StoppedError(f"the phase '{phase}' failed: {reason}", f"see {self._folder / 'workers'}")
        if "fault" in event.data:
            raise StartError(event.data["fault"], event.data["cure"])
        return dict(event.data)

    def _charge(self, phase: str, key: str, seconds: float) -> None:
        """What an attempt has used since the last time."""
        self._store.add_seconds(**{phase: self._ledger.cost(max(0.0, seconds - self._charged.get(key, 0.0)))})
        self._charged[key] = seconds
