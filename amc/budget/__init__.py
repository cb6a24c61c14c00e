"""Budgets and widths as plain numbers: no network, no torch.

- ``widths.py``: the widths that each channel group may take.
- ``budget.py``: limits on costs, and two ways to make requested widths fit it.
- ``allocation.py``: widths by rules that need no search, such as the same ratio for every group.
- ``weighing.py``: widths of the least weighted sum of output errors.
"""

from amc.budget.allocation import (
    even_errors,
    one_group_smaller,
    ramp_widths,
    ranked_widths,
    shrink_greedily,
    shrink_group,
    uniform_widths,
)
from amc.budget.budget import FITS, Budget, Cost, Fit, Limit, check_ratio, get_fit, make_budget, make_limit
from amc.budget.weighing import WeightedAllocation, greedy_widths
from amc.budget.widths import WidthSpace, width_space

__all__ = [
    "FITS",
    "Budget",
    "Cost",
    "Fit",
    "Limit",
    "WeightedAllocation",
    "WidthSpace",
    "check_ratio",
    "even_errors",
    "get_fit",
    "greedy_widths",
    "make_budget",
    "make_limit",
    "one_group_smaller",
    "ramp_widths",
    "ranked_widths",
    "shrink_greedily",
    "shrink_group",
    "uniform_widths",
    "width_space",
]
