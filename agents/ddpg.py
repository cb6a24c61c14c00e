"""AMC's agent: stable-baselines3 DDPG with the paper's exploration, replay and schedules.

What differs from DDPG is put in through stable-baselines3's own extension points: a policy class (truncated
normal exploration), a replay-buffer class (returns, baseline, executed actions) and a callback (episodes).
``docs/agent.md`` lists every deviation from the paper and from the official code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import torch
from stable_baselines3 import DDPG
from stable_baselines3.td3.policies import TD3Policy
from torch import Tensor

from agents.callbacks import EpisodeCallback
from agents.noise import sigma_at, truncated_normal
from agents.protocol import OnEpisode, SearchResult
from agents.replay import EpisodeReplayBuffer


@dataclass(frozen=True)
class DDPGSettings:
    """Hyper-parameters of AMC (paper section 4 and the official code).

    Attributes:
        warmup_episodes: episodes of uniform actions before learning.
        hidden: widths of the hidden layers of actor and critic.
        actor_lr, critic_lr: Adam's learning rates.
        tau: rate of the target networks.
        gamma: discount.
        batch_size: transitions a gradient step.
        replay_size: transitions kept.
        sigma, sigma_decay: exploration in units of the action, and its factor per episode after warm-up.
        baseline_alpha: see ``EpisodeReplayBuffer``.
        store_executed: see ``EpisodeReplayBuffer``.
        updates_per_step: gradient steps per environment step, taken after the episode.
    """

    warmup_episodes: int = 100
    hidden: tuple[int, ...] = (300, 300)
    actor_lr: float = 1e-4
    critic_lr: float = 1e-3
    tau: float = 0.01
    gamma: float = 1.0
    batch_size: int = 64
    replay_size: int = 2000
    sigma: float = 0.5
    sigma_decay: float = 0.95
    baseline_alpha: float = 0.5
    store_executed: bool = True
    updates_per_step: int = 1

    def __post_init__(self) -> None:
        """Refuse values that no search can use.

        Raises:
            ValueError: names the setting, what it is and what is expected.
        """
        good = {
            "warmup_episodes": (self.warmup_episodes >= 0, "0 or more"),
            "hidden": (all(width >= 1 for width in self.hidden), "widths of at least 1"),
            "actor_lr": (self.actor_lr > 0, "a positive number"),
            "critic_lr": (self.critic_lr > 0, "a positive number"),
            "tau": (0 < self.tau <= 1, "a share in (0, 1]"),
            "gamma": (0 <= self.gamma <= 1, "0 to 1"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "replay_size": (self.replay_size >= 1, "at least 1"),
            "sigma": (self.sigma >= 0, "0 or more"),
            "sigma_decay": (0 < self.sigma_decay <= 1, "a factor in (0, 1]"),
            "baseline_alpha": (0 <= self.baseline_alpha <= 1, "0 to 1"),
            "updates_per_step": (self.updates_per_step >= 1, "at least 1"),
        }
        for name, (fine, expected) in good.items():
            if not fine:
                raise ValueError(f"agent.{name} is {getattr(self, name)}; expected {expected}")


class TruncatedNormalPolicy(TD3Policy):
    """Actor and critic of TD3 whose stochastic prediction is a truncated normal around the actor's action."""

    sigma: float = 0.0

    def _predict(self, observation: Any, deterministic: bool = False) -> Tensor:
        mean = self.actor(observation)
        # The network's actions lie in [-1, 1], twice as wide as the environment's [0, 1].
        return mean if deterministic else truncated_normal(mean, 2.0 * self.sigma, -1.0, 1.0)


class TwoRateDDPG(DDPG):
    """DDPG with a learning rate of its own for the actor; stable-baselines3 has one for both."""

    actor_lr: float = 1e-4
    updates_per_step: int = 1

    def _update_learning_rate(self, optimizers: Any) -> None:
        super()._update_learning_rate(optimizers)
        for group in self.actor.optimizer.param_groups:
            group["lr"] = self.actor_lr

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """Take ``updates_per_step`` gradient steps for each environment step of the episode."""
        super().train(gradient_steps * self.updates_per_step, batch_size)


def build_ddpg(env: gym.Env, settings: DDPGSettings, seed: int, episode_length: int) -> TwoRateDDPG:
    """Assemble the agent; ``episode_length`` turns warm-up episodes into stable-baselines3's steps."""
    model = TwoRateDDPG(
        TruncatedNormalPolicy,
        env,
        learning_rate=settings.critic_lr,
        buffer_size=settings.replay_size,
        learning_starts=settings.warmup_episodes * episode_length,
        batch_size=settings.batch_size,
        tau=settings.tau,
        gamma=settings.gamma,
        train_freq=(1, "episode"),
        gradient_steps=-1,
        replay_buffer_class=EpisodeReplayBuffer,
        replay_buffer_kwargs={
            "store_executed": settings.store_executed,
            "baseline_alpha": settings.baseline_alpha,
            "handle_timeout_termination": False,
        },
        policy_kwargs={"net_arch": list(settings.hidden), "activation_fn": torch.nn.ReLU},
        seed=seed,
        device="cpu",
    )
    model.actor_lr = settings.actor_lr
    model.updates_per_step = settings.updates_per_step
    return model


def ddpg_search(
    env: gym.Env,
    episodes: int,
    seed: int,
    on_episode: OnEpisode,
    *,
    settings: DDPGSettings,
    episode_length: int,
) -> SearchResult:
    """Search with DDPG; see ``agents.protocol.Agent``."""
    model = build_ddpg(env, settings, seed, episode_length)

    policy = model.policy
    assert isinstance(policy, TruncatedNormalPolicy)

    def set_sigma(episode: int) -> None:
        policy.sigma = sigma_at(episode, settings.warmup_episodes, settings.sigma, settings.sigma_decay)

    callback = EpisodeCallback(episodes, settings.warmup_episodes, on_episode, set_sigma)
    model.learn(total_timesteps=episodes * episode_length, callback=callback, log_interval=episodes + 1)
    assert callback.best is not None
    return SearchResult("ddpg", callback.finished, callback.best, save=lambda path: model.save(path))
