"""A callback of stable-baselines3 that turns steps into episodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from agents.protocol import Episode, OnEpisode, better, episode_of


class EpisodeCallback(BaseCallback):
    """Records every episode and stops after the last.

    Environments that are stepped together begin and end their episodes together: one batch. Surplus episodes
    of the last batch are dropped.

    Args:
        episodes: number of episodes.
        warmup_episodes: how many of them are warm-up; the index of its first episode decides for a batch.
        on_episode: called with each episode, in the order of the environments.
        learning: says how far the agent has learned, from an episode and its observations (steps, features).
        prepare: called before every batch with the index of its first episode.

    Attributes:
        finished: number of episodes that have ended.
        best: the best eligible episode so far.
    """

    def __init__(
        self,
        episodes: int,
        warmup_episodes: int,
        on_episode: OnEpisode,
        prepare: Callable[[int], None],
        learning: Callable[[Episode, np.ndarray], Mapping[str, float | None]],
    ) -> None:
        super().__init__()
        self._episodes = episodes
        self._warmup = warmup_episodes
        self._on_episode = on_episode
        self._prepare = prepare
        self._learning = learning
        self._steps: list[list[dict[str, Any]]] = []
        self._observations: list[np.ndarray] = []
        self.finished = 0
        self.best: Episode | None = None

    def _on_training_start(self) -> None:
        self._prepare(0)

    def _on_step(self) -> bool:
        self._steps.append(self.locals["infos"])
        seen = self.model._last_obs
        assert isinstance(seen, np.ndarray)
        self._observations.append(seen)
        if self.locals["dones"][0]:
            self._end_batch()
        return self.finished < self._episodes

    def _end_batch(self) -> None:
        phase = "warmup" if self.finished < self._warmup else "search"
        by_env = list(zip(*self._steps, strict=True))
        observations = np.stack(self._observations)  # (steps, envs, features)
        self._steps, self._observations = [], []
        rewards = self.locals["rewards"].tolist()
        episodes: list[Episode] = []
        for place, infos in enumerate(by_env[: self._episodes - self.finished]):
            index = self.finished + place
            episode = _episode(self.model.action_space, index, phase, infos, rewards[place])
            episodes.append(replace(episode, learning=self._learning(episode, observations[:, place])))
        for episode in episodes:  # this may move the policy, with which the whole batch was compared
            self.finished += 1
            self.best = better(self.best, episode)
            self._on_episode(episode)
        self._prepare(self.finished)


def _episode(
    space: gym.Space, index: int, phase: str, infos: tuple[dict[str, Any], ...], reward: float
) -> Episode:
    """Build an episode; the exact return is in ``info``, as vector environments store rewards in float32."""
    requested = [float(info["requested"]) for info in infos]
    value = float(infos[-1].get("return", reward))
    return episode_of(space, index, phase, requested, value, infos[-1])
