"""The policy of DDPG and TD3: a guided actor, and exploration by a truncated normal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.td3.policies import Actor, TD3Policy
from torch import Tensor

from agents.offpolicy.noise import truncated_normal


class StepFeatures(BaseFeaturesExtractor):
    """Features followed by which step it is, as one of ``steps``: neighbours must not have to be alike.

    The step is read off the observation's first feature, which rises evenly from 0 to 1 over an episode.
    """

    def __init__(self, observation_space: spaces.Box, steps: int) -> None:
        super().__init__(observation_space, int(observation_space.shape[0]) + steps)
        self._steps = steps

    def forward(self, observations: Tensor) -> Tensor:
        """Return (batch, features + steps)."""
        place = (observations[:, 0] * (self._steps - 1)).round().long()
        return torch.cat([observations, F.one_hot(place, self._steps).to(observations.dtype)], dim=1)


class GuidedActor(Actor):
    """An actor that starts at a given allocation: ``tanh(f(s) + atanh(guide_t))`` with ``f`` zero at first.

    The step is read off the observation's first feature, which rises evenly from 0 to 1 over an episode.
    """

    def start_from(self, actions: Tensor) -> None:
        """Make the actor give ``actions`` (steps,), in [0, 1]; what it had learned to add is forgotten."""
        self.register_buffer("offset", torch.atanh((2.0 * actions - 1.0).clamp(-0.995, 0.995)))
        last = self.mu[-2]
        assert isinstance(last, torch.nn.Linear)
        torch.nn.init.zeros_(last.weight)
        torch.nn.init.zeros_(last.bias)

    def forward(self, obs: Tensor) -> Tensor:
        """Return the action (batch, 1) in [-1, 1]."""
        features = self.extract_features(obs, self.features_extractor)
        offset = self.offset
        assert isinstance(offset, Tensor)
        step = (obs[:, 0] * (len(offset) - 1)).round().long()
        return torch.tanh(self.mu[:-1](features) + offset[step, None])


class TruncatedNormalPolicy(TD3Policy):
    """Actor and critic of TD3 whose stochastic prediction is a truncated normal around the actor's action.

    Attributes:
        sigma: its standard deviation, in units of the environment's action.
        still: how many of the environments, from the first, act without noise.
    """

    sigma: float = 0.0
    still: int = 0

    def __init__(
        self,
        *args: Any,
        guide: Sequence[float] = (),
        explore_share: float = 1.0,
        **kwargs: Any,
    ) -> None:
        self.guide = tuple(guide)
        self.explore_share = explore_share
        super().__init__(*args, **kwargs)

    def move_guide(self, actions: Sequence[float]) -> None:
        """Let the actor start from another allocation."""
        for actor in (self.actor, self.actor_target):
            if isinstance(actor, GuidedActor):
                actor.start_from(torch.tensor(actions, dtype=torch.float32))

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> Actor:
        """Build an actor, around the guide if there is one."""
        if not self.guide:
            return super().make_actor(features_extractor)
        options = self._update_features_extractor(self.actor_kwargs, features_extractor)
        actor = GuidedActor(**options).to(self.device)
        actor.start_from(torch.tensor(self.guide, dtype=torch.float32))
        return actor

    def _predict(self, observation: Any, deterministic: bool = False) -> Tensor:
        mean = self.actor(observation)
        if deterministic:
            return mean
        # The network's actions lie in [-1, 1], twice as wide as the environment's [0, 1].
        moved = truncated_normal(mean[self.still :], 2.0 * self.sigma, -1.0, 1.0)
        sample = torch.cat([mean[: self.still], moved])
        if self.explore_share == 1:
            return sample
        return torch.where(torch.rand_like(mean) < self.explore_share, sample, mean)
