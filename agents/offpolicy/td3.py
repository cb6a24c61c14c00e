"""TD3 (Fujimoto et al., ICML 2018) in the place of DDPG.

What it shares with AMC's agent is in ``agents.offpolicy.ddpg``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import gymnasium as gym
from stable_baselines3 import TD3

from agents.offpolicy.ddpg import DDPGSettings, GuidedExploration, explore, policy_options
from agents.offpolicy.learner import build
from agents.offpolicy.policy import TruncatedNormalPolicy
from agents.protocol import OnEpisode, SearchResult


@dataclass(frozen=True)
class TD3Settings(DDPGSettings):
    """Hyper-parameters: those of DDPG and what TD3 adds to its update, with its authors' values.

    Attributes:
        policy_delay: updates of the critics for one of the actor and the target networks.
        target_sigma, target_clip: noise on the target network's action and its largest size, in units of the
            action.
    """

    policy_delay: int = 2
    target_sigma: float = 0.1
    target_clip: float = 0.25


class AMCTD3(GuidedExploration, TD3):
    """TD3 with AMC's updates and exploration."""


def build_td3(envs: Sequence[gym.Env], settings: TD3Settings, seed: int, episode_length: int) -> AMCTD3:
    """Assemble the agent; see ``agents.offpolicy.learner.build``."""
    return build(
        AMCTD3,
        TruncatedNormalPolicy,
        envs,
        settings,
        seed,
        episode_length,
        policy_options(settings, episode_length),
        policy_delay=settings.policy_delay,
        # The network's actions lie in [-1, 1], twice as wide as the environment's [0, 1].
        target_policy_noise=2.0 * settings.target_sigma,
        target_noise_clip=2.0 * settings.target_clip,
    )


def td3_search(
    envs: Sequence[gym.Env],
    episodes: int,
    seed: int,
    on_episode: OnEpisode,
    *,
    settings: TD3Settings,
    episode_length: int,
) -> SearchResult:
    """Search with TD3; see ``agents.protocol.Agent``."""
    model = build_td3(envs, settings, seed, episode_length)
    return explore(model, episodes, on_episode, "td3", settings, episode_length)
