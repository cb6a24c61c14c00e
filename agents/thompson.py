"""Thompson sampling over the cost of pruning each group (Thompson 1933; Russo et al., arXiv 1707.02038).

An error curve gives the error of every width of a group, with all other groups whole. The model is that
each curve is wrong by one factor, so there are as many unknowns as groups. Every episode draws factors from
the posterior, carries out the allocation that is best under them, and updates the posterior with its
return. Draws vary where the posterior is wide, which explores, and agree where returns have narrowed it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import gymnasium as gym
import numpy as np

from agents.baselines import carry_out
from agents.belief import Belief
from agents.checks import POSITIVE, validate
from agents.protocol import Episode, OnEpisode, SearchResult, batches, better, rollouts

Actions = tuple[float, ...]
Allocate = Callable[[Sequence[float]], Actions]
"""(G,) factors of the groups' error curves -> (G,) actions of the allocation that is best under them."""
Network = tuple[float, ...]
"""(G,) preserve ratio of each group."""
Errors = Callable[[Episode], Sequence[float] | np.ndarray]
"""An episode -> (G,) errors of the groups of its network, by their curves."""

DRAWS = 10
"""How often factors are drawn, each time with a wider spread, until their network is a new one."""


@dataclass(frozen=True)
class ThompsonSettings:
    """Hyper-parameters.

    Attributes:
        prior: standard deviation of the factors' prior, relative to its mean.
        noise: standard deviation of the observation noise, as a share of the first episode's loss.
        guide: the first episode's allocation; empty for the best one under the prior's mean.
        factors: mean of the prior, one factor a group (``agents.transfer``); empty for 1 each.

    Raises:
        ValueError: names an impossible setting, its value and what is expected.
    """

    prior: float = field(default=0.3, metadata=POSITIVE)
    noise: float = field(default=0.02, metadata=POSITIVE)
    guide: Actions = ()
    factors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        validate(self)


def thompson_search(
    envs: Sequence[gym.Env],
    episodes: int,
    seed: int,
    on_episode: OnEpisode,
    *,
    allocate: Allocate,
    network: Callable[[Sequence[float]], Network],
    errors: Errors,
    ceiling: Callable[[Episode], float],
    groups: int,
    settings: ThompsonSettings,
) -> SearchResult:
    """Search among allocations that are best under some factors; see ``agents.protocol.Agent``.

    The loss of a network is its ``ceiling`` minus its return. All episodes of a batch are drawn from the same
    posterior.

    Args:
        allocate: gives the best allocation under factors.
        network: gives the network of that allocation; many factors have the same one.
        errors: gives the groups' errors of an episode's network.
        ceiling: gives what a network without errors would return at the costs of an episode's network.
        groups: number of groups G, which is the number of steps of an episode.
        settings: the hyper-parameters.
    """
    generator = np.random.default_rng(seed)
    belief = Belief(groups, prior=settings.prior, noise=settings.noise, mean=settings.factors)
    met: set[Network] = set()
    best: Episode | None = None
    for batch in batches(episodes, len(envs)):
        proposals: list[Actions] = []
        for index in batch:
            if index == 0:
                proposals.append(settings.guide or allocate(settings.factors or [1.0] * groups))
            else:
                factors, drawn = _unmet(belief, network, met, generator)
                met.add(drawn)
                proposals.append(allocate(factors))
        for episode in rollouts(envs, [carry_out(actions) for actions in proposals], batch.start, "search"):
            on_episode(episode)
            best = better(best, episode)
            met.add(episode.network)
            belief.learn(errors(episode), ceiling(episode) - episode.value)
    assert best is not None
    return SearchResult("thompson", episodes, best)


def _unmet(
    belief: Belief,
    network: Callable[[Sequence[float]], Network],
    met: set[Network],
    generator: np.random.Generator,
) -> tuple[list[float], Network]:
    """Draw factors (G,) whose best network was not met before, or the last of ``DRAWS``; return both."""
    for attempt in range(DRAWS):
        factors = belief.draw(generator, 1.5**attempt).tolist()
        if (drawn := network(factors)) not in met:
            break
    return factors, drawn
