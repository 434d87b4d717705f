"""Every random draw comes from (seed, trial): one function turns them into the seed of one purpose."""

from __future__ import annotations

import hashlib


def derive(seed: int, trial: int, purpose: str) -> int:
    """A seed in [0, 2**31): equal for equal arguments on every machine, unrelated for different ones."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{trial}/{purpose}".encode()).digest()[:4], "big") >> 1
