"""The problem of one search: its environments, and what an agent may know in addition to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from agents import Episode
from agents.belief import LEAST_FACTOR, Belief
from amc.budget.allocation import Errors, Scores, one_group_smaller, ranked_widths
from amc.budget.budget import Budget
from amc.budget.weighing import WeightedAllocation
from amc.budget.widths import WidthSpace
from amc.errors import AmcError, SettingError, did_you_mean
from amc.result import Evaluation
from envs import ChannelPruningEnv, ChannelWeightingEnv, GroupFeatures, Network, Reward, centred, weights_of
from envs import actions_of as actions_of_weights

if TYPE_CHECKING:  # these import torch
    from agents.transfer import Experience
    from amc.importance.global_ranking import Importance

EXPERIENCE_PRIOR, EXPERIENCE_NOISE = 0.5, 0.02
"""Prior and noise of the belief that is passed on to other networks (``agents.belief.Belief``)."""

Actions = tuple[float, ...]
"""One action for each group, in [0, 1]."""

Acts = Literal["ratios", "weights"]
"""What an action is: the preserve ratio of a group, or the weight of its error curve."""

PruningEnv = ChannelPruningEnv | ChannelWeightingEnv
"""An environment whose actions are one of these."""


@dataclass(frozen=True)
class Arena:
    """A problem to search, and the facts about it that an agent may use in addition to its environments.

    Attributes:
        network: what is pruned.
        space: the widths that groups may take.
        budget: the limits on the widths.
        reward: the score of a network.
        features: the constant features of the groups, in forward order.
        curves: returns the groups' error curves, which may be measured at the first call; {} if there are
            none.
        dense: returns the evaluation of the dense network.
        scores: ranks the channels of the whole network; None if single weights are pruned.
        dense_macs: multiply-adds of the network that ``features`` describe; None for those of ``network`` at
            its full widths.
    """

    network: Network
    space: WidthSpace
    budget: Budget
    reward: Reward
    features: Sequence[GroupFeatures]
    curves: Callable[[], Errors]
    dense: Callable[[], Evaluation]
    scores: Callable[[Importance], Scores] | None = None
    dense_macs: float | None = None

    @property
    def groups(self) -> int:
        """Number of groups: the steps of an episode."""
        return len(self.space.names)

    @property
    def weighable(self) -> bool:
        """Whether actions may be weights of error curves: there are curves, and the budget is enforced."""
        return self.budget.enforced and bool(self.curves())

    def env(self, acts: Acts = "ratios", *, enforced: bool = True) -> PruningEnv:
        """Return a new environment.

        Args:
            acts: what its actions are.
            enforced: whether the budget holds; weights need one.

        Raises:
            SettingError: ``acts`` is something else, or weights are asked for without an enforced budget.
        """
        if acts not in get_args(Acts):
            hint = did_you_mean(acts, get_args(Acts)) if isinstance(acts, str) else ""
            raise SettingError(f"acts is {acts!r}; expected {' or '.join(map(repr, get_args(Acts)))}{hint}")
        budget = self.budget if enforced else replace(self.budget, enforced=False)
        parts = (self.network, self.space, budget, self.reward, self.features)
        if acts == "ratios":
            return ChannelPruningEnv(*parts, self.dense_macs)
        return ChannelWeightingEnv(*parts, self.curves(), self.dense_macs)

    @cached_property
    def allocation(self) -> WeightedAllocation:
        """Finds the widths of the least weighted error."""
        return WeightedAllocation(self.space, self.budget, self.curves())

    @cached_property
    def observations(self) -> np.ndarray:
        """The observations (G, features) of the environment of weights, one for each group."""
        env = self.env("weights")
        assert isinstance(env, ChannelWeightingEnv)
        return env.observations

    def experience(self, episodes: Sequence[Episode]) -> Experience:
        """Return what evaluated networks tell of the error curves: by which factor each is wrong.

        Args:
            episodes: at least one.

        Raises:
            AmcError: as ``ceiling``.
        """
        from agents.transfer import Experience

        belief = Belief(self.groups, prior=EXPERIENCE_PRIOR, noise=EXPERIENCE_NOISE)
        for episode in episodes:
            belief.learn(self.errors_of(episode), self.ceiling(episode) - episode.value)
        return Experience(self.observations, np.maximum(belief.mean, LEAST_FACTOR), belief.deviation)

    @cached_property
    def _whole(self) -> Evaluation:
        return self.dense()

    def ceiling(self, episode: Episode) -> float:
        """Return what the dense network would score if it cost no more than an episode's network.

        What is missing to it is due to the errors of the groups alone. A reward that counts costs puts the
        dense network at its own costs below its candidates.

        Raises:
            AmcError: the reward has no value for it.
        """
        try:
            return self.reward(self._whole.at_costs_of(episode.info["evaluation"]))
        except AmcError as error:
            raise AmcError(
                f"{error}, asked about the dense network at the costs of a pruned one, with which agents "
                "that learn from error curves compare; give it a value there, or use agent=evolution"
            ) from error

    def greedy(self) -> tuple[int, ...]:
        """Return the widths of the least sum of errors."""
        return self.allocation([1.0] * self.groups)

    def ratios(self, widths: Sequence[int]) -> Actions:
        """Return the preserve ratios of ``widths``."""
        return tuple(width / dense for width, dense in zip(widths, self.space.dense, strict=True))

    def best_under(self, factors: Sequence[float], acts: Acts) -> Actions:
        """Return the actions of the best allocation if every error curve is multiplied by its factor."""
        if acts == "ratios":
            return self.ratios(self.allocation(factors))
        return tuple(((actions_of_weights(factors) + 1.0) / 2.0).tolist())

    def errors_of(self, episode: Episode) -> np.ndarray:
        """Return each group's error (G,) at the widths of an episode's network."""
        return self.allocation.errors_at(episode.info["evaluation"].widths)

    def imagine(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the executed actions (N, G) of an environment of weights, and the groups' errors (N, G).

        Args:
            actions: (N, G) requested, in [0, 1].
        """
        executed = np.stack([centred(row) for row in 2.0 * actions - 1.0])
        widths = self.allocation.many(weights_of(executed))
        return (executed + 1.0) / 2.0, np.stack([self.allocation.errors_at(row) for row in widths])

    def one_group_smaller(self, actions: Sequence[float], progress: float) -> list[Actions]:
        """Return the preserve ratios that meet the budget at ``progress`` by making one group smaller."""
        limits = self.budget.eased(progress, self.space.dense).limits
        widths = [self.space.nearest(group, action) for group, action in enumerate(actions)]
        networks = one_group_smaller(self.space, limits, widths, self.curves())
        return [self.ratios(network) for network in networks]

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
