"""Channel pruning as an allocation: each action weights the error curve of one group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from amc.budget.allocation import Errors
from amc.budget.budget import Budget
from amc.budget.weighing import WeightedAllocation
from amc.budget.widths import WidthSpace
from amc.errors import SettingError
from envs.channel_pruning import Network, judged, requested_of
from envs.observation import CURVE_FEATURES, GroupFeatures, curve_observations
from envs.reward import Reward

SPAN = 2.0
"""Log-weight of the action 1: a curve counts from 1/7 to 7 times as much as it says."""


def weights_of(actions: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return the weights (G,) of the error curves under actions in [-1, 1]: ``exp(SPAN * action)``."""
    weights: np.ndarray = np.exp(SPAN * np.asarray(actions, dtype=np.float64))
    return weights


def actions_of(weights: Sequence[float]) -> np.ndarray:
    """Return the actions (G,) that execute ``weights`` up to a common factor; see ``centred``."""
    return centred(np.log(np.asarray(weights, dtype=np.float64)) / SPAN)


def centred(actions: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return the actions (G,) that are executed: of mean 0, shrunk by one factor into [-1, 1] if needed.

    A common factor of all weights changes no network, so this removes the one direction without effect.
    Actions that this function returned are returned unchanged.
    """
    found = np.asarray(actions, dtype=np.float64)
    found = found - found.mean()
    return found / max(1.0, float(np.abs(found).max(initial=0.0)))


class ChannelWeightingEnv(gym.Env[np.ndarray, np.ndarray]):
    """Channel pruning as an allocation under a budget: ``AMC/ChannelWeighting-v0``.

    ## Description

    An episode is one pass over the channel groups of a network, in forward order. A step says how much the
    output error of one group counts. The last step allocates the channels: it finds the widths within the
    budget whose weighted sum of errors is least (``amc.budget.weighing``), and evaluates the pruned network.
    The environment is deterministic, and no observation depends on an action.

    A preserve ratio (``AMC/ChannelPruning-v0``) is executed only up to a common factor and after rounding. A
    weight is executed as it is: every allocation spends the whole budget in whole channels.

    ## Action Space

    The action is a ``ndarray`` of shape ``(1,)`` and type float32.

    | Num | Action                                             | Min  | Max |
    |-----|----------------------------------------------------|------|-----|
    | 0   | logarithm of the group's weight, in units of SPAN  | -1.0 | 1.0 |

    The weight is ``exp(SPAN * action)`` with ``SPAN`` = 2. All zeros give the greedy allocation. A common
    factor of all weights changes nothing; so the executed actions have mean 0 (``centred``). Every sequence
    of actions gives a network at or under the budget.

    ## Observation Space

    The observation is a ``ndarray`` of shape ``(12,)`` and type float32, for the group that is decided next.
    The last observation of an episode shows the last group again. Features 0 to 7 are of the group's leading
    layer and are scaled to [0, 1] by their smallest and largest value over all groups.

    | Num | Feature    | Meaning                                                  | Unit before scaling |
    |-----|------------|----------------------------------------------------------|---------------------|
    | 0   | `t`        | index of the group                                       | groups              |
    | 1   | `n`        | output channels                                          | channels            |
    | 2   | `c`        | input channels                                           | channels            |
    | 3   | `h`        | input height                                             | pixels              |
    | 4   | `w`        | input width                                              | pixels              |
    | 5   | `stride`   | stride                                                   | pixels              |
    | 6   | `k`        | kernel height                                            | pixels              |
    | 7   | `macs`     | multiply-adds of the leading layer, dense                | multiply-adds       |
    | 8   | `rest`     | multiply-adds of all layers after it, dense              | share of the dense  |
    | 9   | `greedy`   | preserve ratio under the greedy allocation               | share of channels   |
    | 10  | `error`    | error under the greedy allocation                        | share of all groups |
    | 11  | `saving`   | cost that goes with the group's channels, up to its minimum | share of the dense |

    All lie in [0, 1].

    ## Rewards

    Zero at every step but the last, whose reward is ``reward(evaluation)`` of the network, e.g. minus its
    error (``envs.reward``).

    ## Starting State

    The first group. ``seed`` and ``options`` of ``reset`` have no effect.

    ## Episode End

    The episode terminates after the last group. It is never truncated.

    ## Info

    Every step: ``group`` (its name) and ``requested`` (the action). The last step adds ``actions`` (the
    executed ones, one a group), ``ratios`` (preserve ratios of the network, one a group), ``evaluation`` (its
    ``Evaluation``) and ``return`` (the reward in double precision).

    ## Arguments

    Args:
        network: what is pruned.
        space: the allowed widths of every group.
        budget: the limit, which must be enforced.
        reward: the score of the network.
        features: the constant features of the groups, in forward order.
        errors: output error of every group at every width from 0 to dense.
        dense_macs: multiply-adds of the network that ``features`` describe; by default those at the full
            widths of ``network``, which may have been pruned before.

    Raises:
        SettingError: the budget is not enforced, or even the smallest allowed network exceeds it.

    ## Version History

    * v0: Initial version. Actions are weights of error curves, where ``AMC/ChannelPruning-v0`` has preserve
      ratios.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 - Gymnasium's own interface

    def __init__(
        self,
        network: Network,
        space: WidthSpace,
        budget: Budget,
        reward: Reward,
        features: Sequence[GroupFeatures],
        errors: Errors,
        dense_macs: float | None = None,
    ) -> None:
        if not budget.enforced:
            raise SettingError("weights of error curves need an enforced budget; without one, use ratios")
        budget.check_feasible(space)
        self._network = network
        self._space = space
        self._reward = reward
        self._allocate = WeightedAllocation(space, budget, errors)
        whole = dense_macs or network.macs(space.dense)
        self._observations = curve_observations(features, whole, space, budget, self._allocate)
        self._requested: list[float] = []
        self.observation_space = spaces.Box(0.0, 1.0, (len(CURVE_FEATURES),), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    @property
    def observations(self) -> np.ndarray:
        """The observations (G, 12) of all groups: none depends on an action."""
        return self._observations.copy()

    @property
    def episode_length(self) -> int:
        """Steps of every episode: the number of channel groups."""
        return len(self._space.names)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict]:
        """Start a pass; return the observation (12,) and no info."""
        super().reset(seed=seed)
        self._requested = []
        return self._observations[0].copy(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Weight the next group; the last step evaluates the network.

        Args:
            action: log-weight (1,) in units of ``SPAN``; values outside [-1, 1] are clipped.

        Returns:
            Observation (12,), reward, terminated, truncated (always False) and info.

        Raises:
            ResetNeeded: the episode has ended.
            AmcError: the action is NaN, or the reward cannot score the network.
        """
        group = len(self._requested)
        if group == self.episode_length:
            raise gym.error.ResetNeeded("the episode has ended; call reset() before step()")
        requested = requested_of(action, self._space.names[group], -1.0, 1.0)
        self._requested.append(requested)
        info: dict[str, Any] = {"group": self._space.names[group], "requested": requested}
        terminated = group + 1 == self.episode_length
        reward = self._finish(info) if terminated else 0.0
        observation = self._observations[min(group + 1, self.episode_length - 1)].copy()
        return observation, reward, terminated, False, info

    def _finish(self, info: dict[str, Any]) -> float:
        executed = centred(self._requested)
        widths = self._allocate(weights_of(executed.tolist()).tolist())
        info.update(judged(self._network, self._space, self._reward, widths))
        info["actions"] = tuple(executed.tolist())
        return float(info["return"])


def make_channel_weighting(factory: Callable[[], ChannelWeightingEnv]) -> ChannelWeightingEnv:
    """Entry point of ``gymnasium.make("AMC/ChannelWeighting-v0", factory=...)``."""
    return factory()
