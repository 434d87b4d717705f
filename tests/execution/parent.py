"""A search process in small: two attempts that count and, if asked, a quiet one before which they stand still.

python parent.py FOLDER ATTEMPT...
"""

import json
import signal
import sys
from pathlib import Path

from harness import WORKER

from nas.execution.executor import Attempt
from nas.execution.local import LocalExecutor

signal.signal(signal.SIGINT, lambda *_: None)  # as the study does: it decides itself when to end
executor = LocalExecutor([WORKER, WORKER], WORKER, Path(sys.argv[1]))
for line in sys.argv[2:]:
    executor.start(Attempt(**json.loads(line)))
while True:
    executor.poll(0.1)
