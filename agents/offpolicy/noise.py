"""AMC's exploration: a normal around the actor's action, truncated to the action range."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def truncated_normal(mean: Tensor, sigma: float, low: float, high: float) -> Tensor:
    """Sample ``N(mean, sigma^2)`` conditioned on [low, high], elementwise.

    AMC section 3.2, eq. 2: ``mu'(s) ~ TN(mu(s), sigma^2, 0, 1)``. With ``sigma`` 0 the clipped mean is
    returned.

    Args:
        mean: any shape, in the unit of the bounds.
        sigma: standard deviation before truncation, in the same unit.

    Returns:
        One sample per element of ``mean``, of its shape and type.
    """
    if sigma <= 0:
        return mean.clamp(low, high)
    root2 = math.sqrt(2.0)
    mean64 = mean.double()
    below = 0.5 * (1 + torch.erf((low - mean64) / (sigma * root2)))
    above = 0.5 * (1 + torch.erf((high - mean64) / (sigma * root2)))
    uniform = below + (above - below) * torch.rand_like(mean64)
    sample = mean64 + sigma * root2 * torch.erfinv((2 * uniform - 1).clamp(-1 + 1e-12, 1 - 1e-12))
    return sample.clamp(low, high).to(mean.dtype)


def sigma_at(episode: int, warmup_episodes: int, initial: float, decay: float) -> float:
    """Return the sigma of an episode: ``initial`` in warm-up, then ``initial * decay^(episodes since)``."""
    return initial * decay ** max(0, episode - warmup_episodes)
