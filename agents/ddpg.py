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
import torch
from stable_baselines3 import DDPG
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.td3.policies import Actor, TD3Policy
from torch import Tensor

from agents.callbacks import EpisodeCallback
from agents.noise import sigma_at, truncated_normal
from agents.protocol import Episode, OnEpisode, SearchResult
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
        guide: an allocation to start from, one action a step; empty for none (AMC). The first episode carries
            it out, warm-up episodes explore around it instead of uniformly, and the actor learns what to add.
        explore_share: share of steps whose action is perturbed; 1 for every step (AMC).
        follow_best: whether a guided actor's allocation moves to the best episode so far.
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
    guide: tuple[float, ...] = ()
    explore_share: float = 1.0
    follow_best: bool = False

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
            "explore_share": (0 < self.explore_share <= 1, "a share in (0, 1]"),
            "updates_per_step": (self.updates_per_step >= 1, "at least 1"),
        }
        for name, (fine, expected) in good.items():
            if not fine:
                raise ValueError(f"agent.{name} is {getattr(self, name)}; expected {expected}")


class GuidedActor(Actor):
    """An actor that starts at a given allocation: ``tanh(f(s) + atanh(guide_t))`` with ``f`` zero at first.

    The step is read off the observation's first feature, which rises evenly from 0 to 1 over an episode.
    """

    def start_from(self, actions: Tensor) -> None:
        """Make the untrained actor give ``actions`` (steps,), in [0, 1]."""
        self.register_buffer("offset", torch.empty(0))
        self.move(actions)
        last = self.mu[-2]
        assert isinstance(last, torch.nn.Linear)
        torch.nn.init.zeros_(last.weight)
        torch.nn.init.zeros_(last.bias)

    def move(self, actions: Tensor) -> None:
        """Put the allocation that the network adds to at ``actions`` (steps,), in [0, 1]."""
        self.offset = torch.atanh((2.0 * actions - 1.0).clamp(-0.995, 0.995))

    def forward(self, obs: Tensor) -> Tensor:
        """Return the action (batch, 1) in [-1, 1]."""
        offset = self.offset
        assert isinstance(offset, Tensor)
        step = (obs[:, 0] * (len(offset) - 1)).round().long()
        features = self.extract_features(obs, self.features_extractor)
        return torch.tanh(self.mu[:-1](features) + offset[step, None])


class TruncatedNormalPolicy(TD3Policy):
    """Actor and critic of TD3 whose stochastic prediction is a truncated normal around the actor's action."""

    sigma: float = 0.0

    def __init__(
        self, *args: Any, guide: Sequence[float] = (), explore_share: float = 1.0, **kwargs: Any
    ) -> None:
        self.guide = tuple(guide)
        self.explore_share = explore_share
        super().__init__(*args, **kwargs)

    def move_guide(self, actions: Sequence[float]) -> None:
        """Let the actor start from another allocation; what it has learned to add stays."""
        for actor in (self.actor, self.actor_target):
            if isinstance(actor, GuidedActor):
                actor.move(torch.tensor(actions, dtype=torch.float32))

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
        # The network's actions lie in [-1, 1], twice as wide as the environment's [0, 1].
        if deterministic:
            return mean
        sample = truncated_normal(mean, 2.0 * self.sigma, -1.0, 1.0)
        if self.explore_share == 1:
            return sample
        return torch.where(torch.rand_like(mean) < self.explore_share, sample, mean)


class AMCDDPG(DDPG):
    """DDPG with what stable-baselines3 has no extension point for.

    The actor has a learning rate of its own, an episode may be followed by several updates a step, and a
    guided agent explores around its guide in the warm-up instead of uniformly.
    """

    actor_lr: float = 1e-4
    updates_per_step: int = 1
    guided: bool = False

    def _update_learning_rate(self, optimizers: Any) -> None:
        super()._update_learning_rate(optimizers)
        for group in self.actor.optimizer.param_groups:
            group["lr"] = self.actor_lr

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """Take ``updates_per_step`` gradient steps for each environment step of the episode."""
        super().train(gradient_steps * self.updates_per_step, batch_size)

    def _sample_action(self, learning_starts: int, *args: Any, **kwargs: Any) -> Any:
        return super()._sample_action(0 if self.guided else learning_starts, *args, **kwargs)


def build_ddpg(env: gym.Env, settings: DDPGSettings, seed: int, episode_length: int) -> AMCDDPG:
    """Assemble the agent; ``episode_length`` turns warm-up episodes into stable-baselines3's steps."""
    model = AMCDDPG(
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
        policy_kwargs={
            "net_arch": list(settings.hidden),
            "activation_fn": torch.nn.ReLU,
            "guide": settings.guide,
            "explore_share": settings.explore_share,
        },
        seed=seed,
        device="cpu",
    )
    model.actor_lr = settings.actor_lr
    model.updates_per_step = settings.updates_per_step
    model.guided = bool(settings.guide)
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
        if settings.guide and episode == 0:
            policy.sigma = 0.0  # the guide itself is worth an evaluation

    def follow(episode: Episode) -> None:
        on_episode(episode)
        if settings.follow_best and episode is callback.best:
            policy.move_guide(episode.executed)

    callback = EpisodeCallback(episodes, settings.warmup_episodes, follow, set_sigma)
    model.learn(total_timesteps=episodes * episode_length, callback=callback, log_interval=episodes + 1)
    assert callback.best is not None
    return SearchResult("ddpg", callback.finished, callback.best, save=lambda path: model.save(path))
