"""Statistics over seeds: interquartile mean, bootstrap intervals, rank correlation.

``scipy.stats`` is imported where it is needed: it takes a second of CPU time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Statistic = Callable[[np.ndarray], np.ndarray]
"""Samples of shape (..., n) to values of shape (...)."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval, in the unit of the samples."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def interquartile_mean(samples: np.ndarray) -> np.ndarray:
    """Return the mean of the middle half along the last axis, shape (..., n) to (...).

    Samples at the edge of the middle half count in part (Agarwal et al., Deep Reinforcement Learning at the
    Edge of the Statistical Precipice, NeurIPS 2021).
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
    """Return the percentile bootstrap interval of one group of runs; the resampling is seeded.

    Raises:
        ValueError: there are no samples.
    """
    return _bootstrapped([samples], statistic, confidence, resamples)


def interval_text(values: Sequence[float], digits: int = 2) -> str:
    """Return the interquartile mean as text, with its interval if there are several values; "" for none."""
    return spelled(bootstrap(values), len(values), digits) if len(values) else ""


def spelled(interval: Interval, count: int, digits: int = 2) -> str:
    """Return an estimate from ``count`` values as text, with its interval if there are several."""
    limits = f" [{interval.low:.{digits}f}, {interval.high:.{digits}f}]" if count > 1 else ""
    return f"{interval.value:.{digits}f}{limits}"


def bootstrap_difference(
    samples: Sequence[float],
    others: Sequence[float],
    statistic: Statistic = interquartile_mean,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
) -> Interval:
    """Return the interval of ``statistic(samples) - statistic(others)``, each group resampled independently.

    Raises:
        ValueError: a group has no samples.
    """

    def difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return statistic(one) - statistic(other)

    return _bootstrapped([samples, others], difference, confidence, resamples)


def paired_differences(samples: Mapping[int, float], others: Mapping[int, float]) -> list[float]:
    """Return ``samples - others`` for every seed that both have, in the order of the seeds.

    Runs of one seed share what the seed draws (the images held out, the calibration images), so that chance
    moves both of them alike and the interval of their differences is narrower.
    """
    return [samples[seed] - others[seed] for seed in sorted(samples.keys() & others.keys())]


def _bootstrapped(
    groups: Sequence[Sequence[float]],
    statistic: Callable[..., np.ndarray],
    confidence: float,
    resamples: int,
) -> Interval:
    """Resample the groups; scipy refuses a group of one sample, so such a group stays as it is."""
    values = [np.asarray(group, dtype=np.float64) for group in groups]
    if not all(group.size for group in values):
        raise ValueError("no samples")
    value = float(statistic(*values))
    varying = [group for group in values if group.size > 1]
    if not varying:
        return Interval(value, value, value)

    def of_resampled(*drawn: np.ndarray, axis: int) -> np.ndarray:
        rest = iter(drawn)
        return statistic(*(next(rest) if group.size > 1 else group for group in values))

    from scipy import stats

    found = stats.bootstrap(
        varying,
        of_resampled,
        n_resamples=resamples,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return _interval(value, found.bootstrap_distribution, confidence)


def _interval(value: float, spread: np.ndarray, confidence: float) -> Interval:
    tail = 50 * (1 - confidence)
    low, high = np.percentile(spread, [tail, 100 - tail])
    return Interval(value, float(low), float(high))


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Return Spearman's rank correlation of n pairs; ties share their mean rank.

    Raises:
        ValueError: there are fewer than two pairs, or one side does not vary.
    """
    if len(one) < 2:
        raise ValueError(f"{len(one)} pairs; a correlation needs at least 2")
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        raise ValueError("all values are equal; there is nothing to correlate")
    from scipy import stats

    return float(np.corrcoef(stats.rankdata([one, other], axis=1))[0, 1])


def bootstrap_correlation(
    one: Sequence[float], other: Sequence[float], *, confidence: float = 0.95, resamples: int = 2_000
) -> Interval:
    """Return the percentile bootstrap interval of ``rank_correlation`` over n pairs.

    A resample in which one side does not vary has no correlation and is left out.

    Raises:
        ValueError: as ``rank_correlation``.
    """
    from scipy import stats

    value = rank_correlation(one, other)
    pairs = np.asarray([one, other], dtype=np.float64)
    drawn = np.random.default_rng(0).integers(len(one), size=(resamples, len(one)))
    ranks = stats.rankdata(pairs[:, drawn], axis=-1).swapaxes(0, 1)  # (resamples, 2, pairs)
    varying = ranks[np.ptp(ranks, axis=-1).all(axis=-1)]
    spread = [np.corrcoef(ranked)[0, 1] for ranked in varying]
    return _interval(value, np.asarray(spread), confidence)
