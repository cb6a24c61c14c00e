"""Stable-baselines3 callback that turns steps into episodes."""

from __future__ import annotations

from collections.abc import Callable

from stable_baselines3.common.callbacks import BaseCallback

from agents.protocol import Episode, OnEpisode, better


class EpisodeCallback(BaseCallback):
    """Records every episode, sets the exploration of the next and stops after the last.

    Args:
        episodes, warmup_episodes: how many in all, and how many of them random.
        on_episode: told of each episode.
        set_sigma: called with the index of the episode that begins next.
    """

    def __init__(
        self, episodes: int, warmup_episodes: int, on_episode: OnEpisode, set_sigma: Callable[[int], None]
    ) -> None:
        super().__init__()
        self._episodes = episodes
        self._warmup = warmup_episodes
        self._on_episode = on_episode
        self._set_sigma = set_sigma
        self._requested: list[float] = []
        self._executed: list[float] = []
        self.finished = 0
        self.best: Episode | None = None

    def _on_training_start(self) -> None:
        self._set_sigma(0)

    def _on_step(self) -> bool:
        info = self.locals["infos"][0]
        self._requested.append(float(info["requested"]))
        self._executed.append(float(info["executed"]))
        if self.locals["dones"][0]:
            self._end_episode(float(self.locals["rewards"][0]), info)
        return self.finished < self._episodes

    def _end_episode(self, value: float, info: dict) -> None:
        phase = "warmup" if self.finished < self._warmup else "search"
        # The vector environment stores rewards in float32; the exact return travels in info.
        exact = float(info.get("return", value))
        episode = Episode(self.finished, phase, tuple(self._requested), tuple(self._executed), exact, info)
        self._requested, self._executed = [], []
        self.finished += 1
        self.best = better(self.best, episode)
        self._on_episode(episode)
        self._set_sigma(self.finished)
