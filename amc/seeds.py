"""Random generators from a seed and any number of further keys."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
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


def seed_all(seed: int) -> None:
    """Seed the global generators of torch, NumPy and Python, all of which networks and data may draw from."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextmanager
def draws_kept(devices: Sequence[torch.device] | None = ()) -> Iterator[None]:
    """Restore the random states of torch, NumPy and Python afterwards: a trial changes no training.

    Args:
        devices: GPUs whose states are restored, too; None for all.
    """
    before = host_draws()
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            restore_host_draws(before)


def host_draws() -> tuple[Any, Any]:
    """Return the states of the global generators of Python and NumPy."""
    return random.getstate(), np.random.get_state()


def restore_host_draws(states: tuple[Any, Any]) -> None:
    """Set the global generators of Python and NumPy to what ``host_draws`` has returned."""
    random.setstate(states[0])
    np.random.set_state(states[1])
