"""How a search goes, for whoever looks at it from another terminal or host: it leaves word in its store every few seconds.

Reading takes one row of the store, whatever the number of trials, and so neither waits for the search nor makes it wait.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas.errors import InputError, NasError
from nas.review.progress import ENDS, Status
from nas.review.record import duration
from nas.runs import folder as folders
from nas.runs.database import Database
from nas.runs.place import place_of
from nas.runs.store import Store

FACT = "status"
EVERY_SECONDS = 5.0
FRESH_SECONDS = 30.0  # without word for longer, a search whose host cannot be asked counts as ended
LOOK_SECONDS = 2.0
SHOWN = 100  # of the running trials


class Heartbeat:
    """Leaves word of a search in its store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._left = -EVERY_SECONDS
        self._latest: Callable[[], Status] | None = None

    def __call__(self, status: Callable[[], Status]) -> None:
        """To be called often; leaves word now and then."""
        self._latest = status
        if time.monotonic() - self._left >= EVERY_SECONDS:
            self.leave()

    def leave(self) -> None:
        """Leave word now, if there is any."""
        if self._latest is None:
            return
        status, self._left = self._latest(), time.monotonic()
        running = {str(trial): list(epochs) for trial, epochs in sorted(status.running.items())[:SHOWN]}
        self._store.put_fact(FACT, {"moment": time.time(), "facts": status.facts, "running": running})


@dataclass(frozen=True)
class Standing:
    """How a run stands.

    Attributes:
        folder: of the run.
        state: `running`, `ended` (by itself), or `killed`.
        head: that in words.
        facts: the state in a few words each, as the search itself shows them.
        running: trial -> (epoch, of how many), while it runs.
    """

    folder: Path
    state: str
    head: str
    facts: tuple[str, ...]
    running: dict[int, tuple[int, int]]

    @property
    def lines(self) -> list[str]:
        trials = [f"  trial {trial}: epoch {done} of {of}" for trial, (done, of) in self.running.items()]
        return [f"{self.folder}: {self.head}", *([" · ".join(self.facts)] if self.facts else []), *trials]


class Watcher:
    """Reads how a run stands, again and again.

    Raises:
        InputError: no such run, or its store cannot be used.
        UnreachableError: the server of its store cannot be reached.
    """

    def __init__(self, name: str | None) -> None:
        self.folder = folders.find_folder(name)
        self._place = place_of(self.folder)
        self._database: Database | None = None

    def read(self) -> Standing:
        """As it stands now. Raises as the constructor does."""
        holder, facts = folders.holder_of(self.folder), self._facts()
        told = facts.get(FACT) or {"facts": [], "running": {}, "moment": None}
        age = None if told["moment"] is None else max(0.0, time.time() - told["moment"])
        heard = "no word yet" if age is None else f"last word {duration(age)} ago"
        ended = facts.get("stopped_because")
        again = f"go on with: {folders.resume_command(self.folder)}"
        fresh = age is not None and age < FRESH_SECONDS
        if holder is not None and (holder.state == "held" or (holder.state == "unclear" and fresh and ended is None)):
            running = {int(trial): (done, of) for trial, (done, of) in told["running"].items()}
            return Standing(self.folder, "running", f"running, {holder.words}, {heard}", tuple(told["facts"]), running)
        found = tuple(fact for fact in told["facts"][1:] if not fact.startswith(ENDS))  # neither phase nor end: it is over
        if ended is not None:
            return Standing(self.folder, "ended", f"stopped: {ended}; {again}", found, {})
        who = "its process" if holder is None else holder.words
        return Standing(self.folder, "killed", f"{who} was killed, {heard}; {again}", found, {})

    def _facts(self) -> dict[str, Any]:
        """The row of the store; empty as long as there is no store."""
        try:
            if self._database is None and self._place.exists():
                self._database = self._place.open(exclusive=False)
            return {} if self._database is None else self._database.facts()
        except NasError:
            raise
        except Exception as error:
            # SQLAlchemy, the drivers and Optuna each have their own ways to say that this is not a usable database.
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            raise InputError(f"{self._place}: cannot be read: {reason}", self._place.cure) from error

    def close(self) -> None:
        if self._database is not None:
            self._database.close()


def follow(name: str | None, *, watch: bool) -> Iterator[list[str]]:
    """How a run stands, in lines; with `watch` again whenever that changes, until the search has ended.

    Raises:
        InputError: no such run, or its store cannot be used.
        UnreachableError: the server of its store cannot be reached.
    """
    watcher, shown = Watcher(name), None
    with contextlib.closing(watcher):
        while True:
            standing = watcher.read()
            told = (standing.state, standing.facts[:2], standing.running)
            if told != shown:
                shown = told
                yield standing.lines
            if not watch or standing.state != "running":
                return
            time.sleep(LOOK_SECONDS)
