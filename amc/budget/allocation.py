"""Widths that need no search: by a rule of thumb, by a global ranking of channels, or by output errors."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from amc.budget.budget import Budget, Limit, count_fitting
from amc.budget.widths import WidthSpace

Errors = Mapping[str, Sequence[float]]
"""Group name -> output error at every width from 0 to dense (``amc.importance.elimination.Elimination``)."""
Scores = Mapping[str, Sequence[float]]
"""Group name -> importance of every channel, comparable between groups (``amc.importance``)."""
Ratios = Callable[[float], Sequence[float]]
"""Level -> preserve ratio of every group; no ratio may fall when the level rises."""


def uniform_widths(space: WidthSpace, budget: Budget) -> tuple[int, ...]:
    """Return the widths of the largest preserve ratio, the same for all groups, that meets the budget.

    This is AMC's uniform baseline. ``Budget.scale`` spends the rest that rounding leaves, so that comparisons
    are at the same cost.
    """
    return budget.scale(space, [1.0] * len(space.names))


def ramp_widths(space: WidthSpace, budget: Budget, *, shallow: bool) -> tuple[int, ...]:
    """Prune the shallow groups most, or the deep ones: AMC's heuristics "shallow" and "deep" (section 4.1).

    AMC gives no formula. Here the preserve ratio is a linear function of the group's index, from 0 at one end
    of the network to 1 at the other. It is shifted until the budget is met, and clipped to [0, 1].
    """
    last = max(len(space.names) - 1, 1)
    line = [place / last if shallow else 1 - place / last for place in range(len(space.names))]
    shifts = [step / 1000 for step in range(2001)]
    return _largest(space, budget, shifts, lambda shift: [min(max(r + shift - 1, 0), 1) for r in line])


def ranked_widths(space: WidthSpace, budget: Budget, scores: Scores) -> tuple[int, ...]:
    """Keep the channels with the highest scores in the whole network, as many as the budget allows.

    The scores decide how many channels each group keeps; the channel order decides which.
    """
    everything = np.concatenate([np.asarray(scores[name], dtype=np.float64) for name in space.names])
    groups = np.repeat(np.arange(len(space.names)), space.dense)[np.argsort(-everything, kind="stable")]
    # Row k: how many of the k best channels belong to each group.
    kept = np.zeros((len(groups) + 1, len(space.names)), dtype=np.int64)
    np.cumsum(groups[:, None] == np.arange(len(space.names)), axis=0, out=kept[1:])
    shares = kept / np.asarray(space.dense)
    return _largest(space, budget, range(len(shares)), lambda best: shares[int(best)])


def _largest(space: WidthSpace, budget: Budget, levels: Sequence[float], ratios: Ratios) -> tuple[int, ...]:
    """Return the widths at the highest of the ascending ``levels`` that meets the budget.

    Every group takes the largest allowed width at or below its ratio; ``Budget.scale`` spends the rest.
    """

    def at(level: float) -> tuple[int, ...]:
        return tuple(
            choice[max(bisect_right(choice, ratio * dense + 1e-9), 1) - 1]
            for choice, dense, ratio in zip(space.choices, space.dense, ratios(level), strict=True)
        )

    fitting = count_fitting(levels, lambda level: budget.fits(at(level)))
    widths = at(levels[max(fitting, 1) - 1])
    return budget.scale(space, [width / dense for width, dense in zip(widths, space.dense, strict=True)])


def shrink_greedily(
    space: WidthSpace, limits: Sequence[Limit], widths: Sequence[int], errors: Errors
) -> tuple[int, ...]:
    """Shrink, one allowed width at a time, the group whose error rises least for what it saves.

    A step saves what it takes off the limits that are still exceeded, each relative to its limit. A saving on
    a limit that is met already counts nothing.

    Args:
        limits: what the network has to meet.
        widths: where to start; a width that is not allowed, of another space, shrinks to an allowed one.
        errors: output error of every group at every width.

    Returns:
        Widths that meet every limit, or the smallest ones if even they exceed one.
    """
    found = tuple(widths)
    while exceeded := [limit for limit in limits if not limit.met(found)]:
        costs = [limit.cost(found) for limit in exceeded]
        best: tuple[float, tuple[int, ...]] | None = None
        for group, choices in enumerate(space.choices):
            place = bisect_left(choices, found[group])
            if place == 0:
                continue
            smaller = _with(found, group, choices[place - 1])
            curve = errors[space.names[group]]
            rise = curve[smaller[group]] - curve[found[group]]
            loss = rise / max(_saving(exceeded, costs, smaller), 1e-12)
            if best is None or loss < best[0]:
                best = (loss, smaller)
        if best is None:
            break
        found = best[1]
    return found


def _saving(exceeded: Sequence[Limit], costs: Sequence[float], smaller: tuple[int, ...]) -> float:
    """Return what a step saves, in the unit of the first limit: others count relative to their limits."""
    unit = exceeded[0].largest
    return sum(
        (cost - limit.cost(smaller)) * (unit / limit.largest)
        for limit, cost in zip(exceeded, costs, strict=True)
    )


def _with(widths: Sequence[int], group: int, width: int) -> tuple[int, ...]:
    return (*widths[:group], width, *widths[group + 1 :])


def shrink_group(
    space: WidthSpace, limits: Sequence[Limit], widths: Sequence[int], group: int
) -> tuple[int, ...] | None:
    """Shrink one group to its largest smaller width that meets the limits.

    Args:
        limits, widths: as for ``shrink_greedily``.
        group: index of the group; it takes at least one step down.

    Returns:
        The widths, or None if even the group's smallest width exceeds a limit.
    """

    def fits(width: int) -> bool:
        return all(limit.met(_with(widths, group, width)) for limit in limits)

    choices = space.choices[group]
    smaller = choices[: bisect_left(choices, widths[group])]
    fitting = count_fitting(smaller, fits)
    return _with(widths, group, smaller[fitting - 1]) if fitting else None


def one_group_smaller(
    space: WidthSpace, limits: Sequence[Limit], widths: Sequence[int], errors: Errors
) -> list[tuple[int, ...]]:
    """Meet the limits by shrinking one group alone: the proposals of NetAdapt (Yang et al., ECCV 2018).

    Args:
        limits, widths: as for ``shrink_greedily``.
        errors: output error of every group at every width, or empty for ``even_errors``.

    Returns:
        The widths of each proposal, by rising error. ``widths`` alone if they meet the limits already; one
        greedily shrunk network if no single group can meet them.
    """
    if all(limit.met(widths) for limit in limits):
        return [tuple(widths)]
    errors = errors or even_errors(space)
    found = []
    for group, name in enumerate(space.names):
        smaller = shrink_group(space, limits, widths, group)
        if smaller is not None:
            found.append((errors[name][smaller[group]] - errors[name][widths[group]], smaller))
    if not found:
        return [shrink_greedily(space, limits, widths, errors)]
    return [smaller for _, smaller in sorted(found, key=lambda pair: pair[0])]


def even_errors(space: WidthSpace) -> Errors:
    """Return the same error curve for every group: the squared share of removed channels.

    With the square each further channel of a group costs more, so that the removals spread over the groups.
    """
    return {name: even_curve(dense) for name, dense in zip(space.names, space.dense, strict=True)}


def even_curve(dense: int) -> tuple[float, ...]:
    """Return the curve of ``even_errors`` of a group of ``dense`` channels, by width from 0."""
    return tuple((1.0 - width / dense) ** 2 for width in range(dense + 1))
