"""SAC (Haarnoja et al., 2018, arXiv 1812.05905) on AMC's episodes: its own stochastic policy explores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
from stable_baselines3 import SAC

from agents.offpolicy.learner import EpisodicUpdates, OffPolicySettings, build, learn
from agents.protocol import OnEpisode, SearchResult


@dataclass(frozen=True)
class SACSettings(OffPolicySettings):
    """Hyper-parameters; more in ``OffPolicySettings``.

    A ``guide`` is carried out in the first episode and only there: it is learned from, but warm-up is uniform
    and the actor starts anywhere.

    Attributes:
        entropy_weight: weight of the policy's entropy beside the return at first; it is learned from there
            on, at ``critic_lr``. About the size of the differences between returns.
        target_entropy: entropy that the weight is steered to, in nats, of one action on [-1, 1]; a uniform
            one has 0.69.
    """

    entropy_weight: float = 0.01
    target_entropy: float = -1.0


class AMCSAC(EpisodicUpdates, SAC):
    """SAC with AMC's updates, whose first episode carries out a guide."""

    guide: tuple[float, ...] = ()

    def _sample_action(self, learning_starts: int, action_noise: Any = None, n_envs: int = 1) -> Any:
        action, stored = super()._sample_action(learning_starts, action_noise, n_envs)
        step = self.num_timesteps // n_envs
        if step < len(self.guide):
            action[0], stored[0] = self.guide[step], 2.0 * self.guide[step] - 1.0
        return action, stored


def build_sac(envs: Sequence[gym.Env], settings: SACSettings, seed: int, episode_length: int) -> AMCSAC:
    """Assemble the agent; see ``agents.offpolicy.learner.build``."""
    model = build(
        AMCSAC,
        "MlpPolicy",
        envs,
        settings,
        seed,
        episode_length,
        ent_coef=f"auto_{settings.entropy_weight}",
        target_entropy=settings.target_entropy,
    )
    model.guide = settings.guide
    return model


def sac_search(
    envs: Sequence[gym.Env],
    episodes: int,
    seed: int,
    on_episode: OnEpisode,
    *,
    settings: SACSettings,
    episode_length: int,
) -> SearchResult:
    """Search with SAC; see ``agents.protocol.Agent``."""
    model = build_sac(envs, settings, seed, episode_length)
    return learn(model, episodes, on_episode, name="sac", settings=settings, episode_length=episode_length)
