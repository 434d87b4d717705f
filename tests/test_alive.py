"""Signs of life: what long work gives, and who waits for a lock that long work holds."""

from __future__ import annotations

import subprocess
import sys

from nas import alive

HOLD = """
import sys, time
from nas.alive import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_who_waits_for_a_lock_beats(tmp_path, monkeypatch):
    """Another process holds it, until it has been heard twice that this one waits."""
    monkeypatch.setattr(alive, "EVERY_SECONDS", 0.05)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "x")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    heard = []

    def hear() -> None:
        heard.append(1)
        if len(heard) == 2:
            holder.communicate()

    with alive.listening(hear), alive.locked(tmp_path / "x"):
        assert len(heard) >= 2 and holder.returncode == 0
