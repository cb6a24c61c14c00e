"""A belief about the costs of an allocation: one unknown factor for each part of a sum of errors.

The errors of the parts, such as the groups of a network, are known up to one factor each. Every evaluated
allocation is one equation: its loss is the factor-weighted sum of its errors, plus noise. Bayesian linear
regression gives the factors' posterior.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LEAST_FACTOR = 0.05
"""Smallest factor. Under a factor of zero or less a part would be given up altogether."""
LEAST_LOSS = 1e-3
"""Smallest unit of losses: an accuracy may lose nothing at first, and later losses would then be huge."""


class Belief:
    """Normal posterior of the factors; errors and losses are in units of the first pair.

    Args:
        parts: number of parts G.
        prior: standard deviation of the factors' prior, relative to its mean.
        noise: standard deviation of the observation noise, as a share of the first loss.
        mean: (G,) mean of the factors' prior; 1 for each if it is empty.
    """

    def __init__(self, parts: int, *, prior: float, noise: float, mean: Sequence[float] = ()) -> None:
        expected = np.asarray(mean or np.ones(parts), dtype=np.float64)
        self._noise = noise
        self._precision = np.diag((prior * expected) ** -2.0)
        self._moment = self._precision @ expected
        self._units: tuple[float, float] | None = None

    def learn(self, errors: Sequence[float] | np.ndarray, loss: float) -> None:
        """Update with one allocation: the errors (G,) of its parts and its loss."""
        found = np.asarray(errors, dtype=np.float64)
        if self._units is None:  # factors have the scale of their prior
            expected = float(found @ self.mean)
            self._units = max(expected, 1e-12), max(loss, LEAST_LOSS)
        row, value = found / self._units[0], loss / self._units[1]
        self._precision += np.outer(row, row) / self._noise**2
        self._moment += row * value / self._noise**2

    @property
    def deviation(self) -> np.ndarray:
        """Posterior standard deviation of each factor (G,)."""
        found: np.ndarray = np.sqrt(np.diag(np.linalg.inv(self._precision)))
        return found

    @property
    def mean(self) -> np.ndarray:
        """Posterior mean of the factors (G,), not clipped."""
        found: np.ndarray = np.linalg.solve(self._precision, self._moment)
        return found

    def draw(self, generator: np.random.Generator, spread: float = 1.0) -> np.ndarray:
        """Draw factors (G,), at least ``LEAST_FACTOR``; ``spread`` multiplies the standard deviation."""
        root = np.linalg.cholesky(self._precision)  # of the inverse covariance
        shift = np.linalg.solve(root.T, generator.standard_normal(len(root)))
        return np.maximum(self.mean + spread * shift, LEAST_FACTOR)

    def predict(self, errors: np.ndarray) -> np.ndarray:
        """Return the expected losses (N,) of allocations with errors (N, G); one must have been learned."""
        assert self._units is not None
        found: np.ndarray = errors @ self.mean * (self._units[1] / self._units[0])
        return found
