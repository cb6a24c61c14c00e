"""From the configuration to an agent with its settings bound."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from typing import Any

import gymnasium as gym

from agents import (
    DDPGSettings,
    EvolutionSettings,
    OnEpisode,
    SearchResult,
    ddpg_search,
    evolution_search,
    fixed_search,
    random_search,
)
from amc.allocation import greedy_widths
from amc.budget import Budget, WidthSpace, uniform_widths
from amc.errors import AmcError
from experiments.schema import AgentConfig, DDPGConfig, EvolutionConfig

Search = Callable[[gym.Env, OnEpisode], SearchResult]
Errors = Mapping[str, tuple[float, ...]]

NAMES = ("ddpg", "evolution", "random", "uniform", "greedy")
GUIDES = ("none", "uniform", "greedy")


def check_agent(config: AgentConfig, order: str) -> None:
    """Refuse an unknown agent or impossible settings.

    Args:
        order: the channel order; only ``obs`` gives the error curves of the greedy allocation.

    Raises:
        AmcError: says which setting.
    """
    if config.name not in NAMES:
        raise AmcError(f"agent.name is {config.name!r}; expected one of {', '.join(NAMES)}")
    if config.episodes < 1:
        raise AmcError(f"agent.episodes is {config.episodes}; expected at least 1")
    if config.warmup_episodes < 0:
        raise AmcError(f"agent.warmup_episodes is {config.warmup_episodes}; expected 0 or more")
    if config.guide not in GUIDES:
        raise AmcError(f"agent.guide is {config.guide!r}; expected one of {', '.join(GUIDES)}")
    if "greedy" in (config.name, config.guide) and order != "obs":
        raise AmcError(
            f"compressor.order is {order!r}, but the greedy allocation needs order=obs, which estimates what "
            "widths cost; or use agent.guide=uniform"
        )
    if isinstance(config, DDPGConfig):
        _settings(DDPGSettings, config, ())
    if isinstance(config, EvolutionConfig):
        _settings(EvolutionSettings, config, ())


def episodes_of(config: AgentConfig) -> int:
    """Return how many episodes an agent will run."""
    return 1 if config.name in ("uniform", "greedy") else config.episodes


def make_agent(config: AgentConfig, space: WidthSpace, budget: Budget, errors: Errors, seed: int) -> Search:
    """Bind an agent's settings; ``check_agent`` has been called.

    Args:
        errors: the groups' errors at every width (``Compressor.errors``), for allocations made from them.
    """
    if config.name in ("uniform", "greedy"):
        return partial(fixed_search, name=config.name, actions=_actions(config.name, space, budget, errors))
    guide = _actions(config.guide, space, budget, errors)
    if isinstance(config, DDPGConfig):
        settings = _settings(DDPGSettings, config, guide)
        search: Callable[..., SearchResult] = partial(
            ddpg_search, settings=settings, episode_length=len(space.names)
        )
    elif isinstance(config, EvolutionConfig):
        search = partial(evolution_search, settings=_settings(EvolutionSettings, config, guide))
    else:
        search = random_search
    return partial(_seeded, search, config.episodes, seed)


def _actions(name: str, space: WidthSpace, budget: Budget, errors: Errors) -> tuple[float, ...]:
    """Return an allocation as the actions that carry it out."""
    if name == "none":
        return ()
    widths = greedy_widths(space, budget, errors) if name == "greedy" else uniform_widths(space, budget)
    return tuple(width / dense for width, dense in zip(widths, space.dense, strict=True))


def _settings(kind: Callable[..., Any], config: AgentConfig, guide: tuple[float, ...]) -> Any:
    """Fill an agent's settings from the configuration's fields of the same names."""
    values = {f.name: getattr(config, f.name) for f in fields(kind)} | {"guide": guide}  # type: ignore[arg-type]
    if "hidden" in values:
        values["hidden"] = tuple(values["hidden"])
    try:
        return kind(**values)
    except ValueError as error:
        raise AmcError(str(error)) from error


def _seeded(
    search: Callable[..., SearchResult], episodes: int, seed: int, env: gym.Env, on_episode: OnEpisode
) -> SearchResult:
    return search(env, episodes, seed, on_episode)
