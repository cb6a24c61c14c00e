"""A search that starts from the best of several allocations: no heuristic is best for every network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import gymnasium as gym

from agents.baselines import carry_out
from agents.protocol import Agent, Episode, OnEpisode, SearchResult, batches, better, rollouts

Actions = tuple[float, ...]


def search_from_best(
    envs: Sequence[gym.Env],
    episodes: int,
    seed: int,
    on_episode: OnEpisode,
    *,
    guides: Sequence[Actions],
    agent: Callable[[Actions], Agent],
) -> SearchResult:
    """Evaluate all guides, one episode each; an agent searches from the best one with the remaining episodes.

    Args:
        guides: allocations to try. The last ones are skipped if no episode would be left for the agent.
        agent: makes the agent that starts from a given allocation.
    """
    tried = list(guides)[: episodes - 1]
    best: Episode | None = None
    for batch in batches(len(tried), len(envs)):
        policies = [carry_out(tried[index]) for index in batch]
        for episode in rollouts(envs, policies, batch.start, "warmup"):
            on_episode(episode)
            best = better(best, episode)
    start = tried[best.index] if best is not None else guides[0]
    later: list[Episode] = []

    def shifted(episode: Episode) -> None:
        later.append(replace(episode, index=episode.index + len(tried)))
        on_episode(later[-1])

    found = agent(start)(envs, episodes - len(tried), seed, shifted)
    for episode in later:
        best = better(best, episode)
    assert best is not None
    return replace(found, episodes=found.episodes + len(tried), best=best)
