"""AMC's replay buffer: transitions are stored when their episode ends, all with the episode's return."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples

from agents.protocol import bounds

REAL_SHARE = 0.125
"""Share of real transitions in a batch if episodes are imagined too."""


class EpisodeReplayBuffer(ReplayBuffer):
    """Replay buffer with AMC's reward shaping.

    - Every step gets the reward of its episode's last step (AMC section 3.2).
    - The stored action is the executed one (from ``info["actions"]`` of the last step, after rounding and the
      budget), scaled to [-1, 1].
    - Environments that are stepped together end their episodes together; each episode has its own return.
      ``buffer_size`` counts the transitions of all environments.
    - A baseline is subtracted from sampled rewards: the moving average ``b <- b + alpha * (mean(r) - b)`` of
      the sampled batches, which starts at the first batch's mean (AMC eq. 3 and the official code).

    Args:
        store_executed: False stores the requested action instead, as in the official code.
        baseline_alpha: weight of the newest batch in the moving average; 0 switches the baseline off.
        standardise: whether sampled rewards are standardised with the mean and standard deviation of all
            stored returns instead. Returns often differ by thousandths, which is little beside the initial
            errors of a critic.

    Attributes:
        baseline: the moving average; None before the first batch.
    """

    def __init__(
        self,
        *args: Any,
        store_executed: bool = True,
        baseline_alpha: float = 0.5,
        standardise: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._store_executed = store_executed
        self._alpha = baseline_alpha
        self._standardise = standardise
        self.baseline: float | None = None
        self._episode: list[tuple[Any, ...]] = []
        self._first: np.ndarray | None = None
        self._imagined: ReplayBufferSamples | None = None

    def add(
        self,
        obs: np.ndarray,
        next_obs: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """Collect transitions, and store whole episodes once they are done.

        Args:
            obs, next_obs: (envs, features).
            action: (envs, 1), scaled to [-1, 1].
            reward: (envs,); only the one of the last step counts.
            done: (envs,).
            infos: one info an environment.
        """
        self._episode.append((obs, next_obs, action, done, infos))
        if done.any():
            assert done.all(), "environments that are stepped together have episodes of the same length"
            if self._first is None:  # later episodes overwrite it in a full buffer
                self._first = np.array([step[0][0] for step in self._episode], self.observations.dtype)
            for step, (step_obs, step_next, step_action, step_done, step_infos) in enumerate(self._episode):
                if self._store_executed:
                    executed = [self._scaled(info["actions"][step]) for info in infos]
                    step_action = np.array(executed, dtype=action.dtype).reshape(action.shape)
                super().add(step_obs, step_next, step_action, reward, step_done, step_infos)
            self._episode = []

    def _scaled(self, action: float) -> float:
        low, high = bounds(self.action_space)
        return 2.0 * (action - low) / (high - low) - 1.0

    @property
    def first_episode(self) -> np.ndarray:
        """Observations (steps, features) of the first episode."""
        assert self._first is not None
        return self._first

    def imagine(self, observations: np.ndarray, actions: np.ndarray, returns: np.ndarray) -> None:
        """Replace the imagined episodes, which all have the same observations.

        Args:
            observations: (steps, features).
            actions: (episodes, steps), scaled to [-1, 1].
            returns: (episodes,).
        """
        count, steps = actions.shape
        following = np.roll(observations, -1, axis=0)
        parts = (
            np.tile(observations, (count, 1)),
            actions.reshape(-1, 1),
            np.tile(following, (count, 1)),
            np.tile(np.arange(steps) == steps - 1, count)[:, None],
            np.repeat(returns, steps)[:, None],
        )
        tensors = [torch.as_tensor(part, dtype=torch.float32, device=self.device) for part in parts]
        self._imagined = ReplayBufferSamples(*tensors)

    def sample(self, batch_size: int, env: Any = None) -> ReplayBufferSamples:
        """Sample ``batch_size`` transitions whose rewards are less the baseline, or standardised.

        With imagined episodes, ``REAL_SHARE`` of the transitions are real.
        """
        if self._imagined is None:
            return self._valued(super().sample(batch_size, env))
        real = super().sample(max(int(REAL_SHARE * batch_size), 1), env)
        rows = torch.from_numpy(
            np.random.randint(len(self._imagined.rewards), size=batch_size - len(real.rewards))
        )
        pairs = zip(real[:5], self._imagined[:5], strict=True)
        return self._valued(ReplayBufferSamples(*(torch.cat([one, other[rows]]) for one, other in pairs)))

    def _valued(self, batch: ReplayBufferSamples) -> ReplayBufferSamples:
        if self._standardise:
            stored = self.rewards[: self.buffer_size if self.full else self.pos].ravel()
            if self._imagined is not None:
                stored = np.concatenate([stored, self._imagined.rewards.numpy().ravel()])
            spread = max(float(stored.std()), 1e-8)
            return batch._replace(rewards=(batch.rewards - float(stored.mean())) / spread)
        if self._alpha == 0:
            return batch
        mean = float(batch.rewards.mean())
        self.baseline = (
            mean if self.baseline is None else self.baseline + self._alpha * (mean - self.baseline)
        )
        return batch._replace(rewards=batch.rewards - self.baseline)
