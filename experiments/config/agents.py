"""From the configuration to an agent with its settings bound."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
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
from amc.errors import AmcError
from amc.importance.global_ranking import Importance
from amc.sparsity.scores import check_order as check_weight_order
from envs import Reward
from experiments.config.schema import (
    AgentConfig,
    DDPGConfig,
    EvolutionConfig,
    NetAdaptConfig,
    SparsifyConfig,
    ThompsonConfig,
    TPEConfig,
)

Search = Callable[[Sequence[gym.Env], OnEpisode], SearchResult]
Rank = Callable[[Importance], Scores]
Curves = Callable[[], Errors]

ALLOCATIONS = ("uniform", "deep", "shallow", "global_l1", "global_taylor", "greedy")
"""Agents that do not search: one evaluation."""
RANKED = ("global_l1", "global_taylor")
"""Those of them that rank channels."""
NAMES = ("ddpg", "tpe", "netadapt", "evolution", "thompson", "random", *ALLOCATIONS)
CURVED = ("greedy", "thompson")
"""Agents that cannot do without error curves."""
STARTS = ("greedy", "global_l1", "uniform")
"""What ``guide=best`` chooses from, as far as errors and ranks are known."""
GUIDES = ("none", "uniform", "greedy", "best")
LEARNERS: Mapping[type[AgentConfig], tuple[type, Callable[..., SearchResult]]] = {
    DDPGConfig: (DDPGSettings, ddpg_search),
    TPEConfig: (TPESettings, tpe_search),
}


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
    if (config.name in CURVED or config.guide == "greedy") and order != "obs":
        needs = f"agent={config.name}" if config.name in CURVED else "the greedy allocation"
        raise AmcError(
            f"compressor.order is {order!r}, but {needs} needs order=obs, which estimates what widths cost; "
            "or use agent.guide=uniform with another agent"
        )
    if type(config) in LEARNERS:
        _settings(LEARNERS[type(config)][0], config, ())
    if isinstance(config, EvolutionConfig):
        _settings(EvolutionSettings, config, ())
    if isinstance(config, ThompsonConfig):
        _settings(ThompsonSettings, config, ())
    if isinstance(config, NetAdaptConfig):
        _checked(_settings(NetAdaptSettings, config, ()).check, config.episodes)


def check_search(config: AgentConfig, reward: Reward) -> None:
    """Refuse an agent that cannot search here or under this reward.

    Raises:
        AmcError: says what is missing or does not go together.
    """
    if isinstance(config, TPEConfig):
        _checked(import_optuna)
    if isinstance(config, NetAdaptConfig | ThompsonConfig) and not reward.enforces_budget:
        raise AmcError(
            f"agent={config.name} goes by the budget, but reward={reward.name} enforces none; use "
            "reward=accuracy or agreement"
        )


def check_sparsify(config: SparsifyConfig, agent: AgentConfig, reward: Reward) -> None:
    """Refuse rounds of fine-grained pruning that make no sense, or an agent that looks at channels only.

    Raises:
        AmcError: says which setting.
    """
    check_weight_order(config.order)
    if not 0 < config.min_density <= 1:
        raise AmcError(f"sparsify.min_density is {config.min_density}; expected a share in (0, 1]")
    falling = sorted(set(config.densities), reverse=True)
    if not falling or falling != config.densities or falling[0] > 1 or falling[-1] < config.min_density:
        raise AmcError(
            f"sparsify.densities is {config.densities}; expected falling shares of the weights, from at most "
            f"1 to at least sparsify.min_density={config.min_density}"
        )
    if agent.name in RANKED:
        raise AmcError(f"agent={agent.name} ranks channels, but stage sparsify decides single weights")
    if not reward.enforces_budget:
        raise AmcError(
            f"reward={reward.name} enforces no budget, but stage sparsify has to meet sparsify.densities; "
            "use reward=accuracy or agreement"
        )


def episodes_of(config: AgentConfig) -> int:
    """Return how many episodes an agent will run."""
    return 1 if config.name in ALLOCATIONS else config.episodes


def make_agent(
    config: AgentConfig,
    space: WidthSpace,
    budget: Budget,
    errors: Curves,
    seed: int,
    relaxed_env: Callable[[], gym.Env],
    scores: Rank | None,
    ceiling: Callable[[], float],
) -> Search:
    """Bind an agent's settings; ``check_agent`` has been called.

    Args:
        errors: gives the groups' errors at every width (``Compressor.errors``) to those that use them.
        relaxed_env: makes an environment that does not enforce the budget.
        scores: ranks the channels of the whole network (``amc.importance.global_ranking``); None where there
            are no channels.
        ceiling: gives the return of the network that nothing was taken from.
    """
    if config.name in ALLOCATIONS:
        widths = _allocated(config.name, space, budget, errors, scores)
        return partial(fixed_search, name=config.name, actions=_shares(space, widths))
    own = partial(_guided, config, space, budget, errors, relaxed_env, ceiling)
    start = "none" if config.name == "random" else config.guide  # what only draws begins nowhere
    guides = _guides(start, space, budget, errors, scores)
    if len(guides) < 2:
        return partial(_seeded, own(guides[0] if guides else ()), config.episodes, seed)
    return partial(_seeded, partial(search_from_best, guides=guides, agent=own), config.episodes, seed)


def _guided(
    config: AgentConfig,
    space: WidthSpace,
    budget: Budget,
    errors: Curves,
    relaxed_env: Callable[[], gym.Env],
    ceiling: Callable[[], float],
    guide: tuple[float, ...],
) -> Agent:
    """Bind a searching agent's settings and its guide."""
    if type(config) in LEARNERS:
        kind, learner = LEARNERS[type(config)]
        return partial(learner, settings=_settings(kind, config, guide), episode_length=len(space.names))
    if isinstance(config, EvolutionConfig):
        return partial(evolution_search, settings=_settings(EvolutionSettings, config, guide))
    if isinstance(config, ThompsonConfig):
        return partial(
            thompson_search,
            allocate=partial(_greedy_under, space, budget, errors),
            losses=partial(_errors_at, space, errors),
            ceiling=ceiling,
            groups=len(space.names),
            settings=_settings(ThompsonSettings, config, guide),
        )
    if isinstance(config, NetAdaptConfig):
        return partial(
            _netadapt,
            relaxed_env=relaxed_env,
            propose=partial(_one_group_smaller, space, budget, errors),
            episode_length=len(space.names),
            target=budget.ratio,
            settings=_settings(NetAdaptSettings, config, guide),
        )
    return random_search


def _allocated(
    name: str,
    space: WidthSpace,
    budget: Budget,
    errors: Curves,
    scores: Rank | None,
) -> tuple[int, ...]:
    match name:
        case "uniform":
            return uniform_widths(space, budget)
        case "deep" | "shallow":
            return ramp_widths(space, budget, shallow=name == "shallow")
        case "global_l1" | "global_taylor":
            assert scores is not None, f"{name} ranks channels"
            return ranked_widths(space, budget, scores("l1" if name == "global_l1" else "taylor"))
        case _:
            return greedy_widths(space, budget, errors())


def _guides(
    name: str,
    space: WidthSpace,
    budget: Budget,
    errors: Curves,
    scores: Rank | None,
) -> list[tuple[float, ...]]:
    """Return the allocations that a search may start from as the actions that carry them out."""
    if name == "none":
        return []
    names = [name]
    if name == "best":
        known = {"greedy": bool(errors()), "global_l1": scores is not None}
        names = [own for own in STARTS if known.get(own, True)]
    found = [_shares(space, _allocated(own, space, budget, errors, scores)) for own in names]
    return list(dict.fromkeys(found))


def _shares(space: WidthSpace, widths: Sequence[int]) -> tuple[float, ...]:
    return tuple(width / dense for width, dense in zip(widths, space.dense, strict=True))


def _one_group_smaller(
    space: WidthSpace, budget: Budget, errors: Curves, actions: Sequence[float], share: float
) -> list[tuple[float, ...]]:
    """Return the actions of the networks that meet a share of the dense cost by one group alone."""
    widths = [space.nearest(group, action) for group, action in enumerate(actions)]
    networks = one_group_smaller(space, budget.cost, share * budget.dense_cost, widths, errors())
    return [_shares(space, network) for network in networks]


def _greedy_under(
    space: WidthSpace, budget: Budget, errors: Curves, factors: Sequence[float]
) -> tuple[float, ...]:
    """Return the actions of the greedy allocation whose error curves are multiplied by factors."""
    curves = errors()
    scaled = {
        name: [factor * error for error in curves[name]]
        for name, factor in zip(space.names, factors, strict=True)
    }
    return _shares(space, greedy_widths(space, budget, scaled))


def _errors_at(space: WidthSpace, errors: Curves, actions: Sequence[float]) -> list[float]:
    """Return each group's error at the width that an action means."""
    curves = errors()
    widths = [space.nearest(group, action) for group, action in enumerate(actions)]
    return [curves[name][width] for name, width in zip(space.names, widths, strict=True)]


def _netadapt(
    envs: Sequence[gym.Env],
    episodes: int,
    seed: int,
    on_episode: OnEpisode,
    *,
    relaxed_env: Callable[[], gym.Env],
    **options: Any,
) -> SearchResult:
    """Run NetAdapt with as many relaxed environments as others."""
    relaxed = [relaxed_env() for _ in envs]
    return netadapt_search(envs, episodes, seed, on_episode, relaxed=relaxed, **options)


def _settings(kind: Callable[..., Any], config: AgentConfig, guide: tuple[float, ...]) -> Any:
    """Fill an agent's settings from the configuration's fields of the same names."""
    values = {f.name: getattr(config, f.name) for f in fields(kind)} | {"guide": guide}  # type: ignore[arg-type]
    if "hidden" in values:
        values["hidden"] = tuple(values["hidden"])
    return _checked(kind, **values)


def _checked(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Turn an agent's refusal into ours."""
    try:
        return call(*arguments, **options)
    except ValueError as error:
        raise AmcError(str(error)) from error


def _seeded(
    search: Callable[..., SearchResult],
    episodes: int,
    seed: int,
    envs: Sequence[gym.Env],
    on_episode: OnEpisode,
) -> SearchResult:
    return search(envs, episodes, seed, on_episode)
