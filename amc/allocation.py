"""Allocations that need no search: widths from what each group's channels cost its readers."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence

from amc.budget import Budget, Cost, WidthSpace

Errors = Mapping[str, Sequence[float]]
"""Group name -> output error at every width (``amc.elimination.Elimination.errors``)."""


def greedy_widths(space: WidthSpace, budget: Budget, errors: Errors) -> tuple[int, ...]:
    """Shrink the dense network greedily.

    Returns:
        Widths within the budget, where it is feasible. The sum of the groups' errors is what is kept small: a
        stand-in for accuracy that takes no evaluation, since it was computed with the channel orders.
    """
    return shrink_greedily(space, budget.cost, budget.limit, space.dense, errors)


def shrink_greedily(
    space: WidthSpace, cost: Cost, limit: float, widths: Sequence[int], errors: Errors
) -> tuple[int, ...]:
    """Shrink, one rounding step at a time, the group that loses least for the cost it saves.

    Args:
        cost: cost of a network from its widths.
        limit: largest allowed cost, in the unit of ``cost``.
        widths: where to start; allowed widths.

    Returns:
        Widths within the limit, or the smallest ones if even they are over it.
    """
    widths = list(widths)
    total = cost(widths)
    while total > limit:
        best: tuple[float, int, int, float] | None = None
        for group, choices in enumerate(space.choices):
            place = choices.index(widths[group])
            if place == 0:
                continue
            smaller = choices[place - 1]
            left = cost([*widths[:group], smaller, *widths[group + 1 :]])
            curve = errors[space.names[group]]
            loss = (curve[smaller] - curve[widths[group]]) / max(total - left, 1e-12)
            if best is None or loss < best[0]:
                best = (loss, group, smaller, left)
        if best is None:
            break
        _, group, smaller, total = best
        widths[group] = smaller
    return tuple(widths)


def shrink_group(
    space: WidthSpace, cost: Cost, limit: float, widths: Sequence[int], group: int
) -> tuple[int, ...] | None:
    """Shrink one group, and no further than the limit asks.

    Args:
        cost, limit, widths: as for ``shrink_greedily``.
        group: index of the group; at least one rounding step is taken.

    Returns:
        The widths, or None where the group's smallest width is not enough.
    """

    def at(width: int) -> tuple[int, ...]:
        return (*widths[:group], width, *widths[group + 1 :])

    choices = space.choices[group]
    smaller = choices[: choices.index(widths[group])]
    fitting = bisect_right(smaller, limit, key=lambda width: cost(at(width)))
    return at(smaller[fitting - 1]) if fitting else None


def one_group_smaller(
    space: WidthSpace, cost: Cost, limit: float, widths: Sequence[int], errors: Errors
) -> list[tuple[int, ...]]:
    """Meet a limit by each group alone: the simplified networks of NetAdapt (Yang et al., ECCV 2018).

    Args:
        cost, limit, widths: as for ``shrink_greedily``.
        errors: rank the networks; empty where nothing is known (``even_errors`` takes their place).

    Returns:
        Networks within the limit, the one whose error rises least first. If ``widths`` are within the limit
        they are the only one; if no group can meet it alone, several are shrunk greedily.
    """
    if cost(widths) <= limit:
        return [tuple(widths)]
    errors = errors or even_errors(space)
    found = []
    for group, name in enumerate(space.names):
        smaller = shrink_group(space, cost, limit, widths, group)
        if smaller is not None:
            found.append((errors[name][smaller[group]] - errors[name][widths[group]], smaller))
    if not found:
        return [shrink_greedily(space, cost, limit, widths, errors)]
    return [smaller for _, smaller in sorted(found, key=lambda pair: pair[0])]


def even_errors(space: WidthSpace) -> Errors:
    """Return curves that know of no difference between groups: the squared share of channels that are lost.

    The square makes every further channel of a group cost more, so that losses spread over the groups.
    """
    return {
        name: tuple((1.0 - width / dense) ** 2 for width in range(dense + 1))
        for name, dense in zip(space.names, space.dense, strict=True)
    }
