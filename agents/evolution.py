"""Steady-state evolution: a small population, mutated a few steps at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import gymnasium as gym
import numpy as np

from agents.baselines import carry_out, uniform
from agents.protocol import Episode, OnEpisode, SearchResult, batches, better, rollouts, streams


@dataclass(frozen=True)
class EvolutionSettings:
    """Hyper-parameters.

    Attributes:
        population: parents that are kept.
        mutations: how many actions of a child change, on average.
        sigma: standard deviation of a change, in units of the action.
        guide: an allocation to start from; empty to start from random episodes.
    """

    population: int = 8
    mutations: float = 3.0
    sigma: float = 0.15
    guide: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Refuse values that no search can use.

        Raises:
            ValueError: names the setting, what it is and what is expected.
        """
        if self.population < 1:
            raise ValueError(f"agent.population is {self.population}; expected at least 1")
        for name in ("mutations", "sigma"):
            if getattr(self, name) <= 0:
                raise ValueError(f"agent.{name} is {getattr(self, name)}; expected a positive number")


def evolution_search(
    envs: Sequence[gym.Env], episodes: int, seed: int, on_episode: OnEpisode, *, settings: EvolutionSettings
) -> SearchResult:
    """Search by mutation of the best episodes so far; see ``agents.protocol.Agent``.

    A parent is drawn from the ``population`` best episodes, some of its executed actions are shifted by
    normal noise, and the child joins if it is better than the worst. Without a guide the population starts
    from uniform random episodes. All of a batch is proposed from the parents before it.
    """
    generator = np.random.default_rng(seed)
    parents: list[Episode] = []
    best: Episode | None = None
    for batch in batches(episodes, len(envs)):
        drawn = not settings.guide and len(parents) < settings.population
        if drawn:
            policies = [uniform(stream) for stream in streams(generator, len(batch))]
        else:
            policies = [carry_out(_proposal(index, parents, settings, generator)) for index in batch]
        for episode in rollouts(envs, policies, batch.start, "warmup" if drawn else "search"):
            on_episode(episode)
            best = better(best, episode)
            parents = sorted([*parents, episode], key=lambda e: -e.value)[: settings.population]
    assert best is not None
    return SearchResult("evolution", episodes, best)


def _proposal(
    index: int, parents: Sequence[Episode], settings: EvolutionSettings, generator: np.random.Generator
) -> Sequence[float]:
    """The guide first, then mutated parents; the guide's own while there are none."""
    if settings.guide and index == 0:
        return settings.guide
    if not parents:
        return _mutated(settings.guide, settings, generator)
    return _mutated(parents[int(generator.integers(len(parents)))].executed, settings, generator)


def _mutated(
    actions: Sequence[float], settings: EvolutionSettings, generator: np.random.Generator
) -> tuple[float, ...]:
    """Shift some actions; at least one."""
    changed = generator.random(len(actions)) < settings.mutations / len(actions)
    changed[generator.integers(len(actions))] = True
    shifted = np.asarray(actions) + changed * generator.normal(0.0, settings.sigma, len(actions))
    return tuple(np.clip(shifted, 0.0, 1.0).tolist())
