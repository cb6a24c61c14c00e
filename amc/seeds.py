"""Random generators from a seed and any number of further keys."""

from __future__ import annotations

import hashlib

import torch


def mix(*parts: int | str) -> int:
    """Hash numbers and names into one 63-bit seed.

    Neighbouring keys, such as (seed, epoch) and (seed + 1, epoch - 1), get unrelated streams.
    """
    hashed = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(hashed, "big") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """Return a CPU generator seeded with ``mix(*parts)``."""
    return torch.Generator().manual_seed(mix(*parts))
