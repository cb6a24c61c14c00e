"""Statistics over seeds: interquartile mean, bootstrap intervals, rank correlation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Statistic = Callable[[np.ndarray], np.ndarray]
"""(..., n) samples to (...,) values."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def interquartile_mean(samples: np.ndarray) -> np.ndarray:
    """Mean of the middle half along the last axis: samples at the edge of it count in part.

    Agarwal et al., Deep Reinforcement Learning at the Edge of the Statistical Precipice (NeurIPS 2021).
    """
    ordered = np.sort(samples, axis=-1)
    count = ordered.shape[-1]
    edges = np.clip(np.arange(count + 1) / count, 0.25, 0.75)
    return (ordered * np.diff(edges)).sum(-1) / 0.5


def bootstrap(
    samples: Sequence[float],
    statistic: Statistic = interquartile_mean,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
) -> Interval:
    """Percentile bootstrap of one group of runs; the resampling is seeded.

    Raises:
        ValueError: no samples.
    """
    values = np.asarray(samples, dtype=np.float64)
    if not values.size:
        raise ValueError("no samples")
    drawn = np.random.default_rng(0).integers(len(values), size=(resamples, len(values)))
    return _interval(float(statistic(values)), statistic(values[drawn]), confidence)


def bootstrap_difference(
    samples: Sequence[float],
    others: Sequence[float],
    statistic: Statistic = interquartile_mean,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
) -> Interval:
    """Interval of ``statistic(samples) - statistic(others)``, both groups resampled independently."""
    generator = np.random.default_rng(0)
    point, spread = 0.0, np.zeros(resamples)
    for sign, group in ((1, samples), (-1, others)):
        values = np.asarray(group, dtype=np.float64)
        drawn = generator.integers(len(values), size=(resamples, len(values)))
        point += sign * float(statistic(values))
        spread += sign * statistic(values[drawn])
    return _interval(point, spread, confidence)


def _interval(value: float, spread: np.ndarray, confidence: float) -> Interval:
    tail = 50 * (1 - confidence)
    low, high = np.percentile(spread, [tail, 100 - tail])
    return Interval(value, float(low), float(high))


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's rank correlation; ties share their mean rank.

    Raises:
        ValueError: fewer than two pairs, or a side that does not vary.
    """
    if len(one) < 2:
        raise ValueError(f"{len(one)} pairs; a correlation needs at least 2")
    ranks = [_ranks(np.asarray(values, dtype=np.float64)) for values in (one, other)]
    if any(np.ptp(rank) == 0 for rank in ranks):
        raise ValueError("all values are equal; there is nothing to correlate")
    return float(np.corrcoef(ranks)[0, 1])


def bootstrap_correlation(
    one: Sequence[float], other: Sequence[float], *, confidence: float = 0.95, resamples: int = 2_000
) -> Interval:
    """Percentile bootstrap of ``rank_correlation`` over pairs; draws without variation are left out.

    Raises:
        ValueError: as ``rank_correlation``.
    """
    pairs = np.asarray([one, other], dtype=np.float64)
    generator = np.random.default_rng(0)
    drawn = (pairs[:, generator.integers(len(one), size=len(one))] for _ in range(resamples))
    spread = [rank_correlation(*draw) for draw in drawn if np.ptp(draw, axis=1).all()]
    return _interval(rank_correlation(one, other), np.asarray(spread), confidence)


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]
