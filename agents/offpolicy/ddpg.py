"""AMC's agent: stable-baselines3 DDPG with the paper's exploration, replay and schedules.

What differs from DDPG is put in through stable-baselines3's own extension points: a policy class (truncated
normal exploration), a replay-buffer class (returns, baseline, executed actions) and a callback (episodes).
``docs/agent.md`` lists every deviation from the paper and from the official code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
from stable_baselines3 import DDPG

from agents.offpolicy.learner import EpisodicUpdates, OffPolicySettings, build, learn
from agents.offpolicy.noise import sigma_at
from agents.offpolicy.policy import TruncatedNormalPolicy
from agents.protocol import Episode, OnEpisode, SearchResult


@dataclass(frozen=True)
class DDPGSettings(OffPolicySettings):
    """Hyper-parameters of AMC (paper section 4 and the official code); more in ``OffPolicySettings``.

    With a ``guide`` the first episode carries it out, warm-up episodes explore around it instead of
    uniformly, and the actor learns what to add.

    Attributes:
        sigma, sigma_decay: exploration in units of the action, and its factor per episode after warm-up.
        explore_share: share of steps whose action is perturbed, two an episode at least on average; 1 for
            every step (AMC).
        follow_best: whether a guided actor starts anew, at the best episode so far, whenever there is one.
        seek_new: whether exploration widens, by half each time, while episodes end in networks that were met
            before, as they do where widths are coarse.
    """

    sigma: float = 0.5
    sigma_decay: float = 0.95
    explore_share: float = 1.0
    follow_best: bool = False
    seek_new: bool = False


class GuidedExploration(EpisodicUpdates):
    """A guided agent explores around its guide in the warm-up instead of uniformly."""

    def _sample_action(self, learning_starts: int, *args: Any, **kwargs: Any) -> Any:
        assert isinstance(self.policy, TruncatedNormalPolicy)
        return super()._sample_action(0 if self.policy.guide else learning_starts, *args, **kwargs)


class AMCDDPG(GuidedExploration, DDPG):
    """DDPG with AMC's updates and exploration."""


def policy_options(settings: DDPGSettings, episode_length: int) -> dict[str, Any]:
    """Return the arguments of ``TruncatedNormalPolicy``.

    Of a short episode so small a share of the steps would often be none: the same network again.
    """
    share = max(settings.explore_share, min(1.0, 2 / episode_length))
    return {"guide": settings.guide, "explore_share": share}


def build_ddpg(envs: Sequence[gym.Env], settings: DDPGSettings, seed: int, episode_length: int) -> AMCDDPG:
    """Assemble the agent; see ``agents.offpolicy.learner.build``."""
    options = policy_options(settings, episode_length)
    return build(AMCDDPG, TruncatedNormalPolicy, envs, settings, seed, episode_length, options)


def ddpg_search(
    envs: Sequence[gym.Env],
    episodes: int,
    seed: int,
    on_episode: OnEpisode,
    *,
    settings: DDPGSettings,
    episode_length: int,
) -> SearchResult:
    """Search with DDPG; see ``agents.protocol.Agent``."""
    model = build_ddpg(envs, settings, seed, episode_length)
    return explore(model, episodes, on_episode, "ddpg", settings, episode_length)


def explore(
    model: GuidedExploration,
    episodes: int,
    on_episode: OnEpisode,
    name: str,
    settings: DDPGSettings,
    episode_length: int,
) -> SearchResult:
    """Search with an algorithm whose policy is a ``TruncatedNormalPolicy``."""
    policy = model.policy
    assert isinstance(policy, TruncatedNormalPolicy)
    met: set[tuple[float, ...]] = set()
    repeated = 0

    def prepare(first: int) -> None:
        sigma = sigma_at(first, settings.warmup_episodes, settings.sigma, settings.sigma_decay)
        policy.sigma = min(sigma * 1.5**repeated, max(sigma, 1.0))
        policy.still = int(bool(settings.guide) and first == 0)  # the guide itself is worth an evaluation

    def after(episode: Episode, best: Episode | None) -> None:
        nonlocal repeated
        repeated = repeated + 1 if settings.seek_new and episode.executed in met else 0
        met.add(episode.executed)
        if settings.follow_best and episode is best:
            policy.move_guide(episode.executed)

    return learn(
        model,
        episodes,
        on_episode,
        name=name,
        settings=settings,
        episode_length=episode_length,
        prepare=prepare,
        after=after,
    )
