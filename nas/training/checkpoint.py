"""A training on disk: every tensor that it needs to go on as if it had never stopped, in one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from nas.errors import InputError
from nas.files import write_whole


class StateError(InputError):
    """A file is not the state of the training that was to go on from it."""


def write_state(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Replace `path` in one step by these tensors and facts (plain JSON data).

    Raises:
        OSError: no room, no right; the file from before stays.
    """
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, save(on_cpu, {"facts": json.dumps(facts)}))


def read_state(path: Path, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write_state` wrote, tensors on `device`. Raises StateError for a file that is none of ours."""
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            facts = json.loads(file.metadata()["facts"])
            return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118  (not a mapping)
    except (OSError, SafetensorError, ValueError, LookupError, TypeError) as error:
        problem = str(error).splitlines()[0]
        raise StateError(f"{path}: not the state of a training: {problem}", "remove it: the trial starts anew") from error
