"""Processes that stand still, and go on whatever is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from harness import alive, wait_until

from nas.execution.still import Still, born

HOLD = """
import sys
from nas.execution.still import Still, born
still = Still()
still.mind({pid: born(pid) for pid in map(int, sys.argv[1:])})
still.hold(True)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def two() -> Iterator[list[int]]:
    children = [subprocess.Popen(["sleep", "1000"]) for _ in range(2)]
    yield [child.pid for child in children]
    for child in children:
        child.kill()
        child.wait()


def stands(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def helpers_of(pid: int) -> list[int]:
    """Living ones: one that has ended has no command line."""
    return [each.pid for each in psutil.Process(pid).children() if any(word.endswith("still.py") for word in words_of(each))]


def words_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # it has just ended
        return []


def test_who_is_minded_stands_still_as_long_as_that_is_so(two: list[int]) -> None:
    one, other = two
    with closing(Still()) as still:
        still.mind({one: born(one), other: born(other) + 1})  # that one has ended, and its number means another one
        still.hold(True)
        wait_until(lambda: stands(one), "it stands still")
        assert not stands(other)
        still.mind({other: born(other)})
        wait_until(lambda: stands(other) and not stands(one), "the other one stands still")
        still.hold(False)
        wait_until(lambda: not stands(other), "all go on")
        still.hold(True)
        wait_until(lambda: stands(other), "it stands still")
        (helper,) = helpers_of(os.getpid())
        os.kill(helper, signal.SIGKILL)
        wait_until(lambda: not alive(helper) and helpers_of(os.getpid()) != [] and stands(other), "another helper stops it")
    wait_until(lambda: not stands(other), "all go on")


def test_who_stands_still_goes_on_when_its_holder_is_killed(two: list[int]) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, *map(str, two)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout and holder.stdout.readline() == "held\n"
    wait_until(lambda: all(map(stands, two)), "both stand still")
    (helper,) = helpers_of(holder.pid)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # as a whole group gets them
        os.kill(helper, number)
    assert all(map(stands, two)) and alive(helper)
    holder.kill()
    holder.wait()
    wait_until(lambda: not any(map(stands, two)) and not alive(helper), "both go on, and no helper is left")
