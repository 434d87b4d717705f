"""What still fits a search's budget, beside what is to be kept of it: bringing up who leads, and confirming the front."""

from __future__ import annotations

from nas.climb import Climb
from nas.jobs import Jobs, Step
from nas.runs.ledger import Ledger
from nas.runs.trials import TrialFolders
from nas.settling import Settling
from nas.under_way import UnderWay


class Room:
    """The budget's room for new trials and for steps of those there are.

    Args:
        ledger: what is used up.
        workers: trials trained at the same time.
        running: those that train now.
        climb: who goes on, and what that is expected to cost.
        settling: whose latency is yet to be measured.
        folders: who is on the front.
        jobs: whether the front is validated too.
    """

    def __init__(
        self,
        ledger: Ledger,
        workers: int,
        running: UnderWay,
        climb: Climb,
        settling: Settling,
        folders: TrialFolders,
        jobs: Jobs,
    ) -> None:
        self._ledger, self._workers, self._running, self._climb = ledger, workers, running, climb
        self._settling, self._folders, self._jobs = settling, folders, jobs

    def for_trial(self, waiting: int) -> bool:
        """Whether one more trial fits, beside `waiting` that are yet to start."""
        reserve = self._to_confirm + self._climb.finishing(self._ledger.budget.amount, *self._side_by_side)
        return self._ledger.fits(self.elapsed, waiting, fresh=self._running.fresh, reserve=reserve)

    def for_step(self, step: Step) -> bool:
        """Whether a step fits; the baseline always starts. Who goes on without leading its rung leaves what confirming the
        front needs."""
        if step.number == 0 and not step.again:
            return not self._ledger.exhausted(())
        if not step.rung and not step.again:
            return self.for_trial(0)
        reserve = 0.0 if step.again or self._climb.leads(step) else self._to_confirm
        return not self._ledger.exhausted(self.elapsed) and self._ledger.fits(
            self.elapsed, 0, seconds=self._climb.seconds(step), reserve=reserve
        )

    @property
    def elapsed(self) -> list[float]:
        """Seconds that each training has run, where the budget depends on it."""
        return self._running.elapsed if self._ledger.budget.kind == "device" else []

    @property
    def _to_confirm(self) -> float:
        """What is to be kept of the budget for confirming, validating and measuring the front."""
        amount, validates = self._ledger.budget.amount, self._jobs.validates
        kept = self._climb.confirming(self._folders.front, amount, *self._side_by_side, validates=validates)
        return kept + self._settling.seconds

    @property
    def _side_by_side(self) -> tuple[int, float]:
        """How many use the budget up together, on how many devices each."""
        return (self._workers, self._ledger.cost(1)) if self._ledger.budget.kind == "wall" else (1, 1.0)
