"""An Ultralytics model YAML, resolved: final channels and repeats in every row, and the slots that blocks may take.

No torch and no import of Ultralytics: its model YAMLs are data files, found beside its package. The scaling rules are
those of its `parse_model` (8.4), restated here so that a resolved YAML needs no `scales` (which Ultralytics would
pick by the *file name*). A test builds every stock skeleton both ways and compares all shapes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nas.blocks.catalog import ROWS
from nas.errors import InputError, did_you_mean
from nas.space.source import Document, Where, read_yaml, shipped

# Rows whose first argument is the number of output channels, scaled by the skeleton's width.
_WIDTH_SCALED = frozenset(
    "Conv ConvTranspose GhostConv Bottleneck GhostBottleneck SPP SPPF C2fPSA C2PSA DWConv Focus BottleneckCSP C1 C2 C2f "
    "C3k2 RepNCSPELAN4 ELAN1 ADown AConv SPPELAN C2fAttn C3 C3TR C3Ghost nn.ConvTranspose2d DWConvTranspose2d C3x RepC3 "
    "PSA SCDown C2fCIB A2C2f".split()
)
# Rows that hold a stage's block: a slot.
_STAGES = frozenset("BottleneckCSP C1 C2 C2f C3 C3Ghost C3k2 C3x RepC3 C2fCIB A2C2f ELAN1 RepNCSPELAN4".split())
# Rows that refuse to change the number of channels.
_EQUAL_CHANNELS = frozenset({"C2PSA", "C2fPSA", "PSA"})
_NOT_LEGACY = frozenset({"C3k2", "A2C2f", "C2fCIB"})
# The last row's module -> what the model is for. Other heads (RT-DETR, YOLO-World, YOLOE) need more than a model YAML.
TASKS: Mapping[str, str] = {
    "Detect": "detect",
    "v10Detect": "detect",
    "Segment": "segment",
    "Segment26": "segment",
    "Pose": "pose",
    "Pose26": "pose",
    "OBB": "obb",
    "OBB26": "obb",
    "Classify": "classify",
    "SemanticSegment": "semantic",
    "Depth": "depth",
}
SEARCHED = ("detect", "segment")
_SCALED_HEADS = frozenset({"Segment", "Segment26", "YOLOESegment", "YOLOESegment26"})
# `activation` of a model YAML is handed to eval() by Ultralytics: only these may stand there.
_ACTIVATIONS = re.compile(
    r"(torch\.)?nn\.(SiLU|ReLU|ReLU6|LeakyReLU|GELU|Hardswish|Mish|ELU|SELU|PReLU|Identity)\([\w=., -]*\)"
)


@dataclass(frozen=True)
class Row:
    """One layer: `source` is Ultralytics' "from" column; `c1` and `c2` its channels; `stride` of its output to the image."""

    source: int | tuple[int, ...]
    repeats: int
    module: str
    args: tuple[Any, ...]
    c1: int
    c2: int
    stride: int


@dataclass(frozen=True)
class Slot:
    """A row that holds a stage's block. `depth` is the skeleton's own number of blocks (1 where the row has none);
    `fixed` says that the layer behind it takes no other number of channels."""

    name: str
    layer: int
    row: Row
    fixed: bool = False

    @property
    def depth(self) -> int:
        return int(self.row.args[3]) if self.row.module == "RepNCSPELAN4" and len(self.row.args) > 3 else self.row.repeats


@dataclass(frozen=True)
class Skeleton:
    """A model YAML with every number resolved.

    `extras` are its other top-level keys (`nc`, `end2end`, `reg_max`, `kpt_shape`, …), `split` is the number of backbone
    rows, `legacy` is Ultralytics' switch for the older detection head, which depends on the stock rows alone.
    """

    name: str
    rows: tuple[Row, ...]
    split: int
    extras: Mapping[str, Any]
    legacy: bool
    slots: tuple[Slot, ...]

    @property
    def nc(self) -> int:
        return int(self.extras.get("nc", 80))

    @property
    def task(self) -> str | None:
        """What the model is for (`detect`, `segment`, …), as its last row says; None for a head of no known task."""
        return TASKS.get(self.rows[-1].module)

    def slot(self, name: str) -> Slot:
        return next(slot for slot in self.slots if slot.name == name)


def models_folder() -> Path:
    """Where Ultralytics keeps its model YAMLs. Raises InputError where it is not installed."""
    spec = find_spec("ultralytics")
    if spec is None or not spec.submodule_search_locations:
        raise InputError("ultralytics is not installed", "pip install ultralytics")
    return Path(spec.submodule_search_locations[0]) / "cfg" / "models"


def find_model(name: str, beside: Path | None = None) -> tuple[Path, str]:
    """The file of a model YAML and its scale letter ('' where it has none).

    `yolo11n.yaml` is, as in Ultralytics, scale n of `yolo11.yaml`. A path is relative to `beside`, else to the working
    folder; only a bare name may mean a model of Ultralytics or one that comes with nas. Raises InputError with the nearest
    name.
    """
    stem = _stem(name)
    found = re.search(r"yolo(e-)?[v]?\d+([nslmx])", stem)
    scale = found[2] if found else ""
    for folder in (*([beside] if beside else []), Path()):
        with suppress(OSError):  # a name too long for a file is no file
            if (path := folder / name).is_file():
                return path, scale
    if Path(name).name != name:
        raise InputError(f"no model YAML '{name}'", "correct the path; a name without a folder may be one of Ultralytics")
    stock = {path.stem: path for folder in (shipped("models"), models_folder()) for path in folder.rglob("*.yaml")}
    for candidate in (stem, re.sub(r"(\d+)([nslmx])(.+)?$", r"\1\3", stem)):
        if candidate in stock:
            return stock[candidate], scale if candidate != stem else ""
    names = {re.sub(r"^(yolov?\d+)", r"\1n", s) for s in stock if re.match(r"yolov?(5|8|11|12|26)\b", s)} | set(stock)
    raise InputError(f"no model YAML '{name}'", did_you_mean(stem, names))


def _stem(name: str) -> str:
    """The name of a model YAML's file without `.yaml`: `yolo11n-repvit-m0.9` keeps its dot."""
    return re.sub(r"\.ya?ml$", "", Path(name).name)


def shipped_model(argument: str) -> str:
    """An argument of Ultralytics' command line, with the path of a model that comes with nas in place of its bare name.

    `model=yolov9c-mqa.yaml` is one, unless there is such a file; anything else is returned as it is.
    """
    key, equals, name = argument.partition("=")
    if key != "model" or not equals or Path(name).name != name or Path(name).exists():
        return argument
    path = shipped("models") / name
    return f"model={path}" if path.is_file() else argument


@lru_cache(maxsize=32)
def read_skeleton(name: str, beside: Path | None = None) -> Skeleton:
    """Read, scale and resolve a model YAML. Raises InputError with file and line."""
    path, scale = find_model(name, beside)
    document = read_yaml(path)
    data = document.data
    for key in ("backbone", "head"):
        if not isinstance(data.get(key), list) or not data[key]:
            raise _fault(document, (key,), f"no '{key}' rows")
    if fault := activation_fault(data.get("activation")):
        raise _fault(document, ("activation",), fault, "for example nn.SiLU()")
    nc = data.get("nc", 80)
    if not isinstance(nc, int) or isinstance(nc, bool) or nc < 1:
        raise _fault(document, ("nc",), f"nc is {nc!r}, not a number of classes", "for example nc: 80")
    scales = data.get("scales") or {}
    try:
        if scales and scale not in scales:
            scale = next(iter(scales))
        own = (data.get("depth_multiple", 1.0), data.get("width_multiple", 1.0), math.inf)
        depth, width, max_channels = map(float, scales.get(scale, own))
    except (AttributeError, TypeError, ValueError):
        raise _fault(document, ("scales",), "scales are not letter: [depth, width, max_channels]") from None
    if not scales and "legacy" in data:
        scale = ""  # resolved by us: a letter in the file's name means nothing
    rows: list[Row] = []
    raw = [*data["backbone"], *data["head"]]
    for index, row in enumerate(raw):
        at = ("backbone", index) if index < len(data["backbone"]) else ("head", index - len(data["backbone"]))
        if not (isinstance(row, list) and len(row) == 4 and isinstance(row[2], str) and isinstance(row[3], list)):
            raise _fault(document, at, "row is not [from, repeats, module, args]")
        source, repeats, module, args = row
        try:
            repeats = max(round(repeats * depth), 1) if repeats > 1 else repeats
            rows.append(_resolve(rows, source, repeats, module, list(args), scale, width, max_channels))
        except (TypeError, ValueError, ArithmeticError, LookupError):
            raise _fault(document, at, f"row [{source}, {repeats}, {module}, {args}] cannot be built") from None
    extras = {k: v for k, v in data.items() if k not in {"backbone", "head", "scales", "depth_multiple", "width_multiple"}}
    split = len(data["backbone"])
    stem = _stem(name)
    full_name = stem if not scales or re.search(rf"\d{scale}", stem) else re.sub(r"^(yolov?\d+)", rf"\1{scale}", stem)
    legacy = not any(row.module in _NOT_LEGACY for row in rows)
    return Skeleton(full_name, tuple(rows), split, extras, bool(data.get("legacy", legacy)), _slots(rows, split))


def read_searchable(name: str, beside: Path | None = None) -> Skeleton:
    """As `read_skeleton`, and refuses, also with file and line, a model of a task that is not searched."""
    skeleton = read_skeleton(name, beside)
    if skeleton.task not in SEARCHED:
        document = read_yaml(find_model(name, beside)[0])
        what = f"the last row is {skeleton.rows[-1].module}, not a head of detection or segmentation"
        cure = "nas searches these two; models of other tasks build, train and export with: nas yolo"
        raise _fault(document, ("head", len(document.data["head"]) - 1), what, cure)
    return skeleton


def activation_fault(value: object) -> str | None:
    """Why a model YAML's `activation` must not reach Ultralytics' eval(), in words; None for a known one or none at all."""
    if value is None or (isinstance(value, str) and _ACTIVATIONS.fullmatch(value)):
        return None
    return f"activation '{value}' is not a known activation"


def _fault(document: Document, at: Where, what: str, cure: str = "compare it with an Ultralytics model YAML") -> InputError:
    return InputError(f"{document.path}:{document.line(*at)}: {what}", cure)


def scaled_channels(channels: float, width: float, max_channels: float) -> int:
    """Ultralytics' rule for a row's output channels: capped, scaled, up to a multiple of 8."""
    return int(math.ceil(min(channels, max_channels) * width / 8) * 8)


def _resolve(
    rows: list[Row],
    source: Any,
    repeats: int,
    module: str,
    args: list[Any],
    scale: str,
    width: float,
    max_channels: float,
) -> Row:
    sources = [source] if isinstance(source, int) else list(source)
    inputs = [rows[s] for s in sources if rows]
    c1 = inputs[0].c2 if inputs else 3
    c2 = c1
    if module in _WIDTH_SCALED or module in ROWS:
        args[0] = c2 = scaled_channels(args[0], width, max_channels)
        if module == "C3k2" and scale in {"m", "l", "x"}:
            args[1:2] = [True]
        if module == "A2C2f" and scale in {"l", "x"}:
            args += [True, 1.2]
    elif module in {"HGStem", "HGBlock", "ResNetLayer"}:
        c2 = args[1] if module != "ResNetLayer" or args[3] else args[1] * 4
    elif module == "Concat":
        c1 = c2 = sum(row.c2 for row in inputs)
    elif module in _SCALED_HEADS:
        args[2] = scaled_channels(args[2], width, max_channels)
    elif module == "CBFuse":
        c2 = inputs[-1].c2
    before = inputs[0].stride if inputs else 1
    stride = inputs[-1].stride if module == "CBFuse" else max(1, round(before * _stride(module, args)))
    return Row(source if isinstance(source, int) else tuple(sources), repeats, module, tuple(args), c1, c2, stride)


def own_channels(module: str) -> bool:
    """Whether a row has output channels of its own, whatever comes in; of others the inputs decide."""
    return module in _WIDTH_SCALED or module in ROWS or module in {"HGStem", "HGBlock", "ResNetLayer"}


def _stride(module: str, args: list[Any]) -> float:
    """The change of stride that a row makes."""
    if module in ROWS:
        return ROWS[module].stride
    if module in {"ADown", "AConv"}:
        return 2
    if module in {"Conv", "GhostConv", "DWConv", "Focus", "SCDown"}:
        return int(args[2]) if len(args) > 2 else 1
    if module == "nn.MaxPool2d":
        return int(args[1]) if len(args) > 1 else int(args[0])
    if module == "nn.Upsample":
        return 1 / float(args[1])
    if module in {"ConvTranspose", "nn.ConvTranspose2d"}:
        return 1 / (int(args[2]) if len(args) > 2 else 2)
    return {"HGStem": 4, "ResNetLayer": int(args[2]) if module == "ResNetLayer" and len(args) > 2 else 1}.get(module, 1)


def _slots(rows: list[Row], split: int) -> tuple[Slot, ...]:
    """Name every stage row: `backbone.P4`, `neck.topdown.P4`, `neck.bottomup.P5`; a second of one name gets `.2`.

    A neck row is top-down when the last change of resolution before it, within the neck, was an up-sampling.
    """
    slots: list[Slot] = []
    seen: dict[str, int] = {}
    way = "topdown"
    for layer, row in enumerate(rows):
        if layer >= split and not isinstance(row.source, tuple):
            before = rows[layer + row.source if row.source < 0 else row.source].stride
            way = way if row.stride == before else ("topdown" if row.stride < before else "bottomup")
        if row.module in _STAGES:
            level = f"P{row.stride.bit_length() - 1}"
            name = f"backbone.{level}" if layer < split else f"neck.{way}.{level}"
            seen[name] = seen.get(name, 0) + 1
            fixed = layer + 1 < len(rows) and rows[layer + 1].module in _EQUAL_CHANNELS
            slots.append(Slot(name if seen[name] == 1 else f"{name}.{seen[name]}", layer, row, fixed))
    return tuple(slots)


def is_model(name: str) -> bool:
    """Whether `name` is a model YAML (has a backbone), not a search space."""
    try:
        path, _ = find_model(name)
        return "backbone" in read_yaml(path).data
    except InputError:
        return False
