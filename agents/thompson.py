"""Thompson sampling over what each group's pruning costs (Thompson 1933; Russo et al., arXiv 1707.02038).

Error curves say what every width of a group does to the network, each group alone. What they get wrong is,
to begin with, a factor a group: that many unknowns can be learned from as many episodes. Every episode draws
factors from what is believed of them, carries out the allocation that is best under the draw, and learns from
its return. Where beliefs are unsure draws differ, which explores; where returns have spoken they do not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import gymnasium as gym
import numpy as np

from agents.baselines import carry_out
from agents.protocol import Episode, OnEpisode, SearchResult, batches, better, rollouts

Actions = tuple[float, ...]
Allocate = Callable[[Sequence[float]], Actions]
"""A factor for every group's error curve -> the preserve ratios that are best under them."""
Losses = Callable[[Sequence[float]], Sequence[float]]
"""Executed preserve ratios -> every group's error at its ratio, by its curve."""

LEAST_FACTOR = 0.05
"""Of an error: a group that loses nothing, or less, would be pruned to nothing."""
DRAWS = 10
"""How often factors are drawn for an allocation that was not met before, ever more widely."""


@dataclass(frozen=True)
class ThompsonSettings:
    """Hyper-parameters.

    Attributes:
        prior: standard deviation of the groups' factors around 1 before anything is learned.
        noise: standard deviation of what factors cannot explain, as a share of the first episode's loss.
        guide: an allocation to begin with; empty for that of the curves as they are.
    """

    prior: float = 0.3
    noise: float = 0.02
    guide: Actions = ()

    def __post_init__(self) -> None:
        """Refuse values that no search can use.

        Raises:
            ValueError: names the setting, what it is and what is expected.
        """
        for name in ("prior", "noise"):
            if getattr(self, name) <= 0:
                raise ValueError(f"agent.{name} is {getattr(self, name)}; expected a positive number")


class _Belief:
    """Normal belief about the groups' factors: Bayesian linear regression of losses on curves' errors."""

    def __init__(self, groups: int, settings: ThompsonSettings) -> None:
        self._noise = settings.noise
        self._precision = np.eye(groups) / settings.prior**2
        self._moment = self._precision @ np.ones(groups)

    def learn(self, errors: np.ndarray, loss: float) -> None:
        """Take in one network: its groups' errors (G,) and its loss, in the same unit."""
        self._precision += np.outer(errors, errors) / self._noise**2
        self._moment += errors * loss / self._noise**2

    def draw(self, generator: np.random.Generator, spread: float) -> np.ndarray:
        """Return factors (G,); ``spread`` widens the belief."""
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

    The loss of a network is what its return lacks to ``ceiling``. All of a batch is drawn from the same
    belief.

    Args:
        ceiling: return of the network that nothing was taken from.
        groups: steps of an episode.
    """
    generator = np.random.default_rng(seed)
    belief = _Belief(groups, settings)
    scale: tuple[float, float] | None = None  # of errors and losses: both are 1 for the first network
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


def _unmet(belief: _Belief, allocate: Allocate, met: set[Actions], generator: np.random.Generator) -> Actions:
    """Draw an allocation that was not met before, if one comes up."""
    actions: Actions = ()
    for attempt in range(DRAWS):
        actions = allocate(belief.draw(generator, 1.5**attempt).tolist())
        if actions not in met:
            break
    return actions
