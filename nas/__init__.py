"""nas: neural architecture search over block placements in YOLO detectors.

run = nas.search(data="my.yaml", budget="2gpu-h", max_latency="2ms")
run.front, run.pick("knee"), run.export("best")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nas.api import Run, load, resume, search
    from nas.blocks.catalog import Knob
    from nas.blocks.user import block, load_blocks

__all__ = ["Knob", "Run", "block", "load", "load_blocks", "resume", "search"]

_HOMES = {"Knob": "nas.blocks.catalog", "block": "nas.blocks.user", "load_blocks": "nas.blocks.user"}


def __getattr__(name: str) -> Any:
    """Names of the API on first use, so that `import nas` and `nas --help` cost nothing."""
    if name in __all__:
        return getattr(import_module(_HOMES.get(name, "nas.api")), name)
    raise AttributeError(f"module 'nas' has no attribute '{name}'")
