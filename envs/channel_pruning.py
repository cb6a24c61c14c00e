"""Layer-wise channel pruning under a budget as a Markov decision process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from amc.budget.budget import Budget
from amc.budget.widths import WidthSpace
from amc.result import Evaluation
from envs.observation import FEATURES, GroupFeatures, ObservationTable
from envs.reward import Reward


class Network(Protocol):
    """What the environment needs of the physics."""

    def macs(self, widths: Sequence[int]) -> int:
        """Multiply-adds at ``widths``."""
        ...

    def evaluate(self, widths: Sequence[int]) -> Evaluation:
        """Build and judge the network of these widths."""
        ...


class ChannelPruningEnv(gym.Env[np.ndarray, np.ndarray]):
    """``AMC/ChannelPruning-v0``: one step a channel group, in forward order.

    **Observation** ``Box(0, 1, (11,), float32)``: ``envs.observation.FEATURES`` of the group that is decided
    next; the last observation of an episode repeats the last group with what was executed.

    **Action** ``Box(0, 1, (1,), float32)``: preserve ratio wanted for the group. It is rounded to the nearest
    allowed width (multiples of ``round_to``, at least ``min_preserve_ratio``, or the full width). Where a
    budget is enforced the last step makes the network fit: with ``fit="scale"`` all ratios wanted are
    multiplied by the largest factor that the budget allows (``Budget.scale``). With ``fit="cut"`` (AMC) every
    width is cut as it is decided, to the largest with which the budget can still be met when every later
    group is at its minimum. The final network is at or under the budget for any sequence of actions.

    **Reward** zero until the last step, then ``reward.score`` of the evaluated network.

    **Episode end** ``terminated`` after the last group; never truncated.

    **Info** of every step: ``requested`` (ratio asked for), ``executed`` (ratio after rounding and cut),
    ``width``, ``cut`` (channels taken off at once), ``macs_ratio`` (decided groups at their widths, the rest
    dense). With ``fit="scale"`` these are before scaling. Of the last step also ``ratios``, those that the
    network has in the end, ``evaluation``: the ``Evaluation`` of the network, and ``return``.

    The environment is deterministic. Its version moves when learning results could.

    Args:
        network: the physics.
        space: allowed widths.
        budget: the limit; feasibility is checked here.
        reward: score of the finished network.
        features: static features of the groups.

    Raises:
        AmcError: the budget is below the reachable minimum.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 - Gymnasium's own interface

    def __init__(
        self,
        network: Network,
        space: WidthSpace,
        budget: Budget,
        reward: Reward,
        features: Sequence[GroupFeatures],
    ) -> None:
        budget.check_feasible(space)
        self._network = network
        self._space = space
        self._budget = budget
        self._fit = budget.fit if budget.enforced else None
        self._reward = reward
        self._dense_macs = network.macs(space.dense)
        self._observe = ObservationTable(features, self._dense_macs)
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
        """Start a pass over the dense network; ``seed`` and ``options`` change nothing."""
        super().reset(seed=seed)
        self._wanted, self._widths = [], []
        return self._observe(0, 1.0, 1.0), {"macs_ratio": 1.0}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Decide the width of the next group; the last step evaluates the network."""
        group = len(self._widths)
        if group == self.episode_length:
            raise gym.error.ResetNeeded("the episode has ended; call reset() before step()")
        ratio = float(np.clip(np.asarray(action, dtype=np.float64).reshape(-1)[0], 0.0, 1.0))
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
        evaluation = self._network.evaluate(widths)
        value = self._reward(evaluation)
        ratios = tuple(width / dense for width, dense in zip(widths, self._space.dense, strict=True))
        info.update({"ratios": ratios, "evaluation": evaluation, "return": value})
        return value


def make_channel_pruning(factory: Callable[[], ChannelPruningEnv]) -> ChannelPruningEnv:
    """Entry point of ``gymnasium.make("AMC/ChannelPruning-v0", factory=...)``.

    A factory is passed rather than the network: wrappers copy the arguments of ``make`` deeply.
    """
    return factory()
