"""The greedy allocation: within the budget, and the best exchange at every step."""

import math

from amc.allocation import greedy_widths
from amc.budget import make_budget, width_space


def problem(ratio):
    space = width_space(["a", "b"], [4, 4], round_to=1, min_preserve_ratio=0.25)
    return space, make_budget("macs", ratio, lambda widths: 3 * widths[0] + widths[1], space.dense)


def test_by_hand():
    errors = {"a": (math.inf, 9.0, 6.0, 3.0, 0.0), "b": (math.inf, 2.5, 1.0, 0.4, 0.0)}
    # Per unit of cost a loses 1 a step; b loses 0.4, 0.6, 1.5: so b goes to 2, then a gives way.
    assert greedy_widths(*problem(0.8), errors) == (3, 2)  # 16 -> 14 by b, then 11 by a; 12.8 allowed
    assert greedy_widths(*problem(1.0), errors) == (4, 4)


def test_the_smallest_network_is_where_it_ends():
    errors = {"a": (math.inf, 1.0, 0.5, 0.2, 0.0), "b": (math.inf, 1.0, 0.5, 0.2, 0.0)}
    space, budget = problem(0.01)
    assert greedy_widths(space, budget, errors) == space.minimum
