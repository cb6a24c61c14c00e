"""The agents by name, and how the configuration becomes an agent with its settings bound.

A new agent is one file in ``agents``, one row of ``AGENTS`` and one file in ``conf/agent``. A dotted path
names one of the user's own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import gymnasium as gym

from agents import (
    Agent,
    DDPGSettings,
    EvolutionSettings,
    NetAdaptSettings,
    OnEpisode,
    SearchResult,
    ThompsonSettings,
    TPESettings,
    evolution_search,
    fixed_search,
    import_optuna,
    netadapt_search,
    random_search,
    search_from_best,
    thompson_search,
    tpe_search,
)
from amc.budget.allocation import ramp_widths, uniform_widths
from amc.budget.budget import Fit
from amc.errors import FileError, SettingError
from amc.notes import note_once
from amc.registry import Registry
from envs import Reward
from experiments.config.arena import Actions, Acts, Arena
from experiments.config.sections.agents import AgentConfig
from experiments.config.unused_by_agents import unused_by_ddpg, unused_warm_up

if TYPE_CHECKING:
    from agents.transfer import TransferActor

Search = Callable[[int, OnEpisode], SearchResult]
"""(number of environments that are stepped at the same time, callback) -> result."""

STARTS = ("greedy", "global_l1", "uniform")
"""Allocations that ``guide=best`` tries, without those that need error curves or ranks if there are none."""
SELECT = ("search", "held_out")
"""Values of ``agent.select``: the winner has the best return, or the best score on unseen images."""
GUIDES = ("none", "uniform", "greedy", "best")
"""Values of ``agent.guide``, the initial allocation of a search."""
WEIGHABLE_GUIDES = ("none", "greedy")
"""Those that an environment of weights can start from."""
ACTS = ("auto", *get_args(Acts))
"""Values of ``agent.acts``; ``auto`` is ``weights`` where they are possible."""


@dataclass(frozen=True)
class AgentKind:
    """One agent: exactly one of ``bind`` and ``allocate`` is given.

    Attributes:
        bind: returns the agent from its settings, the arena and what its actions are.
        settings: class of the settings; its fields are filled from the configuration. A search can start from
            an allocation (``agent.guide``) if there is a field ``guide``.
        allocate: returns the widths of an agent that does not search and needs one evaluation.
        needs_curves: whether the agent needs error curves.
        ranks_channels: whether the agent ranks channels; then it cannot prune single weights.
        needs_budget: whether the agent needs a reward that enforces the budget.
        only_ratios: whether its actions are always preserve ratios.
        check: raises if the settings do not fit the number of episodes.
        available: raises if a package is missing.
    """

    bind: Callable[[Any, Arena, Acts], Agent] | None = None
    settings: type[Any] | None = None
    allocate: Callable[[Arena], tuple[int, ...]] | None = None
    needs_curves: bool = False
    ranks_channels: bool = False
    needs_budget: bool = False
    only_ratios: bool = False
    check: Callable[[Any, int], None] = lambda settings, episodes: None
    available: Callable[[], object] = lambda: None


def _ddpg(settings: DDPGSettings, arena: Arena, acts: Acts) -> Agent:
    # Here, as they import torch, which the check of a configuration does without.
    from agents import ddpg_search
    from agents.offpolicy.imagination import World

    for remark in unused_by_ddpg(settings, weighs=acts == "weights"):
        note_once(remark)
    world = None
    if acts == "weights":
        world = World(
            arena.imagine,
            partial(arena.best_under, acts=acts),
            arena.errors_of,
            ceiling=arena.ceiling,
        )
    return partial(ddpg_search, settings=settings, episode_length=arena.groups, world=world)


def _tpe(settings: TPESettings, arena: Arena, acts: Acts) -> Agent:
    return partial(tpe_search, settings=settings, episode_length=arena.groups)


def _evolution(settings: EvolutionSettings, arena: Arena, acts: Acts) -> Agent:
    return partial(evolution_search, settings=settings)


def _random(settings: None, arena: Arena, acts: Acts) -> Agent:
    return random_search


def _thompson(settings: ThompsonSettings, arena: Arena, acts: Acts) -> Agent:
    return partial(
        thompson_search,
        allocate=partial(arena.best_under, acts=acts),
        network=partial(arena.best_under, acts="ratios"),
        errors=arena.errors_of,
        ceiling=arena.ceiling,
        groups=arena.groups,
        settings=settings,
    )


def _netadapt(settings: NetAdaptSettings, arena: Arena, acts: Acts) -> Agent:
    def search(envs: Sequence[gym.Env], episodes: int, seed: int, on_episode: OnEpisode) -> SearchResult:
        return netadapt_search(
            envs,
            episodes,
            seed,
            on_episode,
            relaxed=[arena.env(enforced=False) for _ in envs],
            propose=arena.one_group_smaller,
            episode_length=arena.groups,
            target=min(limit.left_of(arena.space.dense) for limit in arena.budget.limits),
            settings=settings,
        )

    return search


def _own_agent(made: Any) -> AgentKind | None:
    """Return a user's own agent as a kind: a function as those of ``agents``, or a kind itself.

    A function may take ``episode_length``, the number of steps of an episode, by keyword.
    """
    if isinstance(made, AgentKind) or not callable(made):
        return made if isinstance(made, AgentKind) else None
    if "episode_length" not in inspect.signature(made).parameters:
        return AgentKind(lambda settings, arena, acts: made)
    return AgentKind(lambda settings, arena, acts: partial(made, episode_length=arena.groups))


AGENTS: Registry[AgentKind] = Registry(
    "agent",
    {
        "ddpg": AgentKind(_ddpg, DDPGSettings),
        "tpe": AgentKind(_tpe, TPESettings, available=import_optuna),
        "netadapt": AgentKind(
            _netadapt, NetAdaptSettings, needs_budget=True, only_ratios=True, check=NetAdaptSettings.check
        ),
        "evolution": AgentKind(_evolution, EvolutionSettings),
        "thompson": AgentKind(_thompson, ThompsonSettings, needs_curves=True, needs_budget=True),
        "random": AgentKind(_random),
        "uniform": AgentKind(allocate=lambda arena: uniform_widths(arena.space, arena.budget)),
        "deep": AgentKind(allocate=lambda arena: ramp_widths(arena.space, arena.budget, shallow=False)),
        "shallow": AgentKind(allocate=lambda arena: ramp_widths(arena.space, arena.budget, shallow=True)),
        "global_l1": AgentKind(allocate=lambda arena: arena.ranked("l1"), ranks_channels=True),
        "global_taylor": AgentKind(allocate=lambda arena: arena.ranked("taylor"), ranks_channels=True),
        "greedy": AgentKind(allocate=lambda arena: arena.greedy(), needs_curves=True),
    },
    own=_own_agent,
)
ALLOCATIONS = tuple(name for name, kind in AGENTS.items() if kind.allocate is not None)
"""Agents that do not search and need one evaluation."""


def check_agent(config: AgentConfig, order: str) -> None:
    """Refuse an unknown agent or impossible settings.

    Args:
        config: the section of the agent.
        order: the channel order; only ``obs`` gives the error curves of the greedy allocation.

    Raises:
        SettingError: names the setting.
    """
    kind = AGENTS.find(config.name)
    if config.patience < 0:
        raise SettingError(f"agent.patience is {config.patience}; expected 0 (never) or more episodes")
    if config.select not in SELECT:
        raise SettingError(f"agent.select is {config.select!r}; expected one of {', '.join(SELECT)}")
    if kind.allocate is not None and (asking := _compares_unseen(config)) is not None:
        raise SettingError(
            f"{asking} compares networks of a search on unseen images, but agent={config.name} makes one "
            "network; leave it out, or use an agent that searches"
        )
    if config.episodes < 1:
        raise SettingError(f"agent.episodes is {config.episodes}; expected at least 1")
    if config.warmup_episodes < 0:
        raise SettingError(f"agent.warmup_episodes is {config.warmup_episodes}; expected 0 or more")
    if config.guide not in GUIDES:
        raise SettingError(f"agent.guide is {config.guide!r}; expected one of {', '.join(GUIDES)}")
    _check_acts(kind, config)
    if config.guide != "none" and not _starts(kind):
        raise SettingError(
            f"agent.guide is {config.guide!r}, but agent={config.name} starts from none; write "
            "agent.guide=none"
        )
    needs_curves = kind.needs_curves or config.acts == "weights"
    if (needs_curves or config.guide == "greedy") and order != "obs":
        needs = f"agent={config.name}" if needs_curves else "the greedy allocation"
        raise SettingError(
            f"compressor.order is {order!r}, but {needs} needs order=obs, which estimates the error of each "
            "width; or use agent.guide=uniform with another agent"
        )
    taken = len(STARTS) if config.guide == "best" else 0
    guide = () if config.guide == "none" else (1.0,)  # which one is not known yet
    try:
        _checked(kind.check, _settings(kind, config, guide), max(config.episodes - taken, 1))
    except SettingError as error:
        told = f" (agent.guide=best takes {taken} of the {config.episodes})" if taken else ""
        raise SettingError(f"{error}{told}") from error
    if config.pretrained is not None:
        _check_pretrained(kind, config, order)


def _check_pretrained(kind: AgentKind, config: AgentConfig, order: str) -> None:
    """Refuse a pretrained actor where actions will not be weights of error curves, or nothing reads it."""
    if not _has(kind.settings, "factors"):
        raise SettingError(
            f"agent.pretrained is given, but agent={config.name} learns no weights of error curves; use ddpg "
            "or thompson"
        )
    for setting, value, fits in (
        ("agent.acts", config.acts, config.acts != "ratios"),
        ("agent.guide", config.guide, config.guide in WEIGHABLE_GUIDES),
        ("compressor.order", order, order == "obs"),
    ):
        if not fits:
            raise SettingError(
                f"agent.pretrained is about weights of error curves, but with {setting}={value} the search "
                f"decides ratios; it needs agent.acts=weights, agent.guide=greedy or "
                "none, and compressor.order=obs"
            )
    if config.guide == "none" and getattr(config, "imagined", None) == 0:
        raise SettingError(
            f"agent.pretrained is read by the guide and by imagined episodes, and agent={config.name} has "
            "neither; it needs agent.guide=greedy or agent.imagined=64"
        )


def _starts(kind: AgentKind) -> bool:
    """Whether the agent is a search that may start from an allocation."""
    return kind.allocate is None and _has(kind.settings, "guide")


def _check_acts(kind: AgentKind, config: AgentConfig) -> None:
    if config.acts not in ACTS:
        raise SettingError(f"agent.acts is {config.acts!r}; expected one of {', '.join(ACTS)}")
    if config.acts != "weights":
        return
    if kind.only_ratios or kind.allocate is not None:
        raise SettingError(f"agent.acts is 'weights', but agent={config.name} decides ratios; use ratios")
    if config.guide not in WEIGHABLE_GUIDES:
        raise SettingError(
            f"agent.guide is {config.guide!r}, but weights of error curves start from "
            f"{' or '.join(WEIGHABLE_GUIDES)}; or use agent.acts=ratios"
        )


def needs_unseen(config: AgentConfig) -> str | None:
    """Return the setting that needs images which the search does not see, or None.

    ``check_agent`` refuses it where there is no search.
    """
    return None if config.name in ALLOCATIONS else _compares_unseen(config)


def _compares_unseen(config: AgentConfig) -> str | None:
    """Return the setting that compares networks of a search on unseen images, or None."""
    if config.patience > 0:
        return f"agent.patience={config.patience}"
    return "agent.select=held_out" if config.select == "held_out" else None


def refuse_unseen(config: AgentConfig, where: str) -> None:
    """Refuse settings that need unseen images where there are none.

    Raises:
        SettingError: names the setting and ``where`` it has no effect.
    """
    if (setting := needs_unseen(config)) is not None:
        raise SettingError(
            f"{setting} judges networks on the images of data.unseen, which {where} does not have"
        )


def check_search(config: AgentConfig, reward: Reward, fit: Fit = "scale") -> None:
    """Refuse an agent that cannot search here, under this reward or this fit of its requests.

    Raises:
        SettingError: a package is missing, or agent, reward and fit do not go together.
    """
    kind = AGENTS.find(config.name)
    _checked(kind.available)
    weighs = config.acts == "weights" or config.pretrained is not None
    if weighs and fit == "cut":
        raise SettingError(
            "budget.fit is 'cut', which cuts the ratio of every step, but weights of error curves are no "
            "ratios; use budget.fit=scale or agent.acts=ratios, without agent.pretrained"
        )
    if (kind.needs_budget or weighs) and not reward.enforces_budget:
        raise SettingError(
            f"agent={config.name} needs a budget, but reward={reward.name} enforces none; use "
            "reward=accuracy or agreement"
        )


def episodes_of(config: AgentConfig) -> int:
    """Return how many episodes an agent will run."""
    return config.episodes if AGENTS.find(config.name).allocate is None else 1


def make_agent(config: AgentConfig, arena: Arena, seed: int) -> Search:
    """Return the search of an agent with its settings bound; ``check_agent`` has been called.

    Args:
        config: the section of the agent.
        arena: the problem.
        seed: seed of all its random draws.

    Raises:
        SettingError: a setting of the agent is missing or impossible.
    """
    kind = AGENTS.find(config.name)
    acts = acts_of(config, arena)
    if (remark := _about_warm_up(kind, config)) is not None:
        note_once(remark)

    def envs(count: int) -> list[gym.Env]:
        return [arena.env(acts) for _ in range(count)]

    if kind.allocate is not None:
        actions = arena.ratios(kind.allocate(arena))
        return lambda count, on_episode: fixed_search(
            envs(count), on_episode, name=config.name, actions=actions
        )

    factors = _pretrained(config, arena, acts)

    def guided(guide: Actions) -> Agent:
        assert kind.bind is not None
        return kind.bind(_settings(kind, config, guide, factors), arena, acts)

    guides = _guides(config.guide, arena, acts, factors) if _starts(kind) else []
    search = (
        guided(guides[0] if guides else ())
        if len(guides) < 2
        else partial(search_from_best, guides=guides, agent=guided)
    )
    return lambda count, on_episode: search(envs(count), config.episodes, seed, on_episode)


def _about_warm_up(kind: AgentKind, config: AgentConfig) -> str | None:
    """Return a remark on a warm-up that the agent lacks, or that fills the search, or None.

    Of a search of a single episode it is told without a remark that nothing is learned.
    """
    if not _has(kind.settings, "warmup_episodes"):
        return unused_warm_up(config)
    if not 1 < config.episodes <= config.warmup_episodes:
        return None
    return (
        f"agent.warmup_episodes={config.warmup_episodes} leaves agent={config.name} none of the "
        f"{config.episodes} episodes to learn in: its networks are {_unlearned(kind, config)}; lower it, or "
        "raise agent.episodes"
    )


def _unlearned(kind: AgentKind, config: AgentConfig) -> str:
    """Say which networks a search meets in its warm-up."""
    if config.guide == "none":
        return "drawn at random"
    others = "draws around it" if kind.settings is DDPGSettings else "others drawn at random"
    return f"that of agent.guide={config.guide} and {others}"


def acts_of(config: AgentConfig, arena: Arena) -> Acts:
    """Return what an agent's actions are: ``agent.acts``, where ``auto`` prefers weights.

    With ``budget.fit=cut`` they are ratios, as only these can be cut.
    """
    kind = AGENTS.find(config.name)
    if kind.allocate is not None or kind.only_ratios or config.acts == "ratios":
        return "ratios"
    possible = config.guide in WEIGHABLE_GUIDES and arena.budget.fit == "scale" and arena.weighable
    return "weights" if config.acts == "weights" or possible else "ratios"


def _pretrained(config: AgentConfig, arena: Arena, acts: Acts) -> tuple[float, ...]:
    """Return the factors of the error curves that a pretrained actor expects; () without one."""
    if config.pretrained is None:
        return ()
    if acts != "weights":
        raise SettingError(
            f"agent.pretrained={config.pretrained} is about weights of error curves, but this search decides "
            "ratios; it needs agent.acts=weights, compressor.order=obs and a reward that enforces a budget"
        )
    try:
        return pretrained_actor(config.pretrained).factors(arena.observations)
    except ValueError as error:  # of a release with other observations
        raise FileError(f"agent.pretrained: {config.pretrained}: {error}") from error


def pretrained_actor(file: str) -> TransferActor:
    """Read the actor that ``agent.pretrained`` names.

    Raises:
        FileError: the file is missing, or is no such actor.
    """
    from agents.transfer import load_actor  # which imports torch

    try:
        return load_actor(Path(file).expanduser())
    except ValueError as error:
        raise FileError(f"agent.pretrained: {error}") from error


def _guides(name: str, arena: Arena, acts: Acts, factors: Sequence[float]) -> list[Actions]:
    """Return the actions of the allocations that a search may start from.

    Args:
        name: value of ``agent.guide``.
        arena, acts: the problem, and what actions are.
        factors: what a pretrained actor expects of the error curves; empty for none.
    """
    if name == "none":
        return []
    if acts == "weights":
        return [arena.best_under(factors or [1.0] * arena.groups, acts)]
    names = [name]
    if name == "best":
        possible = {"greedy": bool(arena.curves()), "global_l1": arena.scores is not None}
        names = [own for own in STARTS if possible.get(own, True)]
    kinds = [AGENTS[own] for own in names]
    found = [arena.ratios(kind.allocate(arena)) for kind in kinds if kind.allocate is not None]
    return list(dict.fromkeys(found))


def _settings(
    kind: AgentKind, config: AgentConfig, guide: Actions = (), factors: tuple[float, ...] = ()
) -> Any:
    """Fill an agent's settings from the configuration's fields of the same names."""
    if kind.settings is None:
        return None
    given = {"guide": guide, "factors": factors}
    names = [field.name for field in fields(kind.settings) if field.name not in given]
    if missing := [name for name in names if not hasattr(config, name)]:
        raise SettingError(
            f"agent.name is {config.name!r}, but agent.{missing[0]} is not set; use agent=NAME"
        )
    values: Mapping[str, Any] = {name: getattr(config, name) for name in names}
    values = {**values, **{name: given[name] for name in given if _has(kind.settings, name)}}
    frozen = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return _checked(kind.settings, **frozen)


def _has(settings: type[Any] | None, name: str) -> bool:
    return settings is not None and name in {field.name for field in fields(settings)}


def _checked(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Turn a ``ValueError`` of an agent into a ``SettingError``."""
    try:
        return call(*arguments, **options)
    except ValueError as error:
        raise SettingError(str(error)) from error
