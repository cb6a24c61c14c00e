"""AMC's replay buffer: transitions are stored when their episode ends, all with the episode's return."""

from __future__ import annotations

from typing import Any

import numpy as np
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples


class EpisodeReplayBuffer(ReplayBuffer):
    """Replay buffer with AMC's reward shaping.

    - Every step gets the reward of its episode's last step (AMC section 3.2).
    - The stored action is the executed one (from ``info["ratios"]`` of the last step, after rounding and the
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
            for step, (step_obs, step_next, step_action, step_done, step_infos) in enumerate(self._episode):
                if self._store_executed:
                    executed = [2.0 * info["ratios"][step] - 1.0 for info in infos]
                    step_action = np.array(executed, dtype=action.dtype).reshape(action.shape)
                super().add(step_obs, step_next, step_action, reward, step_done, step_infos)
            self._episode = []

    def sample(self, batch_size: int, env: Any = None) -> ReplayBufferSamples:
        """Sample ``batch_size`` transitions whose rewards are less the baseline, or standardised."""
        batch = super().sample(batch_size, env)
        if self._standardise:
            stored = self.rewards[: self.buffer_size if self.full else self.pos]
            spread = max(float(stored.std()), 1e-8)
            return batch._replace(rewards=(batch.rewards - float(stored.mean())) / spread)
        if self._alpha == 0:
            return batch
        mean = float(batch.rewards.mean())
        self.baseline = (
            mean if self.baseline is None else self.baseline + self._alpha * (mean - self.baseline)
        )
        return batch._replace(rewards=batch.rewards - self.baseline)
