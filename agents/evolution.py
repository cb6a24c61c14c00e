"""Steady-state evolution: a small population, mutated a few steps at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import gymnasium as gym
import numpy as np

from agents.baselines import carry_out, uniform
from agents.checks import POSITIVE, at_least, validate
from agents.protocol import Episode, OnEpisode, SearchResult, batches, better, rollouts, streams


@dataclass(frozen=True)
class EvolutionSettings:
    """Hyper-parameters.

    Attributes:
        population: number of parents.
        mutations: how many actions of a child change, on average.
        sigma: standard deviation of a change, in units of the action.
        guide: the initial allocation, one action (preserve ratio) a step; empty to start from random
            episodes.

    Raises:
        ValueError: names an impossible setting, its value and what is expected.
    """

    population: int = field(default=8, metadata=at_least(1))
    mutations: float = field(default=3.0, metadata=POSITIVE)
    sigma: float = field(default=0.15, metadata=POSITIVE)
    guide: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        validate(self)


def evolution_search(
    envs: Sequence[gym.Env], episodes: int, seed: int, on_episode: OnEpisode, *, settings: EvolutionSettings
) -> SearchResult:
    """Search by mutation of the best episodes so far; see ``agents.protocol.Agent``.

    A parent is drawn from the ``population`` best episodes. Normal noise shifts some of its executed actions.
    The child replaces the worst parent if it is better. Without a guide the population starts from uniform
    random episodes. All episodes of a batch descend from the parents before it.
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
    """Return the guide first, then mutated parents, or mutations of the guide while there are no parents."""
    if settings.guide and index == 0:
        return settings.guide
    if not parents:
        return _mutated(settings.guide, settings, generator)
    return _mutated(parents[int(generator.integers(len(parents)))].executed, settings, generator)


def _mutated(
    actions: Sequence[float], settings: EvolutionSettings, generator: np.random.Generator
) -> tuple[float, ...]:
    """Shift at least one action; the result stays in [0, 1]."""
    changed = generator.random(len(actions)) < settings.mutations / len(actions)
    changed[generator.integers(len(actions))] = True
    shifted = np.asarray(actions) + changed * generator.normal(0.0, settings.sigma, len(actions))
    return tuple(np.clip(shifted, 0.0, 1.0).tolist())
