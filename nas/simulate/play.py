"""One session of the study's own loop over a table, in virtual time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nas.config import Budget, RunConfig
from nas.execution.simulate import Clock, Faults, SimulatedExecutor
from nas.execution.watch import Watched
from nas.proposals import Proposals
from nas.review.progress import Status
from nas.runs.ledger import Ledger
from nas.runs.store import Store
from nas.runs.trials import TrialFolders
from nas.session import interruptible
from nas.simulate.space import TableKnowledge, TableLatencies, TableSpace
from nas.simulate.trainings import SimulatedJobs
from nas.study import Study


class Play:
    """A search that is about to run.

    Args:
        space: the table.
        config: what to do; its `workers` are the simulated GPUs.
        store: empty, or of an earlier session: virtual time goes on where that ended.
        tau: Kendall's, of rungs that the table has no column for.
        faults: what goes wrong.
        folder: the run folder.
        watch: as for `Study`.
    """

    def __init__(
        self,
        space: TableSpace,
        config: RunConfig,
        store: Store,
        *,
        tau: float,
        faults: Faults,
        folder: Path,
        watch: Callable[[Callable[[], Status]], None] = lambda _: None,
    ) -> None:
        clock = Clock(store.seconds("wall"))
        self.executor = SimulatedExecutor(clock, config.workers, faults, config.seed)
        self.ledger = Ledger(Budget.parse(config.budget), store, config.held, clock)
        self._store = store
        self._study = Study(
            config=config,
            space=space,
            store=store,
            executor=Watched(self.executor, clock) if faults.hang else self.executor,
            pricing=TableLatencies(space, config.limits, f"{space.table.path.name}, {config.target}"),
            proposals=Proposals(config, store, TableKnowledge(space, config.max_latency_ms)),
            ledger=self.ledger,
            jobs=SimulatedJobs(space.table, config.rungs, tau, config.seed),
            folders=TrialFolders(folder),
            watch=watch,
            record=lambda: None,
            patience=float("inf"),
            clock=clock,
        )

    def run(self) -> str:
        """Search; says why it ended. Raises NasError as `Study.run` does."""
        with interruptible(self._study):
            ended = self._study.run()
        self._store.put_fact("stopped_because", ended)
        return ended
