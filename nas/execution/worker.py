"""A warm child process: reads attempts as JSON lines from stdin, runs one at a time, writes events to stdout.

    python -m nas.execution.worker

It ends when stdin ends, at once, even in the middle of an attempt: so no worker outlives its study.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import IO, Any

from nas.alive import listening
from nas.errors import NasError
from nas.execution.gang import DiedError
from nas.execution.printed import logged

Send = Callable[[dict[str, Any]], None]

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    """Serve attempts until stdin ends."""
    if sys.platform == "linux":
        # One that stands still while the lane times would not notice that its study was killed. (To the kernel the
        # parent is the thread that started this process.)
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # Libraries print as they like; the protocol gets a stream of its own and file descriptor 1 becomes the log.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    inbox: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    go = threading.Event()
    threading.Thread(target=_read, args=(sys.stdin, inbox, go), daemon=True).start()
    lock = threading.Lock()

    def send(message: dict[str, Any]) -> None:
        with lock:
            out.write(json.dumps(message) + "\n")

    send({"event": "ready", "pid": os.getpid()})
    while True:
        attempt = inbox.get()
        go.clear()
        run_attempt(attempt, send, go.wait)


def _read(stdin: IO[str], inbox: queue.SimpleQueue[dict[str, Any]], go: threading.Event) -> None:
    try:
        for line in stdin:
            message = json.loads(line)
            if message.get("go"):
                go.set()
            else:
                inbox.put(message)
    except json.JSONDecodeError:
        pass  # the study died while it wrote
    os._exit(0)


def run_attempt(attempt: Mapping[str, Any], send: Send, wait_for_quiet: Callable[[], object]) -> None:
    """Run one attempt and send its events; never raises for what the attempt does.

    A quiet attempt calls `progress({"quiet": True})` when it is about to time something: that returns when nothing else
    runs on this host. What it prints goes to the attempt's `log`, where it has one. Where a process that works for it has
    died, this one ends.
    """
    start = time.monotonic()

    def event(name: str, **fields: Any) -> None:
        send({"event": name, "key": attempt["key"], "seconds": time.monotonic() - start, **fields})

    def progress(data: Mapping[str, Any]) -> None:
        told = _plain(data)
        if told.get("quiet"):
            event("quiet")
            wait_for_quiet()
        else:
            event("progress", data=told)

    try:
        module, _, function = attempt["kind"].partition(":")
        with logged(attempt.get("log")), listening(lambda: event("progress", data={})):
            data = getattr(importlib.import_module(module), function)(attempt["payload"], attempt["seed"], progress)
        event("result", data=_plain(data))
    except DiedError:
        os._exit(1)  # as if this process had died itself: whoever started it knows what to do then
    except NasError as error:
        event("failed", reason=error.message, detail=str(error))
    except MemoryError:
        event("failed", reason="out of memory", detail=_last_lines())
    except Exception as error:
        # The boundary of an attempt: whatever it raised is its result, told to the study and kept in its post-mortem.
        reason = "out of memory" if type(error).__name__ == "OutOfMemoryError" else f"{type(error).__name__}: {error}"
        event("failed", reason=reason.splitlines()[0][:300], detail=_last_lines())


def _plain(data: Any) -> dict[str, Any]:
    """What an attempt tells, as JSON carries it: the same whichever way it travels. Raises TypeError for anything else."""
    if not isinstance(data, Mapping):
        raise TypeError(f"an attempt tells a mapping, not {type(data).__name__}")
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(data), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TypeError(f"an attempt tells plain JSON: {error}") from error
    return plain


def _last_lines() -> str:
    return "\n".join(traceback.format_exc().splitlines()[-30:])


if __name__ == "__main__":
    main()
