import os
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Ticker

from nas.execution.executor import Attempt

# Clusters of tests listen on all interfaces, as Ray has it. Ray reads this once in a process, and hands it on.
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "5" * 32}
# How long a head waits for the process that serves a client: 30 s are too few for a busy machine.
os.environ["RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S"] = "120"


@pytest.fixture
def ticker(tmp_path: Path) -> Callable[..., Ticker]:
    """Makes an attempt by its key: `tick`, or `quiet` for the lane."""

    def make(key: str, function: str = "tick", **payload: object) -> Ticker:
        folder = tmp_path / key
        folder.mkdir()
        payload["folder"] = str(folder)
        return Ticker(folder, Attempt(key, f"attempts:{function}", payload, quiet=function == "quiet"))

    return make
