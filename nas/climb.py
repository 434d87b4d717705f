"""Which trials go on: up the rungs, and in the end once more with another seed, so that the front has error bars."""

from __future__ import annotations

from collections.abc import Sequence

from nas.jobs import Step
from nas.runs.store import Entry, Store
from nas.search.ladder import FACTOR, Climber, leading, promotion, tau_of

RESERVE_SHARE = 0.25  # of the budget, at most, is kept for confirming the front
FINISH_SHARE = 0.5  # and so much for bringing those up who lead their rungs


class Climb:
    """The climb of a run's trials.

    Args:
        store: the trials.
        shares: of each rung but the highest, how many go on, see `nas.search.ladder.promotion`.
        confirm: with how many more seeds a member of the front is trained.
    """

    def __init__(self, store: Store, shares: Sequence[float], confirm: int) -> None:
        self._store, self._shares, self._confirm = store, shares, confirm
        self._rungs = len(shares) + 1
        self._climbers: dict[int, Climber] = {}
        self.taus: tuple[float | None, ...] = (None,) * len(shares)  # Kendall's, between each rung and the next
        self._changed = self._final = False
        self._leading: list[int] | None = None  # of each rung but the highest: how many lead it, or are on their way from it
        self._unconfirmed: set[int] = set()
        self._unvalidated: set[int] = set()

    def note(self, entry: Entry, *, feasible: bool) -> None:
        """A trial has come to rest, or failed on its way; of those outside the limits only the baseline climbs."""
        if self._rungs > 1 and entry.results and entry.price and feasible:
            scores = tuple(float(result["map"]) for result in entry.results)
            self._climbers[entry.number] = Climber(entry.number, entry.price["ms"], scores, entry.state == "paused")
            self._changed, self._leading = True, None
            if len(entry.results) > 1:
                known = list(self._climbers.values())
                self.taus = tuple(tau_of(known, rung) for rung in range(self._rungs - 1))

    def give_up(self, step: Step) -> None:
        """A member of the front cannot be trained with another seed, or not be validated."""
        (self._unvalidated if step.validates else self._unconfirmed).add(step.number)

    def promotion(self, *, final: bool = False) -> Step | None:
        """The trial that is to go on now, and to which rung; `final` where nothing more will be proposed. The baseline goes all
        the way at once."""
        if self._rungs == 1 or not len(self._store):
            return None
        baseline = self._store[0]
        if baseline.state == "paused":
            return Step(0, len(baseline.results))
        if not self._changed and final == self._final:
            return None
        self._final = final
        found = promotion(list(self._climbers.values()), self._shares, final=final)
        self._changed = found is not None
        return None if found is None else Step(found.number, found.rung)

    def leads(self, step: Step) -> bool:
        """Whether the trial that is to go on is on the front of the rung that it comes from."""
        return any(climber.number == step.number for climber in leading(list(self._climbers.values()), step.rung - 1))

    def promoted(self, number: int) -> None:
        """A trial is on its way to the next rung."""
        if number in self._climbers:
            known = self._climbers[number]
            self._climbers[number] = Climber(number, known.ms, known.scores, rests=False)
            self._leading = None

    def validation(self, front: Sequence[Entry], running: Sequence[Step]) -> Step | None:
        """The member of the front, or the baseline, to score on `val` next."""
        busy = {step.number for step in running} | self._unvalidated
        open_ = [e.number for e in (*self._baseline, *front) if e.val is None and e.number not in busy]
        return Step(open_[0], self._rungs - 1, validates=True) if open_ else None

    def confirmation(self, front: Sequence[Entry], running: Sequence[Step]) -> Step | None:
        """The member of the front, or the baseline, to train next with another seed: the best of the least confirmed. Nobody
        where there is no front, which is what the budget is for."""
        if not front:
            return None
        busy = {step.number for step in running} | self._unconfirmed
        open_ = [e for e in {e.number: e for e in (*self._baseline, *front)}.values() if len(e.repeats) < self._confirm]
        open_ = [entry for entry in open_ if entry.number not in busy]
        if not open_:
            return None
        chosen = min(open_, key=lambda entry: (len(entry.repeats), -entry.map, entry.number))
        return Step(chosen.number, self._rungs - 1, len(chosen.repeats) + 1)

    def seconds(self, step: Step) -> float:
        """Device seconds that a step is expected to cost: the median of its like, or what the rungs below say."""
        typical = self._store.tally.typical_seconds
        if step.validates:  # until that is known: no more than the lowest rung, which of assembled networks is a score too
            return self._store.tally.typical_validation or typical(0)
        if step.repeat:
            return sum(self._typical(rung) for rung in range(self._rungs))
        return typical(step.rung) or self._typical(step.rung)

    def confirming(self, front: Sequence[Entry], budget: float, workers: int, held: float, *, validates: bool = False) -> float:
        """What to keep of a budget that `workers` side by side, on `held` devices each, use up, for confirming and validating
        the front, and who leads a rung and will be on it: at most a quarter of it, nothing before there is a front."""
        if not front:
            return 0.0
        again, looked = self.seconds(Step(0, self._rungs - 1, 1)), 0.0
        members = {entry.number: entry for entry in (*self._baseline, *front)}.values()
        coming = sum(self._leaders)
        missing = sum(max(0, self._confirm - len(entry.repeats)) for entry in members) + self._confirm * coming
        if validates:
            unseen = sum(entry.val is None for entry in members) + coming
            looked = unseen * self.seconds(Step(0, self._rungs - 1, validates=True))
        # however many work side by side, the longest of it takes as long as it takes
        return min(RESERVE_SHARE * budget, max((missing * again + looked) / workers, again if missing else 0.0) / held)

    def finishing(self, budget: float, workers: int, held: float) -> float:
        """Likewise for bringing up who leads a rung now, at most half of it: what was only looked at on a lower rung is no
        front."""
        together, longest = self._finish
        return min(FINISH_SHARE * budget, max(together / workers, longest) / held)

    @property
    def _leaders(self) -> list[int]:
        """Of each rung but the highest, how many lead it, with those who are on their way from it."""
        if self._leading is None:
            climbers = list(self._climbers.values())
            below = [c for c in climbers if not c.rests and self._store[c.number].state in {"queued", "running"}]
            self._leading = [
                len(leading(climbers, rung)) + sum(len(c.scores) == rung + 1 for c in below) for rung in range(self._rungs - 1)
            ]
        return self._leading

    @property
    def _finish(self) -> tuple[float, float]:
        """Device seconds that bring the leaders of all rungs to the highest: of all together, and of the one that has the
        longest way."""
        climb = [self.seconds(Step(0, rung)) for rung in range(1, self._rungs)]
        ways = [sum(climb[rung:]) for rung in range(len(climb))]
        longest = max((way for way, count in zip(ways, self._leaders, strict=True) if count), default=0.0)
        return sum(count * way for way, count in zip(ways, self._leaders, strict=True)), longest

    @property
    def _baseline(self) -> list[Entry]:
        """The baseline, once it is done."""
        return [self._store[0]] if len(self._store) and self._store[0].state == "done" else []

    def _typical(self, rung: int) -> float:
        known = self._store.tally.typical_seconds(rung)
        return known or (FACTOR * self._typical(rung - 1) if rung else 0.0)
