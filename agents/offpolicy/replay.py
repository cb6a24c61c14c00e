"""AMC's replay: transitions are stored when their episode ends, all with the episode's return."""

from __future__ import annotations

from typing import Any

import numpy as np
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples


class EpisodeReplayBuffer(ReplayBuffer):
    """Replay buffer with AMC's reward shaping.

    - The reward of the last step is given to every step of its episode (AMC section 3.2).
    - The stored action is the executed one (of the last ``info["ratios"]``, after rounding and the budget),
      scaled to [-1, 1]; with ``store_executed=False`` the requested one, as in the official code.
    - Environments that are stepped together end their episodes together; each episode has its own return.
      ``buffer_size`` counts the transitions of all environments.
    - Sampled rewards have a baseline subtracted: the moving average ``b <- b + alpha * (mean(r) - b)`` of the
      sampled batches, started at the first batch's mean (AMC eq. 3 and the official code).

    Args:
        store_executed: see above.
        baseline_alpha: weight of the newest batch in the moving average; 0 switches the baseline off.
        standardise: whether sampled rewards are returns less the mean of all stored ones, in units of their
            standard deviation, instead: returns that differ by thousandths would drown in a fresh critic.
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
        """Hold the transitions back until their episodes are done, then store whole episodes.

        All arguments have one row an environment.
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
        """Sample transitions whose rewards have the baseline subtracted, or are standardised."""
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
