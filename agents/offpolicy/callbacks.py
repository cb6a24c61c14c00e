"""A callback of stable-baselines3 that turns steps into episodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from agents.protocol import Episode, OnEpisode, better


class EpisodeCallback(BaseCallback):
    """Records every episode and stops after the last.

    Environments that are stepped together begin and end their episodes together: one batch. Surplus episodes
    of the last batch are dropped.

    Args:
        episodes: number of episodes.
        warmup_episodes: how many of them are warm-up; the index of its first episode decides for a batch.
        on_episode: called with each episode, in the order of the environments.
        prepare: called before every batch with the index of its first episode.

    Attributes:
        finished: number of episodes that have ended.
        best: the best eligible episode so far.
    """

    def __init__(
        self, episodes: int, warmup_episodes: int, on_episode: OnEpisode, prepare: Callable[[int], None]
    ) -> None:
        super().__init__()
        self._episodes = episodes
        self._warmup = warmup_episodes
        self._on_episode = on_episode
        self._prepare = prepare
        self._steps: list[list[dict[str, Any]]] = []
        self.finished = 0
        self.best: Episode | None = None

    def _on_training_start(self) -> None:
        self._prepare(0)

    def _on_step(self) -> bool:
        self._steps.append(self.locals["infos"])
        if self.locals["dones"][0]:
            self._end_batch()
        return self.finished < self._episodes

    def _end_batch(self) -> None:
        phase = "warmup" if self.finished < self._warmup else "search"
        by_env = list(zip(*self._steps, strict=True))
        self._steps = []
        rewards = self.locals["rewards"].tolist()
        for infos, reward in list(zip(by_env, rewards, strict=True))[: self._episodes - self.finished]:
            episode = _episode(self.finished, phase, infos, reward)
            self.finished += 1
            self.best = better(self.best, episode)
            self._on_episode(episode)
        self._prepare(self.finished)


def _episode(index: int, phase: str, infos: tuple[dict[str, Any], ...], reward: float) -> Episode:
    """Build an episode; the exact return is in ``info``, as vector environments store rewards in float32."""
    requested = tuple(float(info["requested"]) for info in infos)
    last = infos[-1]
    return Episode(index, phase, requested, tuple(last["ratios"]), float(last.get("return", reward)), last)
