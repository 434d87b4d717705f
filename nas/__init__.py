"""nas: neural architecture search over block placements in YOLO detectors.

run = nas.search(data="my.yaml", budget="2gpu-h", max_latency="2ms")
run.front, run.pick("knee"), run.export("best")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nas.api import Run, load, resume, search

__all__ = ["Run", "load", "resume", "search"]


def __getattr__(name: str) -> Any:
    """Names of the API on first use, so that `import nas` and `nas --help` cost nothing."""
    if name in __all__:
        from nas import api  # noqa: PLC0415

        return getattr(api, name)
    raise AttributeError(f"module 'nas' has no attribute '{name}'")
