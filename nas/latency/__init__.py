"""Latency of an architecture on a target: the target's name, the runtimes, the measuring and its cache."""
