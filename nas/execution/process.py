"""One warm worker process as its parent sees it: start, send, pause, kill. Messages arrive in a queue from a thread."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nas.execution.executor import Attempt, Event, Failed, Lost, Progress, Result
from nas.execution.still import signal_all

LAST_LINES, LAST_BYTES = 30, 8192

Inbox = queue.SimpleQueue[tuple["WorkerProcess", dict[str, Any]]]


def as_message(attempt: Attempt) -> dict[str, Any]:
    """An attempt as a worker reads it."""
    return {**asdict(attempt), "payload": dict(attempt.payload)}


def last_lines(log: str | None) -> str:
    """What an attempt printed last, as far as that is known."""
    try:
        with Path(log or "").open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LAST_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-LAST_LINES:])


class WorkerProcess:
    """A child process that runs attempts.

    Args:
        inbox: where its messages go, as (this, message); the last one is `{"event": "end"}`.
        environment: added to this process's own.
        log: file that its output is appended to.
        on_quiet: called, in the reading thread, when its attempt wants to time something; it is told to go on afterwards.
    """

    def __init__(
        self, inbox: Inbox, environment: Mapping[str, str], log: Path, on_quiet: Callable[[], None] | None = None
    ) -> None:
        self.attempt: Attempt | None = None
        self.ready = False
        self.began = 0.0
        self.stopped = False
        self._on_quiet = on_quiet
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "nas.execution.worker"],  # -P: no modules from the present folder
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, **environment},
                start_new_session=True,  # Ctrl-C in the terminal is the study's to handle
            )
        self._thread = threading.Thread(target=self._read, args=(inbox,), daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, attempt: Attempt) -> None:
        """Hand over an attempt; its seconds count from now, or from when the process becomes ready."""
        self.attempt = attempt
        self.began = time.monotonic() if self.ready else 0.0
        self._write(as_message(attempt))

    @property
    def seconds(self) -> float:
        """How long the present attempt has run."""
        return time.monotonic() - self.began if self.began else 0.0

    def pause(self) -> None:
        """Make it and its children stand still, once it is ready: only then does it end with this process even so."""
        if self.ready and self._process.poll() is None:
            signal_all(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        if self._process.poll() is None:
            signal_all(self._process.pid, signal.SIGCONT)

    def kill(self) -> None:
        """End the process and whatever it started, and wait for it."""
        self.stopped = True
        self._kill_group()
        self._process.wait()
        self._thread.join()

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def event(self, message: Mapping[str, Any]) -> Event | None:
        """A message as an executor's event; keeps `ready` and `attempt` up to date."""
        attempt, name = self.attempt, message["event"]
        if name == "ready":
            self.ready = True
            self.began = time.monotonic() if attempt else 0.0
            return None
        if attempt is None or name == "quiet":
            return None
        if name == "progress":
            return Progress(attempt.key, message["data"], message["seconds"])
        self.attempt = None
        if name == "result":
            return Result(attempt.key, message["data"], message["seconds"])
        if name == "failed":
            return Failed(attempt.key, message["reason"], message["seconds"], message["detail"])
        code = self._process.wait()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return Lost(attempt.key, f"its worker ended with {how}", self.seconds, last_lines(attempt.log))

    def _write(self, message: Mapping[str, Any]) -> None:
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")  # type: ignore[union-attr]
            self._process.stdin.flush()  # type: ignore[union-attr]
        except BrokenPipeError:
            pass  # it has just died: the reading thread reports that

    def _read(self, inbox: Inbox) -> None:
        for line in self._process.stdout:  # type: ignore[union-attr]
            try:
                message = json.loads(line)
            except ValueError:
                continue  # torn by the worker's death, or printed by a sitecustomize before the worker began
            if message["event"] == "quiet":
                if self._on_quiet:
                    self._on_quiet()
                self._write({"go": True})
            inbox.put((self, message))
        self._process.wait()
        self._kill_group()  # whatever its attempts had started
        inbox.put((self, {"event": "end"}))
