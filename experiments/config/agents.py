"""The agents by name, and how the configuration becomes an agent with its settings bound.

A new agent is one file in ``agents``, one row of ``AGENTS`` and one file in ``conf/agent``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

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
    ddpg_search,
    evolution_search,
    fixed_search,
    import_optuna,
    netadapt_search,
    random_search,
    search_from_best,
    thompson_search,
    tpe_search,
)
from amc.budget.allocation import (
    Errors,
    Scores,
    greedy_widths,
    one_group_smaller,
    ramp_widths,
    ranked_widths,
    uniform_widths,
)
from amc.budget.budget import Budget
from amc.budget.widths import WidthSpace
from amc.errors import SettingError
from amc.importance.global_ranking import Importance
from amc.registry import Registry
from envs import Reward
from experiments.config.schema import AgentConfig

Actions = tuple[float, ...]
"""One preserve ratio for each group."""

Search = Callable[[Sequence[gym.Env], OnEpisode], SearchResult]

STARTS = ("greedy", "global_l1", "uniform")
"""Allocations that ``guide=best`` tries, without those that need error curves or ranks if there are none."""
GUIDES = ("none", "uniform", "greedy", "best")
"""Values of ``agent.guide``, the initial allocation of a search."""


@dataclass(frozen=True)
class Knowledge:
    """The facts about a problem that an agent may use in addition to its environments.

    Attributes:
        space: the widths that groups may take.
        budget: the limits on the widths.
        curves: returns the groups' error curves, which may be measured at the first call.
        relaxed_env: creates an environment that does not enforce the budget.
        ceiling: returns the score of the dense network.
        scores: ranks the channels of the whole network; None if single weights are pruned.
    """

    space: WidthSpace
    budget: Budget
    curves: Callable[[], Errors]
    relaxed_env: Callable[[], gym.Env]
    ceiling: Callable[[], float]
    scores: Callable[[Importance], Scores] | None = None

    @property
    def groups(self) -> int:
        """Number of groups: the steps of an episode."""
        return len(self.space.names)

    def actions(self, widths: Sequence[int]) -> Actions:
        """Return the actions that request ``widths``."""
        return tuple(width / dense for width, dense in zip(widths, self.space.dense, strict=True))

    def widths(self, actions: Sequence[float]) -> list[int]:
        """Return the allowed width of each group that is nearest to its action."""
        return [self.space.nearest(group, action) for group, action in enumerate(actions)]

    def greedy(self, factors: Sequence[float] | None = None) -> Actions:
        """Return the greedy allocation.

        Args:
            factors: one number for each group, by which its error curve is multiplied; by default 1.
        """
        curves: Errors = self.curves()
        if factors is not None:
            named = zip(self.space.names, factors, strict=True)
            curves = {name: [factor * error for error in curves[name]] for name, factor in named}
        return self.actions(greedy_widths(self.space, self.budget, curves))

    def errors_at(self, actions: Sequence[float]) -> list[float]:
        """Return each group's error at the width that its action requests."""
        curves = self.curves()
        pairs = zip(self.space.names, self.widths(actions), strict=True)
        return [curves[name][width] for name, width in pairs]

    def one_group_smaller(self, actions: Sequence[float], progress: float) -> list[Actions]:
        """Return the allocations that meet the budget at ``progress`` by making one group smaller."""
        limits, widths = self.budget.eased(progress).limits, self.widths(actions)
        networks = one_group_smaller(self.space, limits, widths, self.curves())
        return [self.actions(network) for network in networks]

    def ranked(self, importance: Importance) -> tuple[int, ...]:
        """Return the allocation by one ranking of all channels.

        Raises:
            SettingError: single weights are pruned, not channels.
        """
        if self.scores is None:
            raise SettingError(
                f"agent=global_{importance} ranks channels, but single weights are pruned here"
            )
        return ranked_widths(self.space, self.budget, self.scores(importance))


@dataclass(frozen=True)
class AgentKind:
    """One agent: exactly one of ``bind`` and ``allocate`` is given.

    Attributes:
        bind: returns the agent from its settings and the knowledge.
        settings: class of the settings; its fields are filled from the configuration.
        allocate: returns the widths of an agent that does not search and needs one evaluation.
        needs_curves: whether the agent needs error curves.
        ranks_channels: whether the agent ranks channels; then it cannot prune single weights.
        needs_budget: whether the agent needs a reward that enforces the budget.
        starts_somewhere: whether a search may start from an allocation (``agent.guide``).
        check: raises if the settings do not fit the number of episodes.
        available: raises if a package is missing.
    """

    bind: Callable[[Any, Knowledge], Agent] | None = None
    settings: type[Any] | None = None
    allocate: Callable[[Knowledge], tuple[int, ...]] | None = None
    needs_curves: bool = False
    ranks_channels: bool = False
    needs_budget: bool = False
    starts_somewhere: bool = True
    check: Callable[[Any, int], None] = lambda settings, episodes: None
    available: Callable[[], object] = lambda: None


def _stepwise(search: Callable[..., SearchResult]) -> Callable[[Any, Knowledge], Agent]:
    """Bind a search that needs the number of steps of an episode."""
    return lambda settings, known: partial(search, settings=settings, episode_length=known.groups)


def _thompson(settings: ThompsonSettings, known: Knowledge) -> Agent:
    return partial(
        thompson_search,
        allocate=known.greedy,
        losses=known.errors_at,
        ceiling=known.ceiling,
        groups=known.groups,
        settings=settings,
    )


def _netadapt(settings: NetAdaptSettings, known: Knowledge) -> Agent:
    def search(envs: Sequence[gym.Env], episodes: int, seed: int, on_episode: OnEpisode) -> SearchResult:
        return netadapt_search(
            envs,
            episodes,
            seed,
            on_episode,
            relaxed=[known.relaxed_env() for _ in envs],
            propose=known.one_group_smaller,
            episode_length=known.groups,
            target=min(limit.ratio for limit in known.budget.limits),
            settings=settings,
        )

    return search


AGENTS: Registry[AgentKind] = Registry(
    "agent",
    {
        "ddpg": AgentKind(_stepwise(ddpg_search), DDPGSettings),
        "tpe": AgentKind(_stepwise(tpe_search), TPESettings, available=import_optuna),
        "netadapt": AgentKind(_netadapt, NetAdaptSettings, needs_budget=True, check=NetAdaptSettings.check),
        "evolution": AgentKind(
            lambda settings, known: partial(evolution_search, settings=settings), EvolutionSettings
        ),
        "thompson": AgentKind(_thompson, ThompsonSettings, needs_curves=True, needs_budget=True),
        "random": AgentKind(lambda settings, known: random_search, starts_somewhere=False),
        "uniform": AgentKind(allocate=lambda known: uniform_widths(known.space, known.budget)),
        "deep": AgentKind(allocate=lambda known: ramp_widths(known.space, known.budget, shallow=False)),
        "shallow": AgentKind(allocate=lambda known: ramp_widths(known.space, known.budget, shallow=True)),
        "global_l1": AgentKind(allocate=lambda known: known.ranked("l1"), ranks_channels=True),
        "global_taylor": AgentKind(allocate=lambda known: known.ranked("taylor"), ranks_channels=True),
        "greedy": AgentKind(
            allocate=lambda known: greedy_widths(known.space, known.budget, known.curves()),
            needs_curves=True,
        ),
    },
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
    if config.episodes < 1:
        raise SettingError(f"agent.episodes is {config.episodes}; expected at least 1")
    if config.warmup_episodes < 0:
        raise SettingError(f"agent.warmup_episodes is {config.warmup_episodes}; expected 0 or more")
    if config.guide not in GUIDES:
        raise SettingError(f"agent.guide is {config.guide!r}; expected one of {', '.join(GUIDES)}")
    if (kind.needs_curves or config.guide == "greedy") and order != "obs":
        needs = f"agent={config.name}" if kind.needs_curves else "the greedy allocation"
        raise SettingError(
            f"compressor.order is {order!r}, but {needs} needs order=obs, which estimates the error of each "
            "width; or use agent.guide=uniform with another agent"
        )
    _checked(kind.check, _settings(kind, config, ()), config.episodes)


def check_search(config: AgentConfig, reward: Reward) -> None:
    """Refuse an agent that cannot search here or under this reward.

    Raises:
        SettingError: a package is missing, or agent and reward do not fit together.
    """
    kind = AGENTS.find(config.name)
    _checked(kind.available)
    if kind.needs_budget and not reward.enforces_budget:
        raise SettingError(
            f"agent={config.name} needs a budget, but reward={reward.name} enforces none; use "
            "reward=accuracy or agreement"
        )


def episodes_of(config: AgentConfig) -> int:
    """Return how many episodes an agent will run."""
    return 1 if config.name in ALLOCATIONS else config.episodes


def make_agent(config: AgentConfig, known: Knowledge, seed: int) -> Search:
    """Return the search of an agent with its settings bound; ``check_agent`` has been called.

    Args:
        config: the section of the agent.
        known: the facts that the agent may use.
        seed: seed of all its random draws.

    Raises:
        SettingError: a setting of the agent is missing or impossible.
    """
    kind = AGENTS.find(config.name)
    if kind.allocate is not None:
        return partial(fixed_search, name=config.name, actions=known.actions(kind.allocate(known)))

    def guided(guide: Actions) -> Agent:
        assert kind.bind is not None
        return kind.bind(_settings(kind, config, guide), known)

    guides = _guides(config.guide, known) if kind.starts_somewhere else []
    search = (
        guided(guides[0] if guides else ())
        if len(guides) < 2
        else partial(search_from_best, guides=guides, agent=guided)
    )
    return lambda envs, on_episode: search(envs, config.episodes, seed, on_episode)


def _guides(name: str, known: Knowledge) -> list[Actions]:
    """Return the actions of the allocations that a search may start from."""
    if name == "none":
        return []
    names = [name]
    if name == "best":
        possible = {"greedy": bool(known.curves()), "global_l1": known.scores is not None}
        names = [own for own in STARTS if possible.get(own, True)]
    kinds = [AGENTS[own] for own in names]
    found = [known.actions(kind.allocate(known)) for kind in kinds if kind.allocate is not None]
    return list(dict.fromkeys(found))


def _settings(kind: AgentKind, config: AgentConfig, guide: Actions) -> Any:
    """Fill an agent's settings from the configuration's fields of the same names."""
    if kind.settings is None:
        return None
    names = [field.name for field in fields(kind.settings) if field.name != "guide"]
    if missing := [name for name in names if not hasattr(config, name)]:
        raise SettingError(
            f"agent.name is {config.name!r}, but agent.{missing[0]} is not set; use agent=NAME"
        )
    values: Mapping[str, Any] = {name: getattr(config, name) for name in names} | {"guide": guide}
    frozen = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return _checked(kind.settings, **frozen)


def _checked(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Turn a ``ValueError`` of an agent into a ``SettingError``."""
    try:
        return call(*arguments, **options)
    except ValueError as error:
        raise SettingError(str(error)) from error
