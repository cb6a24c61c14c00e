"""Searches without learning: what reinforcement learning has to beat at the same number of evaluations."""

from __future__ import annotations

from collections.abc import Sequence

import gymnasium as gym
import numpy as np

from agents.protocol import Episode, OnEpisode, SearchResult, better, rollout


def random_search(env: gym.Env, episodes: int, seed: int, on_episode: OnEpisode) -> SearchResult:
    """Draw every action uniformly from [0, 1]: AMC's warm-up, carried on."""
    generator = np.random.default_rng(seed)
    best: Episode | None = None
    for index in range(episodes):
        episode = rollout(env, lambda _observation, _step: float(generator.random()), index, "search")
        on_episode(episode)
        best = better(best, episode)
    assert best is not None
    return SearchResult("random", episodes, best)


def fixed_search(env: gym.Env, on_episode: OnEpisode, *, name: str, actions: Sequence[float]) -> SearchResult:
    """Run the one episode of a given allocation, e.g. the uniform one."""
    episode = rollout(env, lambda _observation, step: actions[step], 0, "search")
    on_episode(episode)
    return SearchResult(name, 1, episode)
