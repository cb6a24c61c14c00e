"""Statistics over seeds, against values worked out by hand and against scipy."""

import numpy as np
import pytest
from scipy import stats

from experiments.statistics import (
    Interval,
    bootstrap,
    bootstrap_correlation,
    bootstrap_difference,
    interquartile_mean,
    paired_differences,
    rank_correlation,
)


def test_the_interquartile_mean_of_four_is_the_mean_of_the_middle_two():
    assert interquartile_mean(np.array([100.0, 1.0, 3.0, -50.0])) == pytest.approx(2.0)


def test_edge_samples_of_five_count_in_part():
    # The middle half of five is 1.25 to 3.75: three quarters of the second, the third, three quarters of
    # the fourth.
    expected = (0.75 * 2 + 3 + 0.75 * 7) / 2.5
    assert interquartile_mean(np.array([0.0, 2.0, 3.0, 7.0, 90.0])) == pytest.approx(expected)


def test_a_bootstrap_is_the_same_every_time_and_holds_its_estimate():
    one, two = bootstrap([1.0, 2.0, 3.0, 4.0, 9.0]), bootstrap([1.0, 2.0, 3.0, 4.0, 9.0])
    assert one == two
    assert 1.0 <= one.low < one.value < one.high <= 9.0


def test_the_interval_covers_the_true_value_at_about_its_level():
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        found = bootstrap(generator.normal(size=20), lambda x: x.mean(-1), resamples=500)
        covered += found.low <= 0 <= found.high
    assert 170 <= covered <= 198


def test_groups_apart_have_a_difference_outside_of_zero_and_equal_ones_do_not():
    low, high = [1.0, 1.1, 1.2, 0.9, 1.0], [2.0, 2.1, 1.9, 2.2, 2.0]
    assert bootstrap_difference(high, low).low > 0
    same = bootstrap_difference(low, low)
    assert same.low < 0 < same.high


def test_pairs_of_one_seed_have_a_narrower_difference_than_independent_groups():
    hard = {0: 90.0, 1: 92.0, 2: 88.0, 3: 91.0}
    better = {3: 91.2, 2: 88.1, 1: 92.2, 0: 90.1, 7: 50.0}
    pairs = paired_differences(better, hard)
    assert pairs == pytest.approx([0.1, 0.2, 0.1, 0.2])
    assert bootstrap(pairs).low > 0
    independent = bootstrap_difference([better[seed] for seed in hard], [*hard.values()])
    assert independent.low < 0 < independent.high
    assert paired_differences(better, {4: 1.0}) == []


def test_rank_correlation_equals_scipy_with_ties():
    generator = np.random.default_rng(1)
    one, other = generator.integers(6, size=30), generator.normal(size=30)
    assert rank_correlation(one, other) == pytest.approx(stats.spearmanr(one, other).statistic)


@pytest.mark.parametrize(("one", "other"), [([1.0], [2.0]), ([1.0, 1.0], [1.0, 2.0])])
def test_a_correlation_of_nothing_is_refused(one, other):
    with pytest.raises(ValueError, match="correlat"):
        rank_correlation(one, other)


def test_no_samples_are_refused():
    with pytest.raises(ValueError, match="no samples"):
        bootstrap([])
    with pytest.raises(ValueError, match="no samples"):
        bootstrap_difference([1.0], [])


def test_intervals_are_those_of_earlier_releases():
    accuracies = [91.2, 90.7, 91.9, 90.1, 91.5]
    found = (
        bootstrap(accuracies),
        bootstrap_difference(accuracies, [90.3, 90.9, 89.7]),
        bootstrap_correlation(accuracies, [3.0, 1.0, 4.0, 1.0, 5.0]),
    )
    expected = ((91.14, 90.43, 91.78), (0.84, -0.14, 1.73), (0.8720815992723809, 1 / 9, 1.0))
    for interval, values in zip(found, expected, strict=True):
        assert (interval.value, interval.low, interval.high) == pytest.approx(values, abs=1e-12)


def test_a_single_sample_does_not_vary():
    assert bootstrap([3.0]) == Interval(3.0, 3.0, 3.0)
    others = [1.0, 2.0, 4.0]
    spread = bootstrap(others)
    found = bootstrap_difference([5.0], others)
    assert (found.low, found.high) == (5.0 - spread.high, 5.0 - spread.low)
