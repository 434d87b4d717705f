from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Ticker

from nas.execution.executor import Attempt


@pytest.fixture
def ticker(tmp_path: Path) -> Callable[..., Ticker]:
    """Makes an attempt by its key: `tick`, or `quiet` for the lane."""

    def make(key: str, function: str = "tick", **payload: object) -> Ticker:
        folder = tmp_path / key
        folder.mkdir()
        payload["folder"] = str(folder)
        return Ticker(folder, Attempt(key, f"attempts:{function}", payload, quiet=function == "quiet"))

    return make
