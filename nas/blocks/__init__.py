"""The blocks that may replace a stage of a YOLO: a torch-free catalog and one torch file per paper."""
