"""Telling people how a search goes: a live view on a terminal, a plain line every 30 s where the output is piped."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from nas.review.record import duration
from nas.search.outlook import Outlook

if TYPE_CHECKING:
    from rich.console import RenderableType

LINE_SECONDS = 30.0
ENDS = "ends about"


@dataclass(frozen=True)
class Status:
    """How a search stands.

    `running` is trial -> (epoch, epochs); `share` of the budget that is used, 0..1, and it lasts `left` seconds more, where
    that can be told; `baseline` and `best` (the best
    within the limit) are (mAP50-95, latency in ms); `gpus_busy` is the share of time in which the GPUs work, 0..1; `taus` are
    Kendall's between each rung and the next, as far as known; `outlook` is what the accuracy model expects of another hour of
    a device, and by how much it is off.
    """

    phase: str
    counts: Mapping[str, int]
    running: Mapping[int, tuple[int, int]]
    budget: str
    share: float
    wall_seconds: float
    baseline: tuple[float, float] | None
    best: tuple[float, float] | None
    left: float | None = None
    gpus_busy: float | None = None
    taus: tuple[float | None, ...] = ()
    outlook: Outlook | None = None

    @property
    def facts(self) -> list[str]:
        """The state in a few words each."""
        shown = ("done", "paused", "failed", "rejected", "queued")
        counts = ", ".join(f"{self.counts[s]} {s}" for s in shown if self.counts.get(s))
        facts = [self.phase, counts or "no trial yet", f"{self.share:.0%} of {self.budget}", duration(self.wall_seconds)]
        if self.left is not None:
            facts.append(f"{ENDS} {clock_time(self.left)}")
        if self.baseline:
            facts.append(f"baseline mAP {self.baseline[0]:.3f} at {self.baseline[1]:.2f} ms")
        if self.best:
            facts.append(f"best {self.best[0]:.3f} at {self.best[1]:.2f} ms")
        if any(tau is not None for tau in self.taus):
            facts.append("tau between rungs " + ", ".join("?" if tau is None else f"{tau:.2f}" for tau in self.taus))
        if self.outlook is not None:
            facts.append(f"model off by {self.outlook.error:.3f} mAP, another device-hour {self.outlook.rise}")
        if self.gpus_busy is not None:
            facts.append(f"GPUs {self.gpus_busy:.0%} busy")
        return facts


def clock_time(left: float) -> str:
    """What the clock says `left` seconds from now; with the date where that is another day."""
    then, now = time.time() + left, time.localtime()
    same = time.localtime(then)[:3] == now[:3]
    return time.strftime("%H:%M" if same else "%Y-%m-%d %H:%M", time.localtime(then))


class Progress(Protocol):
    """Something that shows a search while it runs."""

    def __enter__(self) -> Self: ...
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...
    def __call__(self, status: Status) -> None: ...
    def say(self, text: str) -> None:
        """Show a line that stays."""
        ...


class Quiet:
    """Shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None

    def __call__(self, status: Status) -> None:  # noqa: ARG002  (it shows nothing)
        return None

    def say(self, text: str) -> None:  # noqa: ARG002
        return None


class Lines(Quiet):
    """A line at the start of each phase and every 30 s, to stderr."""

    def __init__(self) -> None:
        self._next, self._phase = 0.0, ""

    def __call__(self, status: Status) -> None:
        now = time.monotonic()
        if now >= self._next or status.phase != self._phase:
            self._next, self._phase = now + LINE_SECONDS, status.phase
            self.say(" · ".join(status.facts))

    def say(self, text: str) -> None:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


class Live:
    """A view that redraws itself on a terminal: the budget's bar, the counts, and a bar for every running trial."""

    def __init__(self) -> None:
        from rich.console import Console  # noqa: PLC0415  (only on a terminal)
        from rich.live import Live as RichLive  # noqa: PLC0415

        self._live = RichLive(console=Console(stderr=True), refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._live.stop()

    def __call__(self, status: Status) -> None:
        self._live.update(self._view(status))

    def say(self, text: str) -> None:
        self._live.console.print(text, markup=False, highlight=False)

    def _view(self, status: Status) -> RenderableType:
        from rich.progress_bar import ProgressBar  # noqa: PLC0415
        from rich.table import Table  # noqa: PLC0415

        grid = Table.grid(padding=(0, 1))
        grid.add_row("budget", ProgressBar(total=1.0, completed=status.share, width=30), " · ".join(status.facts[2:4]))
        for trial, (epoch, epochs) in sorted(status.running.items()):
            bar = ProgressBar(total=epochs, completed=epoch, width=30)
            grid.add_row(f"trial {trial}", bar, f"epoch {epoch}/{epochs}")
        outer = Table.grid()
        outer.add_row(" · ".join([*status.facts[:2], *status.facts[4:]]))
        outer.add_row(grid)
        return outer


def progress(*, quiet: bool) -> Progress:
    """The view that suits where stderr goes."""
    if quiet:
        return Quiet()
    return Live() if sys.stderr.isatty() else Lines()
