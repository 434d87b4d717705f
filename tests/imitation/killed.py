"""Imitation in a process that kills itself after so many epochs: `python -m tests.imitation.killed FOLDER EPOCHS`."""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

from nas.imitation import learn
from nas.imitation.learn import Lesson

from .test_course import LESSONS, THREE, take

left = int(sys.argv[2])


def report(lesson: Lesson) -> None:
    global left  # noqa: PLW0603
    left -= 1
    print(lesson.epoch, flush=True)
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)


learn.STATE_SECONDS = 0.0
take(Path(sys.argv[1]), THREE, replace(LESSONS, rounds=(3, 2)), report=report)
