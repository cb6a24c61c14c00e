"""The interface of all agents: the record of an episode, the result of a search, and rollouts."""

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
"""(observation (features,), step) -> action in [0, 1]."""

T = TypeVar("T")


@dataclass(frozen=True)
class Episode:
    """One finished pass over all groups.

    Attributes:
        index: number of the episode, from 0.
        phase: ``warmup`` before the agent uses what it has learned, ``relaxed`` if the episode may exceed the
            budget on purpose, else ``search``.
        requested: the action of every step, in [0, 1].
        executed: the actions that were carried out, in [0, 1]; to request them gives the same network.
        value: the return, which is the reward of the last step (all others are zero).
        info: the environment's info of the last step.
        learning: what the agent tells of its learning, by name (``agents.offpolicy.diagnostics``).
    """

    index: int
    phase: str
    requested: tuple[float, ...]
    executed: tuple[float, ...]
    value: float
    info: Mapping[str, Any] = field(compare=False)
    learning: Mapping[str, float | None] = field(default_factory=dict, compare=False)

    @property
    def network(self) -> tuple[float, ...]:
        """The preserve ratio of every group of the evaluated network, in (0, 1]."""
        return tuple(self.info["ratios"])

    @property
    def eligible(self) -> bool:
        """Whether the episode may be the result of a search."""
        return self.phase != "relaxed"


OnEpisode = Callable[[Episode], None]
Search = Callable[[OnEpisode], "SearchResult"]
"""An agent with everything else bound, its environments too."""


class SearchEnded(Exception):  # noqa: N818  (it is no error)
    """Raised by ``on_episode`` to end a search after its episode.

    An agent lets it pass, or returns the result of the episodes so far; ``run_search`` makes both the same.
    """


@dataclass(frozen=True)
class SearchResult:
    """The result of a search.

    Attributes:
        agent: name of the agent.
        episodes: how many episodes were run.
        best: the first eligible episode of the highest return.
        save: writes the trained agent to a path; None for an agent without parameters.
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
        """Run ``episodes`` episodes and pass each to ``on_episode`` as it ends.

        Args:
            envs: one or more identical environments. They are stepped at the same time, each in a thread of
                its own, and an agent learns after every batch of ``len(envs)`` episodes. So the result
                depends on the seed and on the number of environments, never on how long a step takes.
            episodes: number of episodes; the last batch is smaller if ``len(envs)`` does not divide it.
            seed: seed of all random draws.
            on_episode: called in the order of the episodes' indices, from the calling thread; it may raise
                ``SearchEnded``, after which it is not called again.
        """
        ...


def run_search(search: Search, on_episode: OnEpisode, *, name: str) -> SearchResult:
    """Run a search; if ``on_episode`` ends it, the result is that of the episodes so far.

    Args:
        search: the search.
        on_episode: as for ``Agent``.
        name: name of the agent.

    Raises:
        SearchEnded: it was ended before an episode that may win.
    """
    best: Episode | None = None
    count = 0

    def watched(episode: Episode) -> None:
        nonlocal best, count
        best, count = better(best, episode), count + 1
        on_episode(episode)

    try:
        return search(watched)
    except SearchEnded:
        if best is None:
            raise
        return SearchResult(name, count, best)


def better(best: Episode | None, episode: Episode) -> Episode | None:
    """Return the eligible episode with the higher return; the earlier one on a tie."""
    if not episode.eligible:
        return best
    return episode if best is None or episode.value > best.value else best


def batches(episodes: int, size: int) -> Iterator[range]:
    """Yield the indices of all episodes in batches of ``size``; the last batch may be smaller."""
    for first in range(0, episodes, size):
        yield range(first, min(first + size, episodes))


def streams(generator: np.random.Generator, count: int) -> list[np.random.Generator]:
    """Return a generator for each of ``count`` concurrent episodes: ``generator`` itself for one."""
    return [generator] if count == 1 else generator.spawn(count)


def concurrently(calls: Sequence[Callable[[], T]]) -> list[T]:
    """Run all calls at once, each in a thread of its own, and return their results in order.

    A single call runs in the calling thread. An exception is raised once all calls have ended: the first in
    order if there are several. Ctrl-C does not wait for them, as one of them may hang.
    """
    if len(calls) == 1:
        return [calls[0]()]
    pool = ThreadPoolExecutor(len(calls))
    wait = True
    try:
        futures = [pool.submit(call) for call in calls]
        return [future.result() for future in futures]
    except KeyboardInterrupt:
        wait = False
        raise
    finally:
        pool.shutdown(wait=wait, cancel_futures=not wait)


def rollouts(
    envs: Sequence[gym.Env], policies: Sequence[Policy], first_index: int, phase: str
) -> list[Episode]:
    """Run one episode under each policy, all at once, and return the episodes in order.

    Policies are called from threads, so each needs a random generator of its own (see ``streams``).

    Args:
        envs: identical environments; those after the last policy are not used.
        policies: at most ``len(envs)``.
        first_index: index of the first episode.
        phase: phase of all episodes.
    """
    assert 1 <= len(policies) <= len(envs), f"{len(policies)} policies for {len(envs)} environments"
    return concurrently(
        [
            partial(rollout, env, policy, first_index + place, phase)
            for place, (env, policy) in enumerate(zip(envs, policies, strict=False))
        ]
    )


def rollout(env: gym.Env, policy: Policy, index: int, phase: str) -> Episode:
    """Run one episode under ``policy``, whose actions in [0, 1] are scaled to the environment's range."""
    low, high = bounds(env.action_space)
    observation, _ = env.reset()
    requested: list[float] = []
    while True:
        action = low + (high - low) * policy(observation, len(requested))
        observation, reward, terminated, truncated, info = env.step(np.array([action], dtype=np.float32))
        requested.append(float(info["requested"]))
        if terminated or truncated:
            return episode_of(env.action_space, index, phase, requested, float(reward), info)


def episode_of(
    space: gym.Space,
    index: int,
    phase: str,
    requested: Sequence[float],
    value: float,
    info: Mapping[str, Any],
) -> Episode:
    """Return an episode from what an environment tells of it.

    Args:
        space: the actions of a step.
        index, phase, value: as in ``Episode``.
        requested: the requested action of every step, in the environment's range.
        info: of the last step.
    """
    low, high = bounds(space)

    def unit(actions: Sequence[float]) -> tuple[float, ...]:
        return tuple((action - low) / (high - low) for action in actions)

    return Episode(index, phase, unit(requested), unit(info["actions"]), value, info)


def bounds(space: gym.Space) -> tuple[float, float]:
    """Return the smallest and largest action of a space of one number."""
    assert isinstance(space, gym.spaces.Box)
    assert space.shape == (1,), f"expected one number a step, not {space.shape}"
    return float(space.low[0]), float(space.high[0])
