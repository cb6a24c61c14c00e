"""From the configuration to an agent with its settings bound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import partial

import gymnasium as gym

from agents import DDPGSettings, OnEpisode, SearchResult, ddpg_search, fixed_search, random_search
from amc.budget import Budget, WidthSpace, uniform_widths
from amc.errors import AmcError
from experiments.schema import AgentConfig, DDPGConfig

Search = Callable[[gym.Env, OnEpisode], SearchResult]

NAMES = ("ddpg", "random", "uniform")


def check_agent(config: AgentConfig) -> None:
    """Refuse an unknown agent or impossible settings.

    Raises:
        AmcError: says which setting.
    """
    if config.name not in NAMES:
        raise AmcError(f"agent.name is {config.name!r}; expected one of {', '.join(NAMES)}")
    if config.episodes < 1:
        raise AmcError(f"agent.episodes is {config.episodes}; expected at least 1")
    if config.warmup_episodes < 0:
        raise AmcError(f"agent.warmup_episodes is {config.warmup_episodes}; expected 0 or more")
    if isinstance(config, DDPGConfig):
        _ddpg_settings(config)


def make_agent(config: AgentConfig, space: WidthSpace, budget: Budget, seed: int) -> tuple[Search, int]:
    """Return the search and the number of episodes that it will run; ``check_agent`` has been called."""
    if config.name == "uniform":
        widths = uniform_widths(space, budget)
        actions = [width / dense for width, dense in zip(widths, space.dense, strict=True)]
        return partial(fixed_search, name="uniform", actions=actions), 1
    if isinstance(config, DDPGConfig):
        search = partial(ddpg_search, settings=_ddpg_settings(config), episode_length=len(space.names))
        return partial(_seeded, search, config.episodes, seed), config.episodes
    return partial(_seeded, random_search, config.episodes, seed), config.episodes


def _ddpg_settings(config: DDPGConfig) -> DDPGSettings:
    values = {f.name: getattr(config, f.name) for f in fields(DDPGSettings)}
    try:
        return DDPGSettings(**{**values, "hidden": tuple(config.hidden)})
    except ValueError as error:
        raise AmcError(str(error)) from error


def _seeded(
    search: Callable[..., SearchResult], episodes: int, seed: int, env: gym.Env, on_episode: OnEpisode
) -> SearchResult:
    return search(env, episodes, seed, on_episode)
