"""What DDPG, TD3 and SAC share: settings, how stable-baselines3 is set up, and the search itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import gymnasium as gym
import torch
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from agents.offpolicy.callbacks import EpisodeCallback
from agents.offpolicy.policy import StepFeatures
from agents.offpolicy.replay import EpisodeReplayBuffer
from agents.offpolicy.vectorized import ThreadedVecEnv
from agents.protocol import Episode, OnEpisode, SearchResult, batches

Limit = tuple[Callable[[Any], bool], str]
LIMITS: Mapping[str, Limit] = {
    "warmup_episodes": (lambda value: value >= 0, "0 or more"),
    "hidden": (lambda value: all(width >= 1 for width in value), "widths of at least 1"),
    "actor_lr": (lambda value: value > 0, "a positive number"),
    "critic_lr": (lambda value: value > 0, "a positive number"),
    "tau": (lambda value: 0 < value <= 1, "a share in (0, 1]"),
    "gamma": (lambda value: 0 <= value <= 1, "0 to 1"),
    "batch_size": (lambda value: value >= 1, "at least 1"),
    "replay_size": (lambda value: value >= 1, "at least 1"),
    "baseline_alpha": (lambda value: 0 <= value <= 1, "0 to 1"),
    "updates_per_step": (lambda value: value >= 1, "at least 1"),
    "sigma": (lambda value: value >= 0, "0 or more"),
    "sigma_decay": (lambda value: 0 < value <= 1, "a factor in (0, 1]"),
    "explore_share": (lambda value: 0 < value <= 1, "a share in (0, 1]"),
}
"""What each setting may be, for all of these agents."""


@dataclass(frozen=True)
class OffPolicySettings:
    """Hyper-parameters of every agent that learns from a replay buffer; the values are AMC's.

    Attributes:
        warmup_episodes: episodes of uniform actions before learning.
        hidden: widths of the hidden layers of actor and critic.
        actor_lr, critic_lr: Adam's learning rates.
        tau: rate of the target networks.
        gamma: discount.
        batch_size: transitions a gradient step.
        replay_size: transitions kept.
        baseline_alpha, standardise: see ``EpisodeReplayBuffer``.
        store_executed: see ``EpisodeReplayBuffer``.
        updates_per_step: gradient steps per environment step, taken after the episode.
        guide: an allocation to start from, one action a step; empty for none (AMC).
        step_features: whether actor and critic are told which step it is beside the observation.
    """

    warmup_episodes: int = 100
    hidden: tuple[int, ...] = (300, 300)
    actor_lr: float = 1e-4
    critic_lr: float = 1e-3
    tau: float = 0.01
    gamma: float = 1.0
    batch_size: int = 64
    replay_size: int = 2000
    baseline_alpha: float = 0.5
    standardise: bool = False
    store_executed: bool = True
    updates_per_step: int = 1
    guide: tuple[float, ...] = ()
    step_features: bool = False

    def __post_init__(self) -> None:
        """Refuse values that no search can use.

        Raises:
            ValueError: names the setting, what it is and what is expected.
        """
        for name in (f.name for f in fields(self) if f.name in LIMITS):
            fine, expected = LIMITS[name]
            if not fine(getattr(self, name)):
                raise ValueError(f"agent.{name} is {getattr(self, name)}; expected {expected}")


class EpisodicUpdates(OffPolicyAlgorithm):
    """What AMC needs of an algorithm and stable-baselines3 has no extension point for.

    The actor has a learning rate of its own, and an episode may be followed by several updates a step. Put
    it before the algorithm among the bases.
    """

    actor_lr: float = 1e-4
    updates_per_step: int = 1

    def _update_learning_rate(self, optimizers: Any) -> None:
        super()._update_learning_rate(optimizers)
        optimizer = self.actor.optimizer
        assert isinstance(optimizer, torch.optim.Optimizer)
        for group in optimizer.param_groups:
            group["lr"] = self.actor_lr

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """Take ``updates_per_step`` gradient steps for each environment step of the episode."""
        super().train(gradient_steps * self.updates_per_step, batch_size)


Learner = TypeVar("Learner", bound=EpisodicUpdates)


def build(
    kind: Callable[..., Learner],
    policy: Any,
    envs: Sequence[gym.Env],
    settings: OffPolicySettings,
    seed: int,
    episode_length: int,
    policy_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> Learner:
    """Assemble an algorithm of stable-baselines3, which counts steps where AMC counts episodes.

    Warm-up lasts whole batches of ``len(envs)`` episodes: those whose first episode is one of
    ``warmup_episodes``.

    Args:
        kind, policy: the classes of the algorithm and of its networks.
        episode_length: steps of every episode.
        policy_options, options: what only these classes take.
    """
    several = len(envs) > 1
    warmup_batches = len(list(batches(settings.warmup_episodes, len(envs))))
    networks: dict[str, Any] = {"net_arch": list(settings.hidden), "activation_fn": torch.nn.ReLU}
    if settings.step_features:
        networks["features_extractor_class"] = StepFeatures
        networks["features_extractor_kwargs"] = {"steps": episode_length}
    shaping = ("store_executed", "baseline_alpha", "standardise")
    replay = {name: getattr(settings, name) for name in shaping}
    model = kind(
        policy,
        ThreadedVecEnv(envs) if several else envs[0],
        learning_rate=settings.critic_lr,
        buffer_size=settings.replay_size,
        learning_starts=warmup_batches * len(envs) * episode_length,
        batch_size=settings.batch_size,
        tau=settings.tau,
        gamma=settings.gamma,
        train_freq=(episode_length, "step") if several else (1, "episode"),
        gradient_steps=-1,
        replay_buffer_class=EpisodeReplayBuffer,
        replay_buffer_kwargs={**replay, "handle_timeout_termination": False},
        policy_kwargs={**networks, **(policy_options or {})},
        seed=seed,
        device="cpu",
        **options,
    )
    model.set_logger(Logger(folder=None, output_formats=[]))  # its own makes a folder for every search
    model.actor_lr = settings.actor_lr
    model.updates_per_step = settings.updates_per_step
    return model


def learn(
    model: EpisodicUpdates,
    episodes: int,
    on_episode: OnEpisode,
    *,
    name: str,
    settings: OffPolicySettings,
    episode_length: int,
    prepare: Callable[[int], None] = lambda first: None,
    after: Callable[[Episode, Episode | None], None] = lambda episode, best: None,
) -> SearchResult:
    """Let an algorithm act and learn for ``episodes`` episodes.

    Args:
        prepare: called with the index of the first episode of every batch before it begins.
        after: called with every episode as it ends, and the best so far.
    """

    def begin(first: int) -> None:
        prepare(first)
        if isinstance(model.env, ThreadedVecEnv):
            model.env.active = min(model.n_envs, episodes - first)

    def end(episode: Episode) -> None:
        on_episode(episode)
        after(episode, callback.best)

    callback = EpisodeCallback(episodes, settings.warmup_episodes, end, begin)
    steps = len(list(batches(episodes, model.n_envs))) * model.n_envs * episode_length
    model.learn(total_timesteps=steps, callback=callback, log_interval=episodes + 1)
    assert callback.best is not None
    return SearchResult(name, callback.finished, callback.best, save=lambda path: model.save(path))
