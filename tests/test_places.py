"""Where people search: folders with spaces and umlauts, a home that cannot be written to, a machine without a network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
CLI = [sys.executable, "-c", "from nas.cli import main; main()"]
SEARCH = "search --budget 2trials --imgsz 64 --epochs 1 --confirm 0 --workers 1 --allow-noisy --device cpu".split()


def offline() -> list[str]:
    """What runs a command without a network."""
    command = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--net", "--map-root-user"]
    if shutil.which("unshare") is None or subprocess.run([*command, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no network namespaces here")
    return command


def test_without_a_network_or_a_home_in_a_folder_with_spaces_and_umlauts(tmp_path: Path) -> None:
    place = tmp_path / "eine größere Prüfung" / "x y"
    place.mkdir(parents=True)
    nowhere = {name: value for name, value in os.environ.items() if name not in {"NAS_CACHE", "XDG_CACHE_HOME"}}
    nowhere["HOME"] = os.devnull  # nothing can be made below it, by whomever
    told = subprocess.run([*offline(), *CLI, *SEARCH], cwd=place, env=nowhere, capture_output=True, text=True, check=False)
    assert told.returncode == 2
    assert "NAS_CACHE" in told.stderr and "Traceback" not in told.stderr
    somewhere = nowhere | {"NAS_CACHE": str(tmp_path / "käche mit platz")}
    del somewhere["YOLO_CONFIG_DIR"], somewhere["MPLCONFIGDIR"]
    told = subprocess.run([*offline(), *CLI, *SEARCH], cwd=place, env=somewhere, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    assert "Traceback" not in told.stderr
    assert (place / "results" / "search" / "winner.yaml").is_file()
