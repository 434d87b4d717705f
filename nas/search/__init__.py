"""What to try next and what came out: the sampler, and the front with its hypervolume."""
