"""A world model for DDPG: allocations are cheap to imagine once their costs are believed to be known.

A ``Belief`` predicts the loss of any allocation. After every real episode the actor is tried on imagined ones
around its present policy, whose returns are predicted, and actor and critic learn from these too
(Sutton, Dyna, 1991; Janner et al., "When to Trust Your Model", NeurIPS 2019). Real episodes explore where the
belief is wide: their actions are the actor's, shifted by a draw from the posterior (Thompson 1933).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from agents.belief import LEAST_FACTOR, Belief
from agents.offpolicy.replay import EpisodeReplayBuffer
from agents.offpolicy.settings import DDPGSettings
from agents.protocol import Episode

Actions = tuple[float, ...]


@dataclass(frozen=True)
class World:
    """What an agent may know of its environment without running it.

    Attributes:
        imagine: (N, G) actions in [0, 1] -> the (N, G) actions that would be executed, and the (N, G) errors
            of the allocations that result.
        actions: (G,) factors of the errors -> (G,) actions of the allocation that is best under them.
        errors: an episode -> (G,) errors of its allocation.
        ceiling: an episode -> the return of an allocation without errors, at the costs of the episode's.
    """

    imagine: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    actions: Callable[[Sequence[float]], Actions]
    errors: Callable[[Episode], Sequence[float] | np.ndarray]
    ceiling: Callable[[Episode], float]


class Imagination:
    """Imagines episodes, and says where real ones should explore.

    Args:
        world: the known part of the environment.
        settings: ``imagined``, ``imagined_sigma``, ``prior`` and ``noise`` are used.
        steps: steps of every episode.
        seed: of all draws.
    """

    def __init__(self, world: World, settings: DDPGSettings, steps: int, seed: int) -> None:
        self._world = world
        self._settings = settings
        self._belief = Belief(steps, prior=settings.prior, noise=settings.noise, mean=settings.factors)
        self._generator = np.random.default_rng(seed)
        self._ceiling: float | None = None

    def learn(self, episode: Episode) -> None:
        """Update the belief with a real episode."""
        self._ceiling = self._world.ceiling(episode)
        self._belief.learn(self._world.errors(episode), self._ceiling - episode.value)

    @property
    def expected(self) -> Actions:
        """The actions (G,) in [0, 1] of the allocation that is best by the belief's mean."""
        return self._world.actions(np.maximum(self._belief.mean, LEAST_FACTOR).tolist())

    def shift(self, spread: float) -> np.ndarray:
        """Draw a direction (G,) to explore in, added to actions in [-1, 1]; ``spread`` scales it."""
        drawn = self._world.actions(self._belief.draw(self._generator, spread).tolist())
        return 2.0 * (np.asarray(drawn) - np.asarray(self.expected))

    def refill(self, replay: EpisodeReplayBuffer, policy: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Replace the imagined episodes of a replay buffer by new ones around a policy.

        All that are within the budget cost about the same: they have the ceiling of the last real episode.

        Args:
            replay: holds at least one real episode.
            policy: observations (G, features) -> actions (G, 1) in [-1, 1].
        """
        assert self._ceiling is not None  # a real episode was learned from
        observations = replay.first_episode
        with torch.no_grad():
            mean = policy(torch.as_tensor(observations)).numpy()[:, 0].astype(np.float64)
        count, sigma = self._settings.imagined, self._settings.imagined_sigma
        noise = sigma * self._generator.standard_normal((count, len(mean)))
        executed, errors = self._world.imagine((np.clip(mean + noise, -1, 1) + 1) / 2)
        replay.imagine(observations, 2.0 * executed - 1.0, self._ceiling - self._belief.predict(errors))
