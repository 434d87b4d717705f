"""The trainings that run now: which step each is, since when, and how far it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from nas.execution.executor import Event, Progress
from nas.jobs import Step

HEARTBEAT_SECONDS = 5.0


@dataclass
class Training:
    """One of them. `epochs` is (done, of how many), or None before the first."""

    step: Step
    began: float
    epochs: tuple[int, int] | None = None
    charged: float = 0.0


class UnderWay:
    """Keeps them by the key of their attempt.

    Args:
        clock: seconds, of which only differences count.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._running: dict[str, Training] = {}
        self.fresh = 0  # trials among them that have not passed the lowest rung

    def __len__(self) -> int:
        return len(self._running)

    def __iter__(self) -> Iterator[tuple[str, Training]]:
        return iter(list(self._running.items()))

    def __contains__(self, key: str) -> bool:
        return key in self._running

    @property
    def steps(self) -> list[Step]:
        return [training.step for training in self._running.values()]

    @property
    def elapsed(self) -> list[float]:
        """Seconds that each has run."""
        now = self._clock()
        return [now - training.began for training in self._running.values()]

    @property
    def shown(self) -> dict[int, tuple[int, int] | None]:
        """How far each trial is."""
        return {training.step.number: training.epochs for training in self._running.values()}

    def begin(self, key: str, step: Step) -> None:
        """An attempt was started; nothing is charged for it yet."""
        now = self._clock()
        self.fresh += not step.rung and not step.again
        self._running[key] = Training(step, now, charged=now)

    def hear(self, event: Event) -> Training:
        """News of one. The worker's own clock counts: it may have had to start first."""
        training = self._running[event.key]
        training.began = self._clock() - event.seconds
        if isinstance(event, Progress) and "epoch" in event.data:
            training.epochs = (event.data["epoch"], event.data["epochs"])
        return training

    def is_due(self, training: Training) -> bool:
        """Whether what it has cost should be written down now: a crash then costs the ledger a few seconds at most."""
        due = self._clock() - training.charged >= HEARTBEAT_SECONDS
        if due:
            training.charged = self._clock()
        return due

    def end(self, key: str) -> Step:
        """It runs no more."""
        step = self._running.pop(key).step
        self.fresh -= not step.rung and not step.again
        return step

    def seconds(self, training: Training) -> float:
        """How long it has run."""
        return self._clock() - training.began
