"""A vector environment of stable-baselines3 that steps its environments at the same time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from agents.protocol import concurrently


class ThreadedVecEnv(DummyVecEnv):
    """Steps each environment in a thread of its own and resets a finished one, as ``DummyVecEnv`` does.

    Attributes:
        active: only the first ``active`` environments are stepped; the others repeat the results of the
            first. This serves a smaller last batch, after which nothing is learned.
    """

    def __init__(self, envs: Sequence[gym.Env]) -> None:
        super().__init__([partial(_same, env) for env in envs])
        self.active = len(envs)

    def step_wait(self) -> VecEnvStepReturn:
        """Return observations (envs, features), rewards (envs,), dones (envs,) and the infos."""
        calls = [partial(env.step, action) for env, action in zip(self.envs, self.actions, strict=True)]
        stepped = concurrently(calls[: self.active])
        for place in range(self.num_envs):
            observation, reward, terminated, truncated, info = stepped[place if place < self.active else 0]
            done = terminated or truncated
            self.buf_infos[place] = {**info, "TimeLimit.truncated": truncated and not terminated}
            self.buf_rews[place], self.buf_dones[place] = float(reward), done
            if done:
                self.buf_infos[place]["terminal_observation"] = observation
                observation, self.reset_infos[place] = self.envs[place].reset()
            self._save_obs(place, observation)
        return self._obs_from_buf(), np.copy(self.buf_rews), np.copy(self.buf_dones), list(self.buf_infos)


def _same(env: gym.Env) -> gym.Env:
    return env
