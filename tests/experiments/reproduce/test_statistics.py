"""Statistics over seeds, against values worked out by hand, against scipy, and against what they promise."""

import numpy as np
import pytest
from scipy import stats

from experiments.statistics import (
    Mean,
    bootstrap_correlation,
    difference_of,
    less_text,
    mean_of,
    mean_text,
    paired_differences,
    rank_correlation,
)

ACCURACIES = [91.2, 90.7, 91.9, 90.1, 91.5]


def test_the_mean_of_three_has_the_interval_of_the_table_of_t():
    # The standard error of 1, 2, 3 is 1 / sqrt(3); two degrees of freedom reach 4.3027 of them.
    found = mean_of([1.0, 2.0, 3.0])
    assert found.value == pytest.approx(2.0)
    assert found.margin == pytest.approx(4.302653 / 3**0.5, abs=1e-5)


def test_the_interval_of_a_mean_is_scipys():
    expected = stats.ttest_1samp(ACCURACIES, 0).confidence_interval(0.95)
    assert mean_of(ACCURACIES).listed() == pytest.approx([np.mean(ACCURACIES), *expected])


def test_the_interval_of_a_difference_is_welchs():
    others = [90.3, 90.9, 89.7]
    expected = stats.ttest_ind(ACCURACIES, others, equal_var=False).confidence_interval(0.95)
    value = np.mean(ACCURACIES) - np.mean(others)
    assert difference_of(ACCURACIES, others).listed() == pytest.approx([value, *expected])


@pytest.mark.parametrize("count", [3, 5])
def test_intervals_of_few_seeds_hold_the_true_mean_95_times_of_100(count):
    samples = np.random.default_rng(0).normal(size=(2000, count))
    found = [mean_of(own).listed() for own in samples]
    covered = sum(low <= 0 <= high for _, low, high in found)
    assert 0.93 < covered / len(found) < 0.97


def test_one_sample_has_no_interval():
    assert mean_of([3.0]) == Mean(3.0, None)
    assert mean_of([3.0]).listed() == [3.0, None, None]
    assert difference_of([5.0], [1.0, 2.0, 4.0]).margin is None
    assert mean_text([3.0]) == "3.00"
    assert mean_text([1.0, 3.0], digits=1) == "2.0 [-10.7, 14.7]"
    assert mean_text([]) == ""


def test_groups_that_do_not_vary_differ_exactly():
    assert difference_of([2.0, 2.0], [1.0, 1.0]) == Mean(1.0, 0.0)
    assert mean_of([2.0, 2.0]) == Mean(2.0, 0.0)


def test_pairs_of_one_seed_have_a_narrower_difference_than_independent_groups():
    hard = {0: 90.0, 1: 92.0, 2: 88.0, 3: 91.0}
    better = {3: 91.2, 2: 88.1, 1: 92.2, 0: 90.1, 7: 50.0}
    pairs = paired_differences(better, hard)
    assert pairs == pytest.approx([0.1, 0.2, 0.1, 0.2])
    assert mean_of(pairs).listed()[1] > 0
    independent = difference_of([better[seed] for seed in hard], [*hard.values()]).listed()
    assert independent[1] < 0 < independent[2]
    assert paired_differences(better, {4: 1.0}) == []


def test_a_difference_tells_its_number_of_pairs_and_whether_there_are_none():
    assert less_text({0: 2.0, 1: 3.0}, {0: 1.0, 1: 2.0}) == "1.00 [1.00, 1.00]"
    assert less_text({0: 2.0, 1: 3.0}, {0: 1.0}) == "1.00 (1 seed)"
    assert less_text({0: 2.0}, {1: 1.5}) == "0.50 (unpaired)"
    assert less_text({}, {1: 1.5}) == ""


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
        mean_of([])
    with pytest.raises(ValueError, match="no samples"):
        difference_of([1.0], [])


def test_intervals_of_correlations_are_those_of_earlier_releases():
    found = bootstrap_correlation(ACCURACIES, [3.0, 1.0, 4.0, 1.0, 5.0])
    assert (found.value, found.low, found.high) == pytest.approx((0.8720815992723809, 1 / 9, 1.0), abs=1e-12)
