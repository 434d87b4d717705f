"""Every test session has settings and caches of its own and no network; this runs before anything imports Ultralytics."""

import os
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings

_HOME = tempfile.TemporaryDirectory(prefix="nas-tests-")  # removed when the session ends
for _name in ("YOLO_CONFIG_DIR", "NAS_CACHE", "MPLCONFIGDIR"):
    _folder = Path(_HOME.name, _name.lower())
    _folder.mkdir()
    os.environ[_name] = str(_folder)
os.environ |= {"YOLO_OFFLINE": "1", "YOLO_AUTOINSTALL": "False", "YOLO_VERBOSE": "False"}
# Test processes that run side by side share the cores; the workers that they start inherit it.
if _beside := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) - 1:
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // (_beside + 1)))
# The clock of a busy machine fails no test.
settings.register_profile("nas", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("nas")
