"""Channel pruning under a budget, group by group, as a Markov decision process."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from amc.budget.budget import Budget
from amc.budget.widths import WidthSpace
from amc.errors import AmcError
from amc.result import Evaluation
from envs.observation import FEATURES, GroupFeatures, ObservationTable
from envs.reward import Reward


class Network(Protocol):
    """The network that is pruned, as far as the environment needs it."""

    def macs(self, widths: Sequence[int]) -> int:
        """Return the multiply-adds at ``widths``, one a group."""
        ...

    def evaluate(self, widths: Sequence[int]) -> Evaluation:
        """Build and evaluate the network of these widths, one a group."""
        ...


class ChannelPruningEnv(gym.Env[np.ndarray, np.ndarray]):
    """Channel pruning under a budget: ``AMC/ChannelPruning-v0``.

    ## Description

    An episode is one pass over the channel groups of a network, in forward order. A step decides the width
    (number of channels) of one group. The last step evaluates the pruned network. The environment is
    deterministic.

    ## Action Space

    The action is a ``ndarray`` of shape ``(1,)`` and type float32: the share of the group's channels to keep.

    | Num | Action         | Min | Max |
    |-----|----------------|-----|-----|
    | 0   | preserve ratio | 0.0 | 1.0 |

    The ratio is rounded to the nearest allowed width: a multiple of ``round_to`` that keeps at least
    ``min_preserve_ratio`` of the channels, or the full width. If the budget is enforced, the final network is
    at or under it for any sequence of actions:

    - ``fit="scale"``: the last step multiplies all requested ratios by the largest factor that the budget
      allows (``Budget.scale``).
    - ``fit="cut"`` (AMC): every step cuts its width to the largest with which the budget can still be met
      when all later groups are at their minimum (``Budget.cut``).

    ## Observation Space

    The observation is a ``ndarray`` of shape ``(11,)`` and type float32, for the group that is decided next.
    The last observation of an episode shows the last group again, after its decision. Features 0 to 7 are of
    the group's leading layer (the first that produces its channels) and are scaled to [0, 1] by their
    smallest and largest value over all groups.

    | Num | Feature    | Meaning                                          | Unit before scaling | Min | Max |
    |-----|------------|--------------------------------------------------|---------------------|-----|-----|
    | 0   | `t`        | index of the group                               | groups              | 0.0 | 1.0 |
    | 1   | `n`        | output channels                                  | channels            | 0.0 | 1.0 |
    | 2   | `c`        | input channels                                   | channels            | 0.0 | 1.0 |
    | 3   | `h`        | input height                                     | pixels              | 0.0 | 1.0 |
    | 4   | `w`        | input width                                      | pixels              | 0.0 | 1.0 |
    | 5   | `stride`   | stride                                           | pixels              | 0.0 | 1.0 |
    | 6   | `k`        | kernel height                                    | pixels              | 0.0 | 1.0 |
    | 7   | `macs`     | multiply-adds of the leading layer, dense        | multiply-adds       | 0.0 | 1.0 |
    | 8   | `reduced`  | multiply-adds removed so far                     | share of the dense  | 0.0 | 1.0 |
    | 9   | `rest`     | multiply-adds of all layers after it, dense      | share of the dense  | 0.0 | 1.0 |
    | 10  | `previous` | executed preserve ratio of the previous group    | share of channels   | 0.0 | 1.0 |

    ## Rewards

    Zero at every step but the last, whose reward is ``reward(evaluation)`` of the final network, e.g. minus
    its error (``envs.reward``).

    ## Starting State

    The first group with the dense network: ``reduced`` is 0 and ``previous`` is 1. ``seed`` and ``options``
        of
    ``reset`` have no effect.

    ## Episode End

    The episode terminates after the last group. It is never truncated.

    ## Info

    Every step: ``group`` (its name), ``requested`` (the ratio asked for), ``executed`` (the ratio after
    rounding and ``fit="cut"``), ``width``, ``cut`` (channels that ``fit="cut"`` removed) and ``macs_ratio``
    (multiply-adds with the later groups dense, relative to the dense network). With ``fit="scale"`` these are
    the values before scaling. The last step adds ``ratios`` (preserve ratios of the final network, one a
    group), ``actions`` (the same: repeating them gives this network again), ``evaluation`` (its
    ``Evaluation``) and ``return`` (the reward in double precision).

    ## Arguments

    Args:
        network: what is pruned.
        space: the allowed widths of every group.
        budget: the limit, and whether and how it is enforced.
        reward: the score of the final network.
        features: the constant features of the groups, in forward order.
        dense_macs: multiply-adds of the network that ``features`` describe; by default those at the full
            widths of ``network``, which may have been pruned before.

    Raises:
        AmcError: the budget is enforced and even the smallest allowed network exceeds it.

    A network of two layers that is worth its number of channels:

    >>> from types import SimpleNamespace
    >>> import numpy as np
    >>> from amc.budget.budget import make_budget
    >>> from amc.budget.widths import width_space
    >>> from envs import ChannelPruningEnv, GroupFeatures, Reward
    >>> macs = lambda widths: 3 * widths[0] + widths[0] * widths[1]
    >>> network = SimpleNamespace(macs=macs, evaluate=lambda widths: SimpleNamespace(widths=widths))
    >>> space = width_space(["conv1", "conv2"], [16, 32], round_to=4)
    >>> budget = make_budget("macs", 0.5, macs, space.dense, fit="scale")
    >>> layers = [GroupFeatures(0, 16, 3, 8, 8, 1, 1, 48, 512), GroupFeatures(1, 32, 16, 8, 8, 1, 1, 512, 0)]
    >>> env = ChannelPruningEnv(network, space, budget, Reward("size", lambda e: sum(e.widths)), layers)
    >>> observation, info = env.reset()
    >>> observation.shape, info
    ((11,), {'macs_ratio': 1.0})
    >>> _, reward, terminated, _, info = env.step(np.array([0.5], dtype=np.float32))
    >>> reward, terminated, info["width"]
    (0.0, False, 8)
    >>> _, reward, terminated, _, info = env.step(np.array([1.0], dtype=np.float32))
    >>> reward, terminated, info["evaluation"].widths
    (40.0, True, (8, 32))

    ## Version History

    * v0: Initial version. Results moved once: ``fit="scale"`` came later and became the default of the
      configuration; ``fit="cut"`` gives the earlier results. The version rises with the next change that
      moves results.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 - Gymnasium's own interface

    def __init__(
        self,
        network: Network,
        space: WidthSpace,
        budget: Budget,
        reward: Reward,
        features: Sequence[GroupFeatures],
        dense_macs: float | None = None,
    ) -> None:
        budget.check_feasible(space)
        self._network = network
        self._space = space
        self._budget = budget
        self._fit = budget.fit if budget.enforced else None
        self._reward = reward
        self._dense_macs = network.macs(space.dense)
        self._observe = ObservationTable(features, dense_macs or self._dense_macs)
        self._wanted: list[float] = []
        self._widths: list[int] = []
        self.observation_space = spaces.Box(0.0, 1.0, (len(FEATURES),), np.float32)
        self.action_space = spaces.Box(0.0, 1.0, (1,), np.float32)

    @property
    def episode_length(self) -> int:
        """Steps of every episode: the number of channel groups."""
        return len(self._space.names)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict]:
        """Start a pass over the dense network; return the observation (11,) and ``macs_ratio``."""
        super().reset(seed=seed)
        self._wanted, self._widths = [], []
        return self._observe(0, 1.0, 1.0), {"macs_ratio": 1.0}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Decide the width of the next group; the last step evaluates the network.

        Args:
            action: preserve ratio (1,); values outside [0, 1] are clipped.

        Returns:
            Observation (11,), reward, terminated, truncated (always False) and info.

        Raises:
            ResetNeeded: the episode has ended.
            AmcError: the action is NaN, or the reward cannot score the network.
        """
        group = len(self._widths)
        if group == self.episode_length:
            raise gym.error.ResetNeeded("the episode has ended; call reset() before step()")
        ratio = requested_of(action, self._space.names[group], 0.0, 1.0)
        requested = self._space.nearest(group, ratio)
        cuts = self._fit == "cut"
        width = self._budget.cut(self._space, self._widths, requested) if cuts else requested
        self._wanted.append(ratio)
        self._widths.append(width)
        executed = width / self._space.dense[group]
        macs_ratio = self._network.macs((*self._widths, *self._space.dense[group + 1 :])) / self._dense_macs
        info: dict[str, Any] = {
            "group": self._space.names[group],
            "requested": ratio,
            "executed": executed,
            "width": width,
            "cut": requested - width,
            "macs_ratio": macs_ratio,
        }
        terminated = group + 1 == self.episode_length
        reward = self._finish(info) if terminated else 0.0
        observation = self._observe(min(group + 1, self.episode_length - 1), macs_ratio, executed)
        return observation, reward, terminated, False, info

    def _finish(self, info: dict[str, Any]) -> float:
        widths = tuple(self._widths)
        if self._fit == "scale":
            widths = self._budget.scale(self._space, self._wanted)
        info.update(judged(self._network, self._space, self._reward, widths))
        info["actions"] = info["ratios"]
        return float(info["return"])


def requested_of(action: np.ndarray, group: str, low: float, high: float) -> float:
    """Return the number that an action (1,) requests, clipped to its range.

    Args:
        action: what an agent has given.
        group: name of the group that it is for.
        low, high: the range.

    Raises:
        AmcError: it is NaN, which no clip removes and which would give some network all the same.
    """
    value = float(np.asarray(action, dtype=np.float64).reshape(-1)[0])
    if math.isnan(value):
        raise AmcError(
            f"the action for group {group!r} is NaN; expected a number from {low:g} to {high:g}; likely "
            "cause: the agent's own networks have diverged; lower its learning rate"
        )
    return float(np.clip(value, low, high))


def judged(network: Network, space: WidthSpace, reward: Reward, widths: tuple[int, ...]) -> dict[str, Any]:
    """Evaluate the network at the end of an episode; return ``ratios``, ``evaluation`` and ``return``.

    Raises:
        AmcError: the reward cannot score the network.
    """
    evaluation = network.evaluate(widths)
    ratios = tuple(width / dense for width, dense in zip(widths, space.dense, strict=True))
    return {"ratios": ratios, "evaluation": evaluation, "return": reward(evaluation)}


def make_channel_pruning(factory: Callable[[], ChannelPruningEnv]) -> ChannelPruningEnv:
    """Entry point of ``gymnasium.make("AMC/ChannelPruning-v0", factory=...)``.

    It takes a factory instead of the network, since Gymnasium's wrappers deep-copy the arguments of ``make``.
    """
    return factory()
