"""The one name that checkpoints know of this package (the distribution is `yolo-placement-search`).

Where Ultralytics loads a checkpoint and a module is missing, it tells pip to install whatever is called like that module;
the package `nas` on the Python Package Index is somebody else's. No distribution can be called like this module: a name
that begins with an underscore is refused by every installer, so on a machine without us such a load installs nothing,
and its error names what to install.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from nas.yolo.stage import Stage


def restore(*parts: Any) -> Stage:
    """A stage of a checkpoint from what `Stage.__reduce__` wrote. Raises as `nas.yolo.stage.rebuilt` does."""
    from nas.yolo.stage import rebuilt  # noqa: PLC0415  (which imports this module)

    return rebuilt(*parts)


# With ULTRALYTICS_SAFE_LOAD=1 only known names may be called while a checkpoint is read: ours is this one.
torch.serialization.add_safe_globals([restore])
