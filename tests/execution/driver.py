"""A search process in small on Ray; prints what it saw as one line of JSON. Inside a cluster it takes that one.

python driver.py FOLDER
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
from harness import WORKER, alive, end_of, wait_until

from nas.errors import UnreachableError
from nas.execution.executor import Attempt
from nas.execution.ray.executor import RayExecutor, ray


def doomed(folder: Path) -> str | None:
    """What an executor says whose actors cannot begin."""
    (folder / "sitecustomize.py").write_text("import sys; sys.modules['nas'] = None")
    try:
        RayExecutor({"PYTHONPATH": str(folder)}, WORKER, folder, workers=1, cores=0).close()
    except UnreachableError as error:
        return error.message
    return None


folder = Path(sys.argv[1])
signal.signal(signal.SIGTERM, signal.default_int_handler)
executor = RayExecutor(WORKER, WORKER, folder, workers=1, cores=0, address=os.environ.get("RAY_ADDRESS"))
seen = {
    "term": signal.getsignal(signal.SIGTERM) == signal.default_int_handler,
    "told": end_of(executor, Attempt("a", "attempts:shout")).data,
    "dashboard": ray.init(ignore_reinit_error=True, logging_level="ERROR").dashboard_url,
    "usage": os.environ["RAY_USAGE_STATS_ENABLED"],
}
if "RAY_ADDRESS" not in os.environ:
    seen["doomed"] = doomed(folder)
    inside = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    done = subprocess.run([sys.executable, __file__, sys.argv[1]], env=inside, capture_output=True, text=True, check=True)
    seen["inside"] = json.loads(done.stdout)
    seen["still mine"] = end_of(executor, Attempt("b", "attempts:shout")).data
children = psutil.Process().children(recursive=True)
executor.close()
wait_until(lambda: not any(alive(child.pid) for child in children), "everything ends")
seen["left"] = ray.is_initialized()
print(json.dumps(seen))
