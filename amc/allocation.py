"""Allocations that need no search: widths from what each group's channels cost its readers."""

from __future__ import annotations

from collections.abc import Mapping

from amc.budget import Budget, WidthSpace


def greedy_widths(
    space: WidthSpace, budget: Budget, errors: Mapping[str, tuple[float, ...]]
) -> tuple[int, ...]:
    """Shrink, one rounding step at a time, the group that loses least for the cost it saves.

    Args:
        errors: group name -> output error at every width (``amc.elimination.Elimination.errors``).

    Returns:
        Widths within the budget, where it is feasible. The sum of the groups' errors is what is kept small: a
        stand-in for accuracy that takes no evaluation, since it was computed with the channel orders.
    """
    widths = list(space.dense)
    cost = budget.cost(widths)
    while cost > budget.limit:
        best: tuple[float, int, int, float] | None = None
        for group, choices in enumerate(space.choices):
            place = choices.index(widths[group])
            if place == 0:
                continue
            smaller = choices[place - 1]
            left = budget.cost([*widths[:group], smaller, *widths[group + 1 :]])
            curve = errors[space.names[group]]
            loss = (curve[smaller] - curve[widths[group]]) / max(cost - left, 1e-12)
            if best is None or loss < best[0]:
                best = (loss, group, smaller, left)
        if best is None:
            break
        _, group, smaller, cost = best
        widths[group] = smaller
    return tuple(widths)
