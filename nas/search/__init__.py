"""What to try next and what came out: samplers, rungs, the additive model, and the front with its hypervolume."""
