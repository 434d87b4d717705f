"""The one package that touches Ultralytics. Importing it makes model YAMLs with our block rows build everywhere:

import nas.yolo
from ultralytics import YOLO
YOLO("winner.yaml").train(data=…)
"""

import os

# While loading a checkpoint whose classes are missing, Ultralytics would pip-install a package of that module's name.
os.environ.setdefault("YOLO_AUTOINSTALL", "False")

import _yolo_placement_search  # noqa: F401  (checkpoints name it; restricted loading then knows it)
from nas.yolo.parser import register

register()
