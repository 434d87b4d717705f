"""How Ray is started and left."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow  # four clusters begin and end
def test_a_driver_of_its_own_and_one_inside_its_cluster(tmp_path: Path) -> None:
    """Silent, without statistics and dashboard, SIGTERM does what it did; who starts a cluster ends it, and nobody else."""
    script = Path(__file__).with_name("driver.py")
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    common = {"told": {"quiet": False}, "dashboard": "", "usage": "0", "term": True, "left": False}
    assert json.loads(done.stdout) == common | {
        "inside": common,
        "still mine": {"quiet": False},
        "doomed": "3 Ray actors in a row ended before they were ready: "
        "ModuleNotFoundError: No module named 'nas.execution'; 'nas' is not a package",
    }
