"""Run in a process of its own: imports the packages that are named and prints what came of each, one JSON line at a time.

An import may hang or end the process, so each is announced before it is tried.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import sys
from types import ModuleType
from typing import Any


def main(names: list[str]) -> None:
    """Try all of `names`, and torch's GPUs where it is one of them."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what packages print themselves goes elsewhere

    def say(**facts: Any) -> None:
        print(json.dumps(facts), file=out, flush=True)

    for name in names:
        say(package=name)
        try:
            importlib.import_module(name)
            say(package=name, version=importlib.metadata.version(name))
        except BaseException as error:  # a package may exit, or panic in Rust: this process is there to say so
            say(package=name, error=_words(error))
    if (torch := sys.modules.get("torch")) is not None:
        say(cuda=_cuda(torch))


def _cuda(torch: ModuleType) -> dict[str, Any]:
    """The GPUs that torch computes on, or why it computes on none."""
    try:
        torch.cuda.init()  # where there is none, it says why
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        for index in range(len(names)):
            if float((torch.ones(2, device=f"cuda:{index}") * 2).sum()) != 4:
                return {"error": f"GPU {index} computes wrongly"}
        return {"names": names}
    except Exception as error:
        return {"error": _words(error)}


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


if __name__ == "__main__":
    main(sys.argv[1:])
