"""Widths of the least weighted error: within the budget, near the optimum, the same for a common factor."""

import itertools
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from amc.budget.allocation import shrink_greedily
from amc.budget.budget import Limit, make_budget
from amc.budget.weighing import WeightedAllocation, greedy_widths, totals, with_one_changed
from amc.budget.widths import width_space
from amc.cost.closed_form import BilinearCost
from tests.amc.budget.test_allocation import ERRORS, problem

quick = settings(deadline=None, max_examples=60, database=None)


def chain(dense):
    """Multiply-adds of 1x1 layers in a row, 3 inputs and 10 outputs, as a closed form."""
    groups = len(dense)
    inputs, outputs = np.zeros((2, groups + 1, groups), np.int64)
    for group in range(groups):
        outputs[group, group] = inputs[group + 1, group] = 1
    fixed_in, fixed_out = np.zeros((2, groups + 1), np.int64)
    fixed_in[0], fixed_out[-1] = 3, 10
    return BilinearCost(np.ones(groups + 1, np.int64), fixed_in, inputs, fixed_out, outputs)


@st.composite
def problems(draw, largest=10, most=4):
    dense = draw(st.lists(st.integers(2, largest), min_size=1, max_size=most))
    names = [f"group{i}" for i in range(len(dense))]
    space = width_space(names, dense, round_to=1, min_preserve_ratio=0.1)
    falls = st.floats(0.0, 5.0)
    errors = {}
    for name, width in zip(names, dense, strict=True):
        steps = draw(st.lists(falls, min_size=width, max_size=width))
        errors[name] = tuple(np.cumsum([0.0, *steps])[::-1].tolist())
    cost = chain(dense)
    least = cost(space.minimum) / cost(dense)
    return space, make_budget("macs", draw(st.floats(min(least + 1e-9, 1.0), 1.0)), cost, dense), errors


def positive(count):
    return st.lists(st.floats(0.1, 10.0), min_size=count, max_size=count)


def test_by_hand():
    # Per unit of cost a loses 1 a step; b loses 0.4, 0.6, 1.5: so b goes to 2, then a gives way.
    # 16 -> 14 by b, then 11 by a; 12.8 are allowed, so that b grows again.
    assert greedy_widths(*problem(0.8), ERRORS) == (3, 3)
    assert greedy_widths(*problem(1.0), ERRORS) == (4, 4)
    # A curve of b that counts ten times makes a give way first: to 1, with 3 + 4 = 7 of 8 allowed.
    assert WeightedAllocation(*problem(0.5), ERRORS)([1.0, 10.0]) == (1, 4)


def test_it_ends_at_the_smallest_network():
    errors = {"a": (math.inf, 1.0, 0.5, 0.2, 0.0), "b": (math.inf, 1.0, 0.5, 0.2, 0.0)}
    space, budget = problem(0.01)
    assert greedy_widths(space, budget, errors) == space.minimum


@quick
@given(st.data())
def test_any_weights_meet_the_budget_and_leave_nothing_over(data):
    space, budget, errors = data.draw(problems())
    widths = WeightedAllocation(space, budget, errors)(data.draw(positive(len(space.names))))
    assert budget.fits(widths)
    for group, choices in enumerate(space.choices):
        assert widths[group] in choices
        wider = [width for width in choices if width > widths[group]][:1]
        for width in wider:
            assert not budget.fits([*widths[:group], width, *widths[group + 1 :]])


@quick
@given(st.data())
def test_a_common_factor_changes_nothing(data):
    space, budget, errors = data.draw(problems())
    weights = data.draw(positive(len(space.names)))
    allocate = WeightedAllocation(space, budget, errors)
    assert allocate(weights) == allocate([4.0 * weight for weight in weights])


@quick
@given(st.data())
def test_it_is_no_worse_than_shrinking_alone(data):
    space, budget, errors = data.draw(problems())
    allocate = WeightedAllocation(space, budget, errors)
    shrunk = shrink_greedily(space, budget.limits, space.dense, errors)
    found = allocate.errors_at(greedy_widths(space, budget, errors)).sum()
    assert found <= allocate.errors_at(shrunk).sum() + 1e-9


def test_it_is_near_the_optimum_of_all_networks():
    """Over small problems with convex curves, where every network can be tried."""
    excess = []
    for seed in range(25):
        random = np.random.default_rng(seed)
        dense = [8, 8, 8, 8]
        names = list("abcd")
        space = width_space(names, dense, round_to=1, min_preserve_ratio=0.1)
        errors = {
            name: tuple(float(scale * (1 - width / 8) ** 2) for width in range(9))
            for name, scale in zip(names, random.uniform(0.3, 3.0, 4), strict=True)
        }
        budget = make_budget("macs", 0.5, chain(dense), dense)
        allocate = WeightedAllocation(space, budget, errors)
        fitting = [w for w in itertools.product(*space.choices) if budget.fits(w)]
        best = min(float(allocate.errors_at(widths).sum()) for widths in fitting)
        excess.append(float(allocate.errors_at(allocate([1.0] * 4)).sum()) / best - 1.0)
    assert np.median(excess) < 0.01
    assert max(excess) < 0.1


@quick
@given(problems(), st.integers(-2, 2))
def test_costs_at_once_are_those_of_each(drawn, step):
    space, budget, _ = drawn
    cost = budget.leading.cost
    widths, steps = np.array([space.dense]), np.full((1, len(space.dense)), step)
    assert (
        with_one_changed(cost, widths, steps) == with_one_changed(lambda own: cost(own), widths, steps)
    ).all()
    assert totals(cost, widths).tolist() == [cost(space.dense)]


@quick
@given(st.data())
def test_many_at_once_are_as_each_alone(data):
    space, budget, errors = data.draw(problems())
    weights = np.array(data.draw(st.lists(positive(len(space.names)), min_size=1, max_size=5)))
    allocate = WeightedAllocation(space, budget, errors)
    assert [tuple(row) for row in allocate.many(weights).tolist()] == [allocate(row) for row in weights]


@quick
@given(st.data())
def test_several_limits_hold_at_once(data):
    space, macs, errors = data.draw(problems())
    widest = float(sum(space.dense))
    least = sum(space.minimum) / widest
    channels = Limit("params", sum, data.draw(st.floats(min(least + 1e-9, 1.0), 1.0)), widest)
    budget = replace(macs, limits=(*macs.limits, channels))
    widths = WeightedAllocation(space, budget, errors)(data.draw(positive(len(space.names))))
    assert budget.fits(widths)
    assert sum(widths) <= channels.largest


def test_a_wider_group_never_lowers_the_error():
    space, budget = problem(0.8)
    allocate = WeightedAllocation(space, budget, ERRORS)
    totals = [float(allocate.errors_at((width, 2)).sum()) for width in (1, 2, 3, 4)]
    assert all(one >= other for one, other in pairwise(totals))
