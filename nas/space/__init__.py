"""The search space: a YAML read into choices per slot, and the architectures that can be drawn from it. No torch."""
