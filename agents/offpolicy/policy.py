"""The policy of DDPG: a guided actor, and exploration by a truncated normal."""

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


def step_of(observations: Tensor, steps: int) -> Tensor:
    """Return the index (batch,) of each observation's step, out of ``steps``.

    It is read from the first feature, which rises evenly from 0 to 1 over an episode.
    """
    return (observations[:, 0] * (steps - 1)).round().long()


class StepFeatures(BaseFeaturesExtractor):
    """The observation and the step, one-hot, so that the actor can give adjacent steps different actions.

    Args:
        observation_space: a box of shape (features,).
        steps: steps of every episode.
    """

    def __init__(self, observation_space: spaces.Box, steps: int) -> None:
        super().__init__(observation_space, int(observation_space.shape[0]) + steps)
        self._steps = steps

    def forward(self, observations: Tensor) -> Tensor:
        """Return (batch, features + steps) from observations (batch, features)."""
        step = F.one_hot(step_of(observations, self._steps), self._steps)
        return torch.cat([observations, step.to(observations.dtype)], dim=1)


class GuidedActor(Actor):
    """An actor that starts at a given allocation: ``tanh(f(s) + atanh(guide_t))`` with ``f`` zero at first.

    Args:
        guide: the initial allocation, one action in [0, 1] a step.
    """

    offset: Tensor

    def __init__(self, *args: Any, guide: Sequence[float], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("offset", torch.zeros(len(guide)))
        self.start_from(guide)

    def lean_on(self, actions: Sequence[float]) -> None:
        """Let ``f`` be an offset to other actions, one in [0, 1] a step."""
        centred = 2.0 * torch.tensor(actions, dtype=torch.float32) - 1.0
        self.offset = torch.atanh(centred.clamp(-0.995, 0.995))

    def start_from(self, actions: Sequence[float]) -> None:
        """Make the actor return ``actions``, one in [0, 1] a step, and reset ``f`` to zero."""
        self.lean_on(actions)
        last = self.mu[-2]
        assert isinstance(last, torch.nn.Linear)
        torch.nn.init.zeros_(last.weight)
        torch.nn.init.zeros_(last.bias)

    def forward(self, obs: Tensor) -> Tensor:
        """Return the actions (batch, 1) in [-1, 1] of observations (batch, features)."""
        features = self.extract_features(obs, self.features_extractor)
        step = step_of(obs, len(self.offset))
        return torch.tanh(self.mu[:-1](features) + self.offset[step, None])


class TruncatedNormalPolicy(TD3Policy):
    """Actor and critic whose stochastic prediction is a truncated normal around the actor's action.

    Args:
        actor_lr: the actor's learning rate.
        guide: the initial allocation, one action in [0, 1] a step; empty for none.
        explore_share: probability that the action of a step is perturbed.

    Attributes:
        sigma: standard deviation of the noise, in units of the environment's action.
        still: the first ``still`` environments act without noise.
        shift: (envs, steps) added to the actor's actions in [-1, 1] in place of noise, if given.
    """

    sigma: float = 0.0
    still: int = 0
    shift: Tensor | None = None

    def __init__(
        self,
        *args: Any,
        actor_lr: float,
        guide: Sequence[float] = (),
        explore_share: float = 1.0,
        **kwargs: Any,
    ) -> None:
        self.actor_lr = actor_lr
        self.guide = tuple(guide)
        self.explore_share = explore_share
        super().__init__(*args, **kwargs)

    @property
    def actor_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer of the actor."""
        optimizer = self.actor.optimizer
        assert isinstance(optimizer, torch.optim.Optimizer)
        return optimizer

    def move_guide(self, actions: Sequence[float], *, keep_learned: bool = False) -> None:
        """Let a guided actor start from another allocation, one action in [0, 1] a step.

        Args:
            keep_learned: whether the actor's offset to its guide stays; otherwise it is reset to zero.
        """
        for actor in (self.actor, self.actor_target):
            if isinstance(actor, GuidedActor):
                (actor.lean_on if keep_learned else actor.start_from)(actions)

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> Actor:
        """Build an actor, around the guide if there is one."""
        if not self.guide:
            return super().make_actor(features_extractor)
        options = self._update_features_extractor(self.actor_kwargs, features_extractor)
        return GuidedActor(guide=self.guide, **options).to(self.device)

    def _predict(self, observation: Any, deterministic: bool = False) -> Tensor:
        mean = self.actor(observation)
        if deterministic:
            return mean
        if self.shift is not None:
            step = int(step_of(observation[:1], self.shift.shape[1]))
            moved = (mean + self.shift[:, step, None]).clamp(-1.0, 1.0)
            return torch.cat([mean[: self.still], moved[self.still :]])
        # The network's actions lie in [-1, 1], twice as wide as the agent's [0, 1].
        moved = truncated_normal(mean[self.still :], 2.0 * self.sigma, -1.0, 1.0)
        sample = torch.cat([mean[: self.still], moved])
        if self.explore_share == 1:
            return sample
        return torch.where(torch.rand_like(mean) < self.explore_share, sample, mean)
