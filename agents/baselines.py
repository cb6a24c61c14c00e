"""Searches without learning: the baselines of reinforcement learning at the same number of evaluations."""

from __future__ import annotations

from collections.abc import Sequence

import gymnasium as gym
import numpy as np

from agents.protocol import (
    Episode,
    OnEpisode,
    Policy,
    SearchResult,
    batches,
    better,
    rollout,
    rollouts,
    streams,
)


def uniform(generator: np.random.Generator) -> Policy:
    """Return a policy that draws every action uniformly from [0, 1]."""
    return lambda _observation, _step: float(generator.random())


def carry_out(actions: Sequence[float]) -> Policy:
    """Return a policy that takes given actions, one a step."""
    return lambda _observation, step: actions[step]


def random_search(envs: Sequence[gym.Env], episodes: int, seed: int, on_episode: OnEpisode) -> SearchResult:
    """Draw every action uniformly from [0, 1]: AMC's warm-up without an end."""
    generator = np.random.default_rng(seed)
    best: Episode | None = None
    for batch in batches(episodes, len(envs)):
        policies = [uniform(stream) for stream in streams(generator, len(batch))]
        for episode in rollouts(envs, policies, batch.start, "search"):
            on_episode(episode)
            best = better(best, episode)
    assert best is not None
    return SearchResult("random", episodes, best)


def fixed_search(
    envs: Sequence[gym.Env], on_episode: OnEpisode, *, name: str, actions: Sequence[float]
) -> SearchResult:
    """Run the one episode of a given allocation, e.g. the uniform one."""
    episode = rollout(envs[0], carry_out(actions), 0, "search")
    on_episode(episode)
    return SearchResult(name, 1, episode)
