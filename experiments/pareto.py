"""The Pareto front: the points that no other point beats in both cost and score. Pure numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

from amc.errors import AmcError

T = TypeVar("T")


def pareto_front(
    points: Sequence[T], cost: Callable[[T], float], score: Callable[[T], float]
) -> tuple[T, ...]:
    """Return the non-dominated points, cost and score both strictly ascending.

    A point is dominated by another one that costs no more and scores no less, and is better in one of them.
    The first of equal points is taken.

    Args:
        points: in any order.
        cost: the lower the better.
        score: the higher the better.

    Raises:
        AmcError: a cost or a score is not finite.
    """
    rows = [(cost(point), score(point), point) for point in points]
    for paid, gained, _ in rows:
        if not (math.isfinite(paid) and math.isfinite(gained)):
            raise AmcError(f"a point has cost {paid} and score {gained}; expected finite numbers")
    front: list[T] = []
    best = -math.inf
    for _, gained, point in sorted(rows, key=lambda row: (row[0], -row[1])):  # stable: the first of equals
        if gained > best:
            front.append(point)
            best = gained
    return tuple(front)


def evenly(points: Sequence[T], count: int) -> tuple[T, ...]:
    """Return at most ``count`` (2 or more) points, evenly spaced by position, including both ends."""
    if len(points) <= count:
        return tuple(points)
    last = len(points) - 1
    return tuple(points[index * last // (count - 1)] for index in range(count))
