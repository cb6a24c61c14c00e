"""The network of an environment that the caller steps."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from amc.errors import SettingError
from amc.result import Evaluation
from envs.channel_pruning import Network


@dataclass(frozen=True)
class OneProcessNetwork:
    """A network that is evaluated in one process alone: another would keep what it finds to itself.

    Attributes:
        network: evaluates, and remembers what was found.
        process: id of the process that it belongs to.
    """

    network: Network
    process: int

    def macs(self, widths: Sequence[int]) -> int:
        """Return the multiply-adds at ``widths``, one a group."""
        return self.network.macs(widths)

    def evaluate(self, widths: Sequence[int]) -> Evaluation:
        """Evaluate the network of these widths, one a group.

        Raises:
            SettingError: this is another process.
        """
        if os.getpid() != self.process:
            raise SettingError(
                "an environment of this task is stepped in another process (AsyncVectorEnv, SubprocVecEnv), "
                "so task.result() would know none of its networks; use gymnasium.vector.SyncVectorEnv or "
                "DummyVecEnv of stable-baselines3"
            )
        return self.network.evaluate(widths)
