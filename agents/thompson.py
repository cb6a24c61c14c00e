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
from agents.checks import POSITIVE, validate
from agents.protocol import Episode, OnEpisode, SearchResult, batches, better, rollouts

Actions = tuple[float, ...]
Allocate = Callable[[Sequence[float]], Actions]
"""(G,) factors of the groups' error curves -> (G,) preserve ratios that are best under them."""
Losses = Callable[[Sequence[float]], Sequence[float]]
"""(G,) executed preserve ratios -> (G,) errors of the groups, by their curves."""

LEAST_FACTOR = 0.05
"""Smallest factor. Under a factor of zero or less a group would be pruned to its minimum."""
DRAWS = 10
"""How often factors are drawn, each time with a wider spread, until their allocation is a new one."""


@dataclass(frozen=True)
class ThompsonSettings:
    """Hyper-parameters.

    Attributes:
        prior: standard deviation of the factors' prior, whose mean is 1.
        noise: standard deviation of the observation noise, as a share of the first episode's loss.
        guide: the first episode's allocation; empty for the best one under the curves as they are.

    Raises:
        ValueError: names an impossible setting, its value and what is expected.
    """

    prior: float = field(default=0.3, metadata=POSITIVE)
    noise: float = field(default=0.02, metadata=POSITIVE)
    guide: Actions = ()

    def __post_init__(self) -> None:
        validate(self)


class Belief:
    """Normal posterior of the groups' factors: Bayesian linear regression of losses on the curves' errors."""

    def __init__(self, groups: int, settings: ThompsonSettings) -> None:
        self._noise = settings.noise
        self._precision = np.eye(groups) / settings.prior**2
        self._moment = self._precision @ np.ones(groups)

    def learn(self, errors: np.ndarray, loss: float) -> None:
        """Update with one network: its groups' errors (G,) by the curves and its loss, in the same unit."""
        self._precision += np.outer(errors, errors) / self._noise**2
        self._moment += errors * loss / self._noise**2

    def draw(self, generator: np.random.Generator, spread: float) -> np.ndarray:
        """Draw factors (G,); ``spread`` multiplies the standard deviation."""
        root = np.linalg.cholesky(self._precision)  # of the inverse covariance
        mean = np.linalg.solve(self._precision, self._moment)
        shift = np.linalg.solve(root.T, generator.standard_normal(len(mean)))
        return np.maximum(mean + spread * shift, LEAST_FACTOR)


def thompson_search(
    envs: Sequence[gym.Env],
    episodes: int,
    seed: int,
    on_episode: OnEpisode,
    *,
    allocate: Allocate,
    losses: Losses,
    ceiling: Callable[[], float],
    groups: int,
    settings: ThompsonSettings,
) -> SearchResult:
    """Search among allocations that are best under some factors; see ``agents.protocol.Agent``.

    The loss of a network is ``ceiling()`` minus its return. All episodes of a batch are drawn from the same
    posterior.

    Args:
        allocate: gives the best allocation under factors.
        losses: gives the groups' errors of an allocation.
        ceiling: gives the return of the dense network.
        groups: number of groups G, which is the number of steps of an episode.
        settings: the hyper-parameters.
    """
    generator = np.random.default_rng(seed)
    belief = Belief(groups, settings)
    scale: tuple[float, float] | None = None  # normalises errors and losses: both are 1 for the first network
    met: set[Actions] = set()
    best: Episode | None = None
    for batch in batches(episodes, len(envs)):
        proposals: list[Actions] = []
        for index in batch:
            if index == 0:
                proposals.append(settings.guide or allocate([1.0] * groups))
            else:
                proposals.append(_unmet(belief, allocate, met, generator))
            met.add(proposals[-1])
        for episode in rollouts(envs, [carry_out(actions) for actions in proposals], batch.start, "search"):
            on_episode(episode)
            best = better(best, episode)
            errors, loss = np.array(losses(episode.executed)), ceiling() - episode.value
            if scale is None:
                scale = max(float(errors.sum()), 1e-12), max(loss, 1e-12)
            belief.learn(errors / scale[0], loss / scale[1])
    assert best is not None
    return SearchResult("thompson", episodes, best)


def _unmet(belief: Belief, allocate: Allocate, met: set[Actions], generator: np.random.Generator) -> Actions:
    """Draw an allocation that was not met before; the last of ``DRAWS`` if there is none."""
    actions: Actions = ()
    for attempt in range(DRAWS):
        actions = allocate(belief.draw(generator, 1.5**attempt).tolist())
        if actions not in met:
            break
    return actions
