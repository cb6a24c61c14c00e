from __future__ import annotations

import math
from itertools import pairwise
from operator import itemgetter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amc.errors import AmcError
from experiments.pareto import evenly, pareto_front

COST, SCORE = itemgetter(0), itemgetter(1)
# Few values, so that ties are common; the third field tells equal points apart.
POINTS = st.lists(st.tuples(st.integers(0, 6), st.integers(-3, 3) | st.floats(-3, 3))).map(
    lambda rows: [(*row, index) for index, row in enumerate(rows)]
)


def beats(one, other):
    return COST(one) <= COST(other) and SCORE(one) >= SCORE(other) and one[:2] != other[:2]


@given(POINTS)
def test_front_equals_brute_force(points):
    undominated = [point for point in points if not any(beats(other, point) for other in points)]
    first_of_equals = {point[:2]: point for point in reversed(undominated)}
    assert pareto_front(points, COST, SCORE) == tuple(sorted(first_of_equals.values()))


@given(POINTS, st.randoms())
def test_the_order_of_the_points_changes_ties_only(points, random):
    shuffled = random.sample(points, len(points))
    fronts = [[point[:2] for point in pareto_front(order, COST, SCORE)] for order in (points, shuffled)]
    assert fronts[0] == fronts[1]


def test_a_front_by_hand():
    points = [(5, 0.9), (3, 0.7), (4, 0.7), (3, 0.6), (1, 0.1), (6, 0.9), (2, 0.1)]
    assert pareto_front(points, COST, SCORE) == ((1, 0.1), (3, 0.7), (5, 0.9))


@pytest.mark.parametrize("point", [(math.nan, 0.5), (1, math.nan), (math.inf, 0.5), (1, -math.inf)])
def test_a_point_that_is_not_finite(point):
    with pytest.raises(AmcError, match="finite"):
        pareto_front([(1, 0.5), point], COST, SCORE)


@given(st.integers(0, 60), st.integers(2, 12))
def test_evenly_keeps_both_ends_and_the_order(length, count):
    chosen = evenly(range(length), count)
    assert len(chosen) == min(length, count)
    assert list(chosen) == sorted(set(chosen))
    if length:
        assert (chosen[0], chosen[-1]) == (0, length - 1)
        gaps = [after - before for before, after in pairwise(chosen)]
        assert max(gaps, default=0) - min(gaps, default=0) <= 1
