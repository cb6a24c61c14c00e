"""What all agents share: the record of an episode, the result of a search, and one way to run episodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import gymnasium as gym
import numpy as np

Policy = Callable[[np.ndarray, int], float]
"""(observation, step) -> action in [0, 1]."""

T = TypeVar("T")


@dataclass(frozen=True)
class Episode:
    """One finished pass.

    Attributes:
        index: number of the episode, from 0.
        phase: ``warmup`` while actions ignore what was learned, ``relaxed`` where the limit is exceeded on
            purpose, else ``search``.
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

    @property
    def eligible(self) -> bool:
        """Whether the episode may be the result of a search."""
        return self.phase != "relaxed"


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

    def __call__(
        self, envs: Sequence[gym.Env], episodes: int, seed: int, on_episode: OnEpisode
    ) -> SearchResult:
        """Run ``episodes`` episodes and tell ``on_episode`` of each as it ends.

        Args:
            envs: one or more identical environments. They are stepped at the same time, each in a thread of
                its own, so an agent learns after every batch of ``len(envs)`` episodes: the result depends on
                the seed and on their number, never on how long a step takes.
            episodes: how many in all; the last batch is smaller where they do not divide.
            seed: of all that is drawn.
            on_episode: called in the order of the episodes' indices, from the calling thread.
        """
        ...


def better(best: Episode | None, episode: Episode) -> Episode | None:
    """Return the eligible episode of the higher return; the earlier one on a tie."""
    if not episode.eligible:
        return best
    return episode if best is None or episode.value > best.value else best


def batches(episodes: int, size: int) -> Iterator[range]:
    """Yield the indices of all episodes, ``size`` at a time and the rest at the end."""
    for first in range(0, episodes, size):
        yield range(first, min(first + size, episodes))


def streams(generator: np.random.Generator, count: int) -> list[np.random.Generator]:
    """Return a generator for each of ``count`` episodes that draw at the same time; itself for one."""
    return [generator] if count == 1 else generator.spawn(count)


def concurrently(calls: Sequence[Callable[[], T]]) -> list[T]:
    """Make all calls at once, each in a thread of its own, and return their results in order.

    A single call is made in the calling thread. An exception is raised once all calls have ended; the first
    in order if there are several.
    """
    if len(calls) == 1:
        return [calls[0]()]
    with ThreadPoolExecutor(len(calls)) as pool:
        futures = [pool.submit(call) for call in calls]
        return [future.result() for future in futures]


def rollouts(
    envs: Sequence[gym.Env], policies: Sequence[Policy], first_index: int, phase: str
) -> list[Episode]:
    """Run one episode under each policy, at most ``len(envs)`` of them, all at once; return them in order.

    Policies are called from threads: what they draw from must be their own (see ``streams``).
    """
    assert 1 <= len(policies) <= len(envs), f"{len(policies)} policies for {len(envs)} environments"
    return concurrently(
        [
            partial(rollout, env, policy, first_index + place, phase)
            for place, (env, policy) in enumerate(zip(envs, policies, strict=False))
        ]
    )


def rollout(env: gym.Env, policy: Policy, index: int, phase: str) -> Episode:
    """Run one episode under ``policy``."""
    observation, _ = env.reset()
    requested: list[float] = []
    while True:
        action = policy(observation, len(requested))
        observation, reward, terminated, truncated, info = env.step(np.array([action], dtype=np.float32))
        requested.append(float(info["requested"]))
        if terminated or truncated:
            return Episode(index, phase, tuple(requested), tuple(info["ratios"]), float(reward), info)
