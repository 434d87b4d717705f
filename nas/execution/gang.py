"""Processes that carry out one attempt together, one for each device of a trial.

Each is a worker (`nas.execution.process`), warm, and ends with the process that began it, which is one itself. They meet in a
file (`nas.training.peers`). What the first tells counts. Where one raises, the others wait for it in vain: all are ended, and
others begin with the next attempt. Where one dies, so does whoever began them: nothing says that the attempt is at fault.
"""

from __future__ import annotations

import os
import queue
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nas.alive import beat
from nas.errors import NasError
from nas.execution.executor import Attempt, Failed, Lost, Progress, Result
from nas.execution.printed import present_log
from nas.execution.process import Inbox, WorkerProcess

# No other host can reach them; and who stands still while the lane times has not hung.
ENVIRONMENT = {"NCCL_SOCKET_IFNAME": "lo", "TORCH_NCCL_ENABLE_MONITORING": "0"}
if sys.platform == "linux":
    ENVIRONMENT["GLOO_SOCKET_IFNAME"] = "lo"
OTHERS_SECONDS = 2.0  # after a failure: what the others have to say to it


class FailedTogetherError(NasError):
    """What one of them raised: its reason, and its last lines."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason)
        self.detail = detail

    def __str__(self) -> str:
        return self.detail or self.message


class DiedError(NasError):
    """One of them has died."""


class Gang:
    """So many processes, which begin with the first attempt."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._inbox: Inbox = queue.SimpleQueue()
        self._file, self._name = tempfile.mkstemp(prefix="nas-gang-")
        own = Path(f"/proc/{os.getpid()}/fd/{self._file}")
        if own.exists():  # workers end by being killed: a file without a name ends with them
            self._remove()
        self._meet = str(own) if own.exists() else self._name
        environment = {name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()}
        log = Path(present_log() or os.devnull)
        self.members = [WorkerProcess(self._inbox, environment, log) for _ in range(count)]

    def run(
        self, kind: str, payload: Mapping[str, Any], seed: int, report: Callable[[Mapping[str, Any]], None]
    ) -> Mapping[str, Any]:
        """What the first one returns. All of them are called with `payload`, and in it their `rank`, the `count` of all, and
        the file where they `meet`.

        Raises:
            MemoryError: one had not enough of it.
            FailedTogetherError: one raised something else.
            DiedError: one has died.
        """
        own = {**payload, "count": self.count, "meet": self._meet}
        for rank, member in enumerate(self.members):
            member.send(Attempt(f"peer{rank}", kind, {**own, "rank": rank}, seed, log=present_log()))
        ended: dict[WorkerProcess, Result | Failed | Lost] = {}
        while len(ended) < self.count:
            bad = any(not isinstance(event, Result) for event in ended.values())
            try:
                member, message = self._inbox.get(timeout=OTHERS_SECONDS if bad else None)
            except queue.Empty:
                break
            event = member.event(message)
            if isinstance(event, Progress):
                self._tell(member, event, report)
            elif event is not None:
                ended[member] = event
            if isinstance(event, Lost):
                break
        return self._outcome(ended)

    def close(self) -> None:
        """End all of them."""
        for member in self.members:
            member.kill()
        os.close(self._file)
        self._remove()

    def _remove(self) -> None:
        Path(self._name).unlink(missing_ok=True)

    def _tell(self, member: WorkerProcess, event: Progress, report: Callable[[Mapping[str, Any]], None]) -> None:
        if member is not self.members[0]:
            return
        if event.data:
            report(event.data)
        else:
            beat()

    def _outcome(self, ended: Mapping[WorkerProcess, Result | Failed | Lost]) -> Mapping[str, Any]:
        """What came of it, if all have ended or one is to blame."""
        for rank, member in enumerate(self.members):
            if isinstance(event := ended.get(member), Lost):
                died = DiedError(f"process {rank + 1} of the {self.count} that train together: {event.reason}")
                print(died, file=sys.stderr, flush=True)  # noqa: T201  (the attempt's log, which is all that stays of it)
                raise died
        bad = [event for event in ended.values() if isinstance(event, Failed)]
        if not bad:
            event = ended[self.members[0]]
            return event.data if isinstance(event, Result) else {}
        if any(event.reason == "out of memory" for event in bad):
            raise MemoryError
        raise FailedTogetherError(bad[0].reason, bad[0].detail)


class _Present:
    """The gang of this process."""

    gang: Gang | None = None


def together(
    count: int, kind: str, payload: Mapping[str, Any], seed: int, report: Callable[[Mapping[str, Any]], None]
) -> Mapping[str, Any]:
    """Have so many processes of this one's carry something out; they stay for the next time. Raises as `Gang.run`."""
    if _Present.gang is not None and _Present.gang.count != count:
        disband()
    gang = _Present.gang = _Present.gang or Gang(count)
    try:
        return gang.run(kind, payload, seed, report)
    except BaseException:
        disband()  # nobody knows how far each of them came
        raise


def disband() -> None:
    """End the gang of this process, if it has one."""
    gang, _Present.gang = _Present.gang, None
    if gang is not None:
        gang.close()
