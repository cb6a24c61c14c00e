"""Allocations that need no search: by a rule of thumb, by one ranking, by what groups lose."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from amc.budget.budget import Budget, Cost
from amc.budget.widths import WidthSpace

Errors = Mapping[str, Sequence[float]]
"""Group name -> output error at every width (``amc.importance.elimination.Elimination.errors``)."""
Scores = Mapping[str, Sequence[float]]
"""Group name -> importance of every channel, comparable between groups (``amc.importance``)."""
Ratios = Callable[[float], Sequence[float]]
"""How much is kept, in [0, 1] -> preserve ratio of every group; none may fall as the argument grows."""


def uniform_widths(space: WidthSpace, budget: Budget) -> tuple[int, ...]:
    """Return the widths of the largest single preserve ratio that meets the budget (AMC's uniform baseline).

    All groups take the widest allowed width at or under the ratio; what rounding leaves of the budget goes to
    those that are nearest to their next width (``Budget.scale``), so that comparisons are at the same cost.
    """
    return budget.scale(space, [1.0] * len(space.names))


def ramp_widths(space: WidthSpace, budget: Budget, *, shallow: bool) -> tuple[int, ...]:
    """Prune the shallow groups hardest, or the deep ones: AMC's heuristics of these names (section 4.1).

    AMC gives no formula. Here preserve ratios lie on a line over the group's place in the network, from 0 at
    one end to 1 at the other, which is shifted up or down until the budget is met; what leaves [0, 1] is cut.
    """
    last = max(len(space.names) - 1, 1)
    line = [place / last if shallow else 1 - place / last for place in range(len(space.names))]
    shifts = [step / 1000 for step in range(2001)]
    return _largest(space, budget, shifts, lambda shift: [min(max(r + shift - 1, 0), 1) for r in line])


def ranked_widths(space: WidthSpace, budget: Budget, scores: Scores) -> tuple[int, ...]:
    """Keep the channels that score highest in the whole network, as many as the budget allows.

    Only how many each group keeps is taken from the scores; which ones is for the channel order to say.
    """
    everything = np.concatenate([np.asarray(scores[name], dtype=np.float64) for name in space.names])
    groups = np.repeat(np.arange(len(space.names)), space.dense)[np.argsort(-everything, kind="stable")]
    kept = np.zeros((len(groups) + 1, len(space.names)), dtype=np.int64)  # of the best 0, 1, 2, ... channels
    np.cumsum(groups[:, None] == np.arange(len(space.names)), axis=0, out=kept[1:])
    shares = kept / np.asarray(space.dense)
    return _largest(space, budget, range(len(shares)), lambda best: shares[int(best)])


def _largest(space: WidthSpace, budget: Budget, levels: Sequence[float], ratios: Ratios) -> tuple[int, ...]:
    """Return the widths of the highest level (they are ascending) that meets the budget.

    Every group takes the widest allowed width at or under its ratio; ``Budget.scale`` hands out what rounding
    leaves of the budget.
    """

    def at(level: float) -> tuple[int, ...]:
        return tuple(
            choice[max(bisect_right(choice, ratio * dense + 1e-9), 1) - 1]
            for choice, dense, ratio in zip(space.choices, space.dense, ratios(level), strict=True)
        )

    index = bisect_right(levels, budget.limit, key=lambda level: budget.cost(at(level)))
    widths = at(levels[max(index, 1) - 1])
    return budget.scale(space, [width / dense for width, dense in zip(widths, space.dense, strict=True)])


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
