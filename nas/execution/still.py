"""Processes of this host that stand still while something is timed, and that go on whatever happens to who stopped them.

With a process stands still whatever it has started. A helper process stops and continues them. It ends with its parent, by
the end of a pipe, and continues all first; if it is killed itself, its parent continues them. It runs this file alone: the
standard library, no packages.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

Pids = dict[int, int]  # of a process: its number -> when it was born, which tells it from a later one of the same number


def born(pid: int) -> int:
    """When a process began, in ticks since this host did; 0 where that cannot be told."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


def signal_all(pid: int, number: int) -> None:
    """Send a signal to a process and to what it has started, and these have, as far as the system tells."""
    found = [pid]
    for each in found:  # grows meanwhile
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(each, number)
        for children in Path(f"/proc/{each}/task").glob("*/children"):
            with contextlib.suppress(OSError):  # it has just ended
                found += map(int, children.read_text(encoding="ascii").split())


def resume(processes: Mapping[int, int]) -> None:
    """Continue processes that stand still; one that is no more, or another one by now, is left alone."""
    for pid, birth in processes.items():
        _signal(pid, birth, signal.SIGCONT)


class Still:
    """Makes processes stand still while it `hold`s. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._minded: Pids = {}
        self._holding = False
        self._helper: subprocess.Popen[str] | None = None

    def mind(self, processes: Mapping[int, int]) -> None:
        """Whom to stop: by number, with their births. Who is left out goes on."""
        with self._lock:
            if processes != self._minded:
                self._minded = dict(processes)
                if self._holding:
                    self._tell(self._minded)

    def hold(self, holding: bool) -> None:
        """Stop them all, or let them go on; returns when that is done."""
        with self._lock:
            if holding != self._holding:
                self._holding = holding
                self._tell(self._minded if holding else {})

    def close(self) -> None:
        """Let them go on, for good."""
        with self._lock:
            self._holding = False
            if self._helper is not None:
                helper, self._helper = self._helper, None
                with contextlib.suppress(OSError):
                    helper.stdin.close()  # type: ignore[union-attr]
                helper.wait()
            resume(self._minded)

    def _tell(self, processes: Pids) -> None:
        """Have the helper make these, and nobody else, stand still. One that was killed is replaced; where that fails, nobody
        stands still, and figures that are none are refused for their spread."""
        if not self._heard(processes):
            self._helper = None
            resume(self._minded)
            if processes and not self._heard(processes):
                self._helper = None
                resume(self._minded)

    def _heard(self, processes: Pids) -> bool:
        if self._helper is None:
            if not processes:
                return True
            # -I -S: nothing of the environment, nothing of site-packages
            self._helper = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            threading.Thread(target=self._outlive, args=(self._helper,), daemon=True).start()
        try:
            self._helper.stdin.write(f"{json.dumps(list(processes.items()))}\n")  # type: ignore[union-attr]
            self._helper.stdin.flush()  # type: ignore[union-attr]
            return bool(self._helper.stdout.readline())  # type: ignore[union-attr]
        except OSError:
            return False

    def _outlive(self, helper: subprocess.Popen[str]) -> None:
        """Do what a helper cannot that was killed: let those go on that it had stopped, or have another one stop them."""
        helper.wait()
        with self._lock:
            if self._helper is helper:
                self._tell(self._minded if self._holding else {})


def main() -> None:
    """Serve lines from stdin: each says who is to stand still from now on."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends with its parent
    stopped: Pids = {}
    try:
        for line in sys.stdin:
            wanted: Pids = dict(json.loads(line))
            resume({pid: birth for pid, birth in stopped.items() if pid not in wanted})
            stopped |= wanted  # before it is done: an error in the middle must not leave one behind
            for pid, birth in wanted.items():
                _signal(pid, birth, signal.SIGSTOP)
            stopped = wanted
            sys.stdout.write("\n")
            sys.stdout.flush()
    except (ValueError, OSError):
        pass  # its parent died while it wrote, or does not read any more
    finally:
        resume(stopped)


def _signal(pid: int, birth: int, number: int) -> None:
    if birth == born(pid):
        signal_all(pid, number)


if __name__ == "__main__":
    main()
