"""AMC's agent: stable-baselines3's DDPG with the paper's exploration, replay and schedules.

The differences from DDPG go through stable-baselines3's extension points: a policy class (truncated normal
exploration), a replay buffer class (returns, baseline, executed actions) and a callback (episodes). Two
methods without an extension point are overridden. ``docs/agent.md`` lists every deviation from the paper
and from the official code.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import DDPG
from stable_baselines3.common.logger import Logger

from agents.offpolicy.callbacks import EpisodeCallback
from agents.offpolicy.diagnostics import Diagnostics
from agents.offpolicy.imagination import Imagination, World
from agents.offpolicy.noise import sigma_at
from agents.offpolicy.policy import StepFeatures, TruncatedNormalPolicy
from agents.offpolicy.replay import EpisodeReplayBuffer
from agents.offpolicy.settings import DDPGSettings
from agents.offpolicy.vectorized import ThreadedVecEnv
from agents.protocol import Episode, OnEpisode, SearchEnded, SearchResult, batches

_MOST_REPEATED = 50
"""Repeated networks in a row that widen the exploration: by then it is 6e8 times as wide."""


class AMCDDPG(DDPG):
    """DDPG with a learning rate for the actor, and without uniform warm-up for a guided actor.

    Attributes:
        imagination: gives imagined episodes to learn from; None for none.
    """

    policy: TruncatedNormalPolicy
    imagination: Imagination | None = None

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """Take gradient steps on the replay buffer, with new imagined episodes if there are any."""
        if self.imagination is not None:
            assert isinstance(self.replay_buffer, EpisodeReplayBuffer)
            self.imagination.refill(self.replay_buffer, self.actor)
        super().train(gradient_steps, batch_size)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "imagination"]  # it knows the network

    def _update_learning_rate(self, optimizers: Any) -> None:
        super()._update_learning_rate(optimizers)  # sets the critic's rate for both
        for group in self.policy.actor_optimizer.param_groups:
            group["lr"] = self.policy.actor_lr

    def _sample_action(self, learning_starts: int, *args: Any, **kwargs: Any) -> Any:
        return super()._sample_action(0 if self.policy.guide else learning_starts, *args, **kwargs)


def build_ddpg(envs: Sequence[gym.Env], settings: DDPGSettings, seed: int, episode_length: int) -> AMCDDPG:
    """Assemble the agent; stable-baselines3 counts steps where AMC counts episodes.

    Warm-up lasts whole batches of ``len(envs)`` episodes: a batch whose first episode is one of
    ``warmup_episodes`` is warm-up to its end.

    Args:
        envs: one or more identical environments.
        episode_length: steps of every episode.
    """
    several = len(envs) > 1
    warmup_batches = len(list(batches(settings.warmup_episodes, len(envs))))
    model = AMCDDPG(
        TruncatedNormalPolicy,
        ThreadedVecEnv(envs) if several else envs[0],
        learning_rate=settings.critic_lr,
        buffer_size=settings.replay_size,
        learning_starts=warmup_batches * len(envs) * episode_length,
        batch_size=settings.batch_size,
        tau=settings.tau,
        gamma=settings.gamma,
        train_freq=(episode_length, "step") if several else (1, "episode"),
        gradient_steps=len(envs) * episode_length * settings.updates_per_step,
        replay_buffer_class=EpisodeReplayBuffer,
        replay_buffer_kwargs={
            "store_executed": settings.store_executed,
            "baseline_alpha": settings.baseline_alpha,
            "standardise": settings.standardise,
            "handle_timeout_termination": False,
        },
        policy_kwargs=_policy_options(settings, episode_length),
        seed=seed,
        device="cpu",
    )
    model.set_logger(
        Logger(folder=None, output_formats=[])
    )  # the default one makes a folder for every search
    return model


def _policy_options(settings: DDPGSettings, episode_length: int) -> dict[str, Any]:
    """Return the arguments of ``TruncatedNormalPolicy``.

    In a short episode ``explore_share`` of the steps is often zero steps, and the same network would be
    evaluated again: two steps are perturbed on average.
    """
    options: dict[str, Any] = {
        "net_arch": list(settings.hidden),
        "activation_fn": torch.nn.ReLU,
        "actor_lr": settings.actor_lr,
        "guide": settings.guide,
        "explore_share": max(settings.explore_share, min(1.0, 2 / episode_length)),
    }
    if settings.step_features:
        options["features_extractor_class"] = StepFeatures
        options["features_extractor_kwargs"] = {"steps": episode_length}
    return options


def ddpg_search(
    envs: Sequence[gym.Env],
    episodes: int,
    seed: int,
    on_episode: OnEpisode,
    *,
    settings: DDPGSettings,
    episode_length: int,
    world: World | None = None,
) -> SearchResult:
    """Search with DDPG; see ``agents.protocol.Agent``.

    Args:
        settings: the hyper-parameters.
        episode_length: steps of every episode.
        world: the known part of the environments, to imagine episodes in.
    """
    model = build_ddpg(envs, settings, seed, episode_length)
    if world is not None and settings.imagined:
        model.imagination = Imagination(world, settings, episode_length, seed)
    return explore(model, episodes, on_episode, settings, episode_length)


def explore(
    model: AMCDDPG, episodes: int, on_episode: OnEpisode, settings: DDPGSettings, episode_length: int
) -> SearchResult:
    """Let an agent of ``build_ddpg`` act and learn for ``episodes`` episodes, or until ``SearchEnded``."""
    policy, imagination = model.policy, model.imagination
    met: set[tuple[float, ...]] = set()
    repeated = 0

    def begin(first: int) -> None:
        sigma = sigma_at(first, settings.warmup_episodes, settings.sigma, settings.sigma_decay)
        policy.sigma = min(sigma * _widened(repeated), max(sigma, 1.0))
        policy.still = int(any(_acts_still(first + own, settings) for own in range(model.n_envs)))
        if imagination is not None and first:
            shifts = [imagination.shift(_widened(repeated)) for _ in range(model.n_envs)]
            policy.shift = torch.as_tensor(np.stack(shifts), dtype=torch.float32)
        if isinstance(model.env, ThreadedVecEnv):
            model.env.active = min(model.n_envs, episodes - first)

    def end(episode: Episode) -> None:
        nonlocal repeated
        on_episode(episode)
        repeated = repeated + 1 if settings.seek_new and episode.network in met else 0
        met.add(episode.network)
        if imagination is not None:
            imagination.learn(episode)
            policy.move_guide(imagination.expected, keep_learned=True)
        elif settings.follow_best and episode is callback.best:
            policy.move_guide(episode.executed)

    learning = Diagnostics(model.actor, model.critic)
    callback = EpisodeCallback(episodes, settings.warmup_episodes, end, begin, learning)
    steps = len(list(batches(episodes, model.n_envs))) * model.n_envs * episode_length
    with suppress(SearchEnded):
        model.learn(total_timesteps=steps, callback=callback, log_interval=episodes + 1)
    assert callback.best is not None
    return SearchResult("ddpg", callback.finished, callback.best, save=lambda path: model.save(path))


def _widened(repeated: int) -> float:
    """Return the factor of the exploration after so many repeated networks in a row."""
    return 1.5 ** min(repeated, _MOST_REPEATED)


def _acts_still(episode: int, settings: DDPGSettings) -> bool:
    """Whether an episode is to show the policy itself: the guide, and every ``still_every`` episodes.

    Of a batch with such an episode, the first one acts without noise.
    """
    if episode == 0:
        return bool(settings.guide)
    return settings.still_every > 0 and episode % settings.still_every == 0
