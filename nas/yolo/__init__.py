"""The one package that touches Ultralytics. Importing it makes model YAMLs with our block rows build everywhere:

import nas.yolo
from ultralytics import YOLO
YOLO("winner.yaml").train(data=…)
"""

import os

# While loading a checkpoint whose classes are missing, Ultralytics would pip-install a package of that module's name.
os.environ.setdefault("YOLO_AUTOINSTALL", "False")

import torch

import _yolo_placement_search
from nas.yolo.parser import register

register()
# With ULTRALYTICS_SAFE_LOAD=1 only known names may be called while a checkpoint is read: ours is this one.
torch.serialization.add_safe_globals([(_yolo_placement_search.restore, "_yolo_placement_search.restore")])
