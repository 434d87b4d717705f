"""The run folder and what lies in it: run.yaml, manifest, lock, and the store of trials."""
