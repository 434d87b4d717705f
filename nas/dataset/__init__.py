"""Datasets: reading what Ultralytics reads (description.py, labels.py) and the built-in generated set (builtin.py)."""
