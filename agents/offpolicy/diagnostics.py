"""How far an off-policy agent has learned, episode by episode.

- ``policy_return``: return of the last episode without noise, so of the policy itself.
- ``critic_rank``: Spearman's rank correlation between what the critic expected of the last ``RECENT``
  episodes, each before it was learned from, and their returns. Late episodes are near the best one, so this
  says whether the critic tells close allocations apart.
- ``explored``: share of the episode's steps whose action differs from the policy's.

A value is None until it is known.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from agents.protocol import Episode

RECENT = 20
FEWEST = 5
"""Episodes from which on a rank correlation is given."""
MOVED = 1e-3
"""Difference from the policy's action in [-1, 1] from which on a step has explored."""


class Diagnostics:
    """Follows one search.

    Args:
        actor: observations (steps, features) -> actions (steps, 1) in [-1, 1].
        critic: observations and actions -> values (steps, 1).
    """

    def __init__(
        self, actor: Callable[[Tensor], Tensor], critic: Callable[[Tensor, Tensor], tuple[Tensor, ...]]
    ) -> None:
        self._actor, self._critic = actor, critic
        self._recent: deque[tuple[float, float]] = deque(maxlen=RECENT)
        self._policy_return: float | None = None

    @torch.no_grad()
    def __call__(self, episode: Episode, observations: np.ndarray) -> Mapping[str, float | None]:
        """Return the values after an episode; agents call it before they learn from the episode.

        Args:
            episode: as it ended.
            observations: of every step, (steps, features).
        """
        seen = torch.as_tensor(observations)
        requested, executed = (2.0 * torch.tensor(own) - 1.0 for own in (episode.requested, episode.executed))
        moved = (self._actor(seen)[:, 0] - requested).abs() > MOVED
        values = torch.stack([own.mean() for own in self._critic(seen, executed[:, None])])
        self._recent.append((float(values.mean()), episode.value))
        if not moved.any():
            self._policy_return = episode.value
        return {
            "policy_return": self._policy_return,
            "critic_rank": self._rank(),
            "explored": float(moved.float().mean()),
        }

    def _rank(self) -> float | None:
        from scipy.stats import spearmanr

        expected, found = (np.array(own) for own in zip(*self._recent, strict=True))
        if len(expected) < FEWEST or min(len(set(expected)), len(set(found))) < 2:
            return None  # no ranks
        return float(spearmanr(expected, found).statistic)
