"""Widths that minimise a weighted sum of the groups' output errors within a budget.

The sum of the error curves is an estimate: it takes groups for independent, and one curve may be too steep
where another is too flat. One weight a group corrects that. Equal weights give the greedy allocation, and a
common factor of all weights changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from amc.budget.allocation import Errors
from amc.budget.budget import Budget, Cost
from amc.budget.widths import WidthSpace

EXCHANGES = 4
"""Most exchanges between two groups, for each group of the network."""


class WeightedAllocation:
    """Finds the widths of the least weighted error within a budget, for any weights.

    The dense network shrinks greedily: each step takes the group whose weighted error rises least per unit of
    cost saved. Then groups grow again into what the last step left over, and pairs of groups exchange
    channels, as long as the weighted error falls.

    Args:
        space: the widths that groups may take.
        budget: the limit.
        errors: output error of every group at every width from 0 to dense.
    """

    def __init__(self, space: WidthSpace, budget: Budget, errors: Errors) -> None:
        self._space = space
        self._cost, self._limit = budget.cost, budget.limit
        most = max(len(choices) for choices in space.choices)
        # Row g: the widths of group g and its errors at them, padded at the end.
        self._widths = np.array([[*c, *c[-1:] * (most - len(c))] for c in space.choices], dtype=np.int64)
        curves = [np.asarray(errors[name], dtype=np.float64) for name in space.names]
        self._errors = np.stack([curve[row] for curve, row in zip(curves, self._widths, strict=True)])
        self._last = np.array([len(choices) - 1 for choices in space.choices])
        self._rows = np.arange(len(space.names))

    def __call__(self, weights: Sequence[float]) -> tuple[int, ...]:
        """Return the widths; the smallest ones if even they exceed the budget.

        Args:
            weights: (G,) positive factors of the error curves.
        """
        errors = self._errors * np.asarray(weights, dtype=np.float64)[:, None]
        places = self._shrunk(errors)
        if self._total(places) <= self._limit:
            places = self._grown(places, errors)
            for _ in range(EXCHANGES * len(self._rows)):
                better = self._exchanged(places, errors)
                if better is None:
                    break
                places = self._grown(better, errors)
        return tuple(self._at(places).tolist())

    def errors_at(self, widths: Sequence[int]) -> np.ndarray:
        """Return each group's error (G,) at allowed ``widths``, by its unweighted curve."""
        places = [choices.index(width) for choices, width in zip(self._space.choices, widths, strict=True)]
        return self._errors[self._rows, places]

    def _at(self, places: np.ndarray) -> np.ndarray:
        return self._widths[self._rows, places]

    def _total(self, places: np.ndarray) -> float:
        return self._cost(self._at(places).tolist())

    def _changes(self, places: np.ndarray, step: int) -> np.ndarray:
        """Return how the cost changes (G,) if each group alone goes ``step`` places up or down."""
        moved = np.clip(places + step, 0, self._last)
        return changes(self._cost, self._at(places), self._at(moved) - self._at(places))

    def _shrunk(self, errors: np.ndarray) -> np.ndarray:
        places = self._last.copy()
        total = self._total(places)
        while total > self._limit:
            possible = places > 0
            if not possible.any():
                break
            saved = -self._changes(places, -1)
            smaller = np.maximum(places - 1, 0)
            loss = errors[self._rows, smaller] - errors[self._rows, places]
            rate = np.where(possible, loss / np.maximum(saved, 1e-12), np.inf)
            places[int(rate.argmin())] -= 1
            total = self._total(places)
        return places

    def _grown(self, places: np.ndarray, errors: np.ndarray) -> np.ndarray:
        """Grow the group that lowers the error most per unit of cost, until none fits."""
        places = places.copy()
        total = self._total(places)
        while True:
            added = self._changes(places, 1)
            larger = np.minimum(places + 1, self._last)
            gain = errors[self._rows, places] - errors[self._rows, larger]
            fits = (places < self._last) & (total + added <= self._limit)
            if not fits.any():
                return places
            rate = np.where(fits, gain / np.maximum(added, 1e-12), -np.inf)
            places[int(rate.argmax())] += 1
            total = self._total(places)

    def _exchanged(self, places: np.ndarray, errors: np.ndarray) -> np.ndarray | None:
        """Return the best network in which one group is a step wider and another a step narrower.

        None if no such network within the budget has a smaller error.
        """
        larger, smaller = np.minimum(places + 1, self._last), np.maximum(places - 1, 0)
        here = errors[self._rows, places]
        gain = np.where(places < self._last, here - errors[self._rows, larger], -np.inf)
        loss = np.where(places > 0, errors[self._rows, smaller] - here, np.inf)
        net = gain[:, None] - loss[None, :]
        np.fill_diagonal(net, -np.inf)
        left = self._limit - self._total(places)
        # Costs of two changes interact, so this only sorts out pairs that are far off.
        estimate = self._changes(places, 1)[:, None] + self._changes(places, -1)[None, :]
        candidates = np.argwhere((net > 1e-12 * here.sum()) & (estimate <= left + np.abs(estimate)))
        order = np.argsort(-net[tuple(candidates.T)], kind="stable")
        for up, down in candidates[order]:
            tried = places.copy()
            tried[up], tried[down] = larger[up], smaller[down]
            if self._total(tried) <= self._limit:
                return tried
        return None


def greedy_widths(space: WidthSpace, budget: Budget, errors: Errors) -> tuple[int, ...]:
    """Return the widths of the least sum of errors within the budget: all weights are equal.

    The sum of the groups' output errors takes the place of the accuracy. It needs no evaluation, as the
    errors were computed with the channel orders.

    Args:
        space, budget, errors: as for ``WeightedAllocation``.
    """
    return WeightedAllocation(space, budget, errors)([1.0] * len(space.names))


def changes(cost: Cost, widths: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Return how the cost changes when each group alone changes its width.

    Args:
        cost: group widths -> cost; if it has a method ``changes`` of these arguments, that is used.
        widths: (G,) channels of every group.
        steps: (G,) channels that each group gains or loses.

    Returns:
        (G,) differences of the cost.
    """
    own = getattr(cost, "changes", None)
    if own is not None:
        found: np.ndarray = own(widths, steps)
        return found
    here = cost(widths.tolist())
    alone = []
    for group, step in enumerate(steps.tolist()):
        moved = widths.tolist()
        moved[group] += step
        alone.append(cost(moved) - here if step else 0.0)
    return np.array(alone)
