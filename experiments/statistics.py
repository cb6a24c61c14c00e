"""Statistics: means over seeds with t intervals, rank correlations with bootstrap intervals.

A mean of three to five seeds has Student's t interval: a percentile bootstrap of so few covers 75 to 90%
where it says 95%. ``scipy.stats`` is imported where it is needed: it takes a second of CPU time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
"""Share of intervals that hold the true value."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval, in the unit of the samples."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class Mean:
    """A mean, or a difference of means, with half the width of its 95% interval; None where it has none."""

    value: float
    margin: float | None

    def listed(self) -> list[float | None]:
        """Return the value and both ends of the interval, which are None where it has none."""
        if self.margin is None:
            return [self.value, None, None]
        return [self.value, self.value - self.margin, self.value + self.margin]

    def text(self, digits: int = 2) -> str:
        """Return the value, and the interval in brackets if it has one."""
        value, low, high = (None if end is None else f"{end:.{digits}f}" for end in self.listed())
        return str(value) if low is None else f"{value} [{low}, {high}]"


def mean_of(samples: Sequence[float]) -> Mean:
    """Return the mean of one group of runs with its t interval; one run has no interval.

    Raises:
        ValueError: there are no samples.
    """
    value, error = _mean_and_error(samples)
    return Mean(value, None if error is None else _quantile(len(samples) - 1) * error)


def difference_of(samples: Sequence[float], others: Sequence[float]) -> Mean:
    """Return ``mean(samples) - mean(others)`` of independent groups, with Welch's t interval.

    Raises:
        ValueError: a group has no samples.
    """
    (one, error), (other, its_error) = _mean_and_error(samples), _mean_and_error(others)
    if error is None or its_error is None:
        return Mean(one - other, None)
    square = error**2 + its_error**2
    if square == 0:
        return Mean(one - other, 0.0)
    freedom = square**2 / (error**4 / (len(samples) - 1) + its_error**4 / (len(others) - 1))
    return Mean(one - other, _quantile(freedom) * float(np.sqrt(square)))


def mean_text(values: Sequence[float], digits: int = 2) -> str:
    """Return the mean as text, with its interval if there are several values; "" for none."""
    return mean_of(values).text(digits) if len(values) else ""


def paired_differences(samples: Mapping[int, float], others: Mapping[int, float]) -> list[float]:
    """Return ``samples - others`` for every seed that both have, in the order of the seeds.

    Runs of one seed share what the seed draws: the calibration images, the agent's random numbers and the
    batches of trainings. The images held out are the same for all seeds.
    """
    return [samples[seed] - others[seed] for seed in sorted(samples.keys() & others.keys())]


def less_text(samples: Mapping[int, float], others: Mapping[int, float]) -> str:
    """Return the mean of one agent less that of another as text, from their values by seed; "" without any.

    It is paired by seed. Seeds that one of the two lacks are left out; the number of pairs then stands beside
    the difference. Two agents without a common seed are compared as independent groups.
    """
    if not (samples and others):
        return ""
    pairs = paired_differences(samples, others)
    if not pairs:
        return f"{difference_of([*samples.values()], [*others.values()]).text()} (unpaired)"
    all_paired = len(pairs) == max(len(samples), len(others))
    some = "" if all_paired else f" ({len(pairs)} seed{'s' if len(pairs) > 1 else ''})"
    return mean_text(pairs) + some


def _mean_and_error(samples: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and its standard error, which one sample does not have."""
    values = np.asarray(samples, dtype=np.float64)
    if not values.size:
        raise ValueError("no samples")
    error = float(values.std(ddof=1) / np.sqrt(values.size)) if values.size > 1 else None
    return float(values.mean()), error


def _quantile(freedom: float) -> float:
    """Return how many standard errors the interval reaches to each side."""
    from scipy import stats

    return float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom))


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
    one: Sequence[float], other: Sequence[float], *, resamples: int = 2_000
) -> Interval:
    """Return the 95% percentile bootstrap interval of ``rank_correlation`` over n pairs.

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
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(spread, [tail, 100 - tail])
    return Interval(value, float(low), float(high))
