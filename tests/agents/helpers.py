"""Environments that are stepped at the same time, and what a test reads off an agent."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from agents.offpolicy.ddpg import AMCDDPG
from tests.fakes import FakeNetwork, fake_problem

OPTIMUM = (0.9, 0.3, 0.9, 0.3, 0.9, 0.3)


class Pausing(gym.Wrapper):
    """Sleeps before every step and notes the thread that made it."""

    def __init__(self, env: gym.Env, seconds: Sequence[float]) -> None:
        super().__init__(env)
        self._seconds = list(seconds)
        self.threads: list[int] = []

    def step(self, action: np.ndarray) -> Any:
        """Take a step after the next pause."""
        self._seconds.append(self._seconds.pop(0))
        time.sleep(self._seconds[-1])
        self.threads.append(threading.get_ident())
        return super().step(action)


def problems(count: int, **options: Any) -> tuple[list[gym.Env], list[FakeNetwork]]:
    """Return ``count`` identical environments and their networks."""
    parts = [fake_problem(OPTIMUM, ratio=0.6, round_to=1, **options) for _ in range(count)]
    return [env for env, *_ in parts], [network for _, network, *_ in parts]


def uneven(count: int, seed: int) -> list[gym.Env]:
    """Return ``count`` identical environments whose steps take different times."""
    rng = np.random.default_rng(seed)
    return [Pausing(env, rng.choice([0.0, 0.0, 0.002], 7)) for env in problems(count)[0]]


def updates(model: AMCDDPG) -> int:
    """Return how many gradient steps an agent has taken."""
    return model.logger.name_to_value["train/n_updates"]
