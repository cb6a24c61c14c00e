"""What all agents share: the record of an episode, the result of a search, and one way to run an episode."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import gymnasium as gym
import numpy as np

Policy = Callable[[np.ndarray, int], float]
"""(observation, step) -> action in [0, 1]."""


@dataclass(frozen=True)
class Episode:
    """One finished pass.

    Attributes:
        index: number of the episode, from 0.
        phase: ``warmup`` while actions ignore what was learned, else ``search``.
        requested, executed: action asked for and carried out at every step, in [0, 1].
        value: the return: reward of the last step (all others are zero).
        info: the environment's info of the last step.
    """

    index: int
    phase: str
    requested: tuple[float, ...]
    executed: tuple[float, ...]
    value: float
    info: Mapping[str, Any] = field(compare=False)


OnEpisode = Callable[[Episode], None]


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        agent: name of the agent.
        episodes: how many episodes were run.
        best: the first episode of the highest return.
        save: writes the trained agent to a path, where there is one to keep.
    """

    agent: str
    episodes: int
    best: Episode
    save: Callable[[Path], None] | None = None


class Agent(Protocol):
    """A search procedure; its settings are bound beforehand."""

    def __call__(self, env: gym.Env, episodes: int, seed: int, on_episode: OnEpisode) -> SearchResult:
        """Run ``episodes`` episodes and tell ``on_episode`` of each as it ends."""
        ...


def better(best: Episode | None, episode: Episode) -> Episode:
    """Return the episode of the higher return; the earlier one on a tie."""
    return episode if best is None or episode.value > best.value else best


def rollout(env: gym.Env, policy: Policy, index: int, phase: str) -> Episode:
    """Run one episode under ``policy``."""
    observation, _ = env.reset()
    requested: list[float] = []
    executed: list[float] = []
    while True:
        action = policy(observation, len(requested))
        observation, reward, terminated, truncated, info = env.step(np.array([action], dtype=np.float32))
        requested.append(float(info["requested"]))
        executed.append(float(info["executed"]))
        if terminated or truncated:
            return Episode(index, phase, tuple(requested), tuple(executed), float(reward), info)
