#!/usr/bin/env python
"""Writes `models/`: the recipes that people build by hand today, each as one resolved Ultralytics model YAML.

    scripts/make_models.py            write them
    scripts/make_models.py --check    say which file differs from what would be written, exit 1 if any does

Two kinds: a block in the backbone's stages of a skeleton, placed as a search would place it; and a paper's whole backbone
(channels and depths of its sizes) under a YOLO's own neck and head.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from nas.export import model_text
from nas.space.architecture import Architecture, model_yaml, place
from nas.space.skeleton import Skeleton, read_skeleton

Model = dict[str, Any]
BACKBONE = ("backbone.P2", "backbone.P3", "backbone.P4", "backbone.P5")

# size: (channels, depths) of the four stages
REPVIT = {
    "m0.9": ((48, 96, 192, 384), (2, 2, 14, 2)),
    "m1.0": ((56, 112, 224, 448), (2, 2, 14, 2)),
    "m1.1": ((64, 128, 256, 512), (2, 2, 12, 2)),
    "m1.5": ((64, 128, 256, 512), (4, 4, 24, 4)),
    "m2.3": ((80, 160, 320, 640), (6, 6, 34, 2)),
}
# size: (channels of the stem and the four stages, their depths, channels of an attention head)
EFFICIENTVIT = {
    "b0": ((8, 16, 32, 64, 128), (1, 2, 2, 2, 2), 16),
    "b1": ((16, 32, 64, 128, 256), (1, 2, 3, 3, 4), 16),
    "b2": ((24, 48, 96, 192, 384), (1, 3, 4, 4, 6), 32),
    "b3": ((32, 64, 128, 256, 512), (1, 4, 6, 6, 9), 32),
}


def placed(name: str, block: str, slots: tuple[str, ...], **knobs: Any) -> Model:
    """`block` in these slots of a skeleton; a knob is one value, or one per slot."""
    skeleton = read_skeleton(f"{name}.yaml")
    placements = []
    for index, slot_name in enumerate(slots):
        slot = skeleton.slot(slot_name)
        chosen = {k: v[index] if isinstance(v, tuple) else v for k, v in knobs.items()}
        heads = chosen.pop("heads", None)
        placements.append(place(slot, block, 1.0, None, heads(slot.row.c2) if callable(heads) else heads, chosen))
    return model_yaml(skeleton, Architecture(skeleton.name, tuple(p for p in placements if p)))


def with_backbone(name: str, rows: list[list[Any]], levels: dict[int, int]) -> Model:
    """A skeleton with other backbone rows. `levels`: stride -> the row among them whose output the neck reads.

    Behind them stand the skeleton's own last rows (SPPF and what follows), so the head keeps what it was made for.
    """
    skeleton = read_skeleton(f"{name}.yaml")
    model = model_yaml(skeleton, Architecture(skeleton.name))
    last = max(slot.layer for slot in skeleton.slots if slot.layer < skeleton.split)
    backbone = [*rows, *model["backbone"][last + 1 :]]
    moved = {skeleton.split - 1: len(backbone) - 1}
    moved |= {layer: levels[skeleton.rows[layer].stride] for layer in _stages(skeleton) if layer <= last}
    moved |= {skeleton.split + i: len(backbone) + i for i in range(len(model["head"]))}
    for row in model["head"]:
        row[0] = _moved(row[0], moved)
    return {**model, "backbone": backbone}


def _stages(skeleton: Skeleton) -> list[int]:
    return [slot.layer for slot in skeleton.slots if slot.layer < skeleton.split]


def _moved(source: int | list[int], moved: dict[int, int]) -> int | list[int]:
    if isinstance(source, list):
        return [moved[s] if s >= 0 else s for s in source]
    return moved[source] if source >= 0 else source


def repvit(size: str) -> list[list[Any]]:
    (first, *others), depths = REPVIT[size]
    rows = [[-1, 1, "RepViTStem", [first]], [-1, depths[0], "RepViT", [first]]]
    for channels, depth in zip(others, depths[1:], strict=True):
        rows += [[-1, 1, "RepViTDown", [channels]], [-1, depth, "RepViT", [channels]]]
    return rows


def efficientvit(size: str) -> list[list[Any]]:
    widths, depths, head = EFFICIENTVIT[size]
    rows: list[list[Any]] = [[-1, depths[0], "EfficientViTStem", [widths[0]]]]
    rows += [[-1, depths[i], "EfficientViTConv", [widths[i]]] for i in (1, 2)]
    for i in (3, 4):
        rows += [[-1, 1, "EfficientViTDown", [widths[i]]]]
        rows += [[-1, depths[i], "EfficientViT", [widths[i], {"heads": widths[i] // head}]]]
    return rows


def recipes() -> dict[str, tuple[str, Model]]:
    """File name -> (what it is, the model)."""
    found = {
        "yolov9c-riformer": ("RIFormer in the backbone of YOLOv9c", placed("yolov9c", "riformer", BACKBONE)),
        "yolov5n-efficientvit": (
            "EfficientViT (MIT) as backbone stages 3 and 4 of YOLOv5n (P4 and P5)",
            placed("yolov5n", "efficientvit", BACKBONE[2:]),
        ),
        "yolo11n-repvit": ("RepViT in the backbone of YOLO11n", placed("yolo11n", "repvit", BACKBONE)),
        "yolov10n-irmb": (
            "iRMB, 8 channels a head as the recipe has it, in the backbone of YOLOv10n",
            placed("yolov10n", "irmb", BACKBONE, heads=lambda channels: channels // 8),
        ),
        "yolov9c-mqa": (
            "Mobile MQA inside the four backbone ELAN layers of YOLOv9c, with correct mathematics",
            placed("yolov9c", "mqa_elan", BACKBONE, ratio=(0.5, 0.5, 1.0, 1.0)),
        ),
    }
    for size in REPVIT:
        what = f"YOLO11n with RepViT-{size.upper()} as its whole backbone"
        found[f"yolo11n-repvit-{size}"] = (what, with_backbone("yolo11n", repvit(size), {4: 1, 8: 3, 16: 5, 32: 7}))
    for size in EFFICIENTVIT:
        what = f"YOLOv5n with EfficientViT-{size.upper()} (MIT) as its whole backbone"
        found[f"yolov5n-efficientvit-{size}"] = (
            what,
            with_backbone("yolov5n", efficientvit(size), {4: 1, 8: 2, 16: 4, 32: 6}),
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing")
    options = parser.parse_args()
    folder = Path(__file__).parent.parent / "models"
    differing = []
    for name, (what, model) in recipes().items():
        head = [f"{what}. Written by scripts/make_models.py.", f"nas yolo train model={name}.yaml data=… epochs=…"]
        text, path = model_text(model, head), folder / f"{name}.yaml"
        if options.check:
            differing += [path.name] if not path.is_file() or path.read_text(encoding="utf-8") != text else []
        else:
            path.write_text(text, encoding="utf-8")
    if differing:
        sys.exit(f"differ from what scripts/make_models.py writes: {', '.join(differing)}")


if __name__ == "__main__":
    main()
