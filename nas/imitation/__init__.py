"""Imitation: blocks that learn from the trained skeleton, and architectures put together from them without training."""
