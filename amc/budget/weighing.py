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
TRIED = 8
"""Most pairs of groups whose exchange is tried before a network counts as settled."""


class WeightedAllocation:
    """Finds the widths of the least weighted error within a budget, for any weights.

    The dense network shrinks greedily: each step takes the group whose weighted error rises least per unit of
    cost saved, relative to the limits that are still exceeded. Then groups grow again into what the last step
    left over, and pairs of groups exchange channels, as long as the weighted error falls.

    Args:
        space: the widths that groups may take.
        budget: the limits.
        errors: output error of every group at every width from 0 to dense.
    """

    def __init__(self, space: WidthSpace, budget: Budget, errors: Errors) -> None:
        self._space = space
        binding = tuple(limit for limit in budget.limits if not limit.met(space.dense))
        self._limits = binding or budget.limits[:1]  # a limit that the dense network meets changes nothing
        self._largest = np.array([limit.largest for limit in self._limits])
        most = max(len(choices) for choices in space.choices)
        # Row g: the widths of group g and its errors at them, padded at the end.
        self._widths = np.array([[*c, *c[-1:] * (most - len(c))] for c in space.choices], dtype=np.int64)
        curves = [np.asarray(errors[name], dtype=np.float64) for name in space.names]
        self._errors = np.stack([curve[row] for curve, row in zip(curves, self._widths, strict=True)])
        self._last = np.array([len(choices) - 1 for choices in space.choices])
        self._groups = np.arange(len(space.names))

    def __call__(self, weights: Sequence[float]) -> tuple[int, ...]:
        """Return the widths; the smallest ones if even they exceed the budget.

        Args:
            weights: (G,) positive factors of the error curves.
        """
        return tuple(self.many(np.asarray(weights, dtype=np.float64)[None])[0].tolist())

    def many(self, weights: np.ndarray) -> np.ndarray:
        """Return the widths (N, G) for many weights (N, G), each as if it were alone."""
        errors = self._errors * weights[:, :, None]
        places = self._shrunk(errors)
        fitting = np.flatnonzero(self._fits(places))
        if len(fitting):
            places[fitting] = self._settled(places[fitting], errors[fitting])
        return self._at(places)

    def errors_at(self, widths: Sequence[int]) -> np.ndarray:
        """Return each group's error (G,) at allowed ``widths``, by its unweighted curve."""
        places = [choices.index(width) for choices, width in zip(self._space.choices, widths, strict=True)]
        found: np.ndarray = self._errors[self._groups, places]
        return found

    def _at(self, places: np.ndarray) -> np.ndarray:
        found: np.ndarray = self._widths[self._groups, places]
        return found

    def _costs(self, places: np.ndarray) -> np.ndarray:
        """Return the costs (limits, N) of networks (N, G)."""
        widths = self._at(places)
        return np.stack([totals(limit.cost, widths) for limit in self._limits])

    def _met(self, places: np.ndarray) -> np.ndarray:
        """Return which limits (limits, N) the networks meet."""
        found: np.ndarray = self._costs(places) <= self._largest[:, None]
        return found

    def _fits(self, places: np.ndarray) -> np.ndarray:
        found: np.ndarray = np.all(self._met(places), axis=0)
        return found

    def _alone(self, places: np.ndarray, step: int) -> np.ndarray:
        """Return the costs (limits, N, G) if each group alone goes ``step`` places up or down."""
        here = self._at(places)
        steps = self._at(np.clip(places + step, 0, self._last)) - here
        return np.stack([with_one_changed(limit.cost, here, steps) for limit in self._limits])

    def _relative(self, costs: np.ndarray) -> np.ndarray:
        """Return the sum (N, G) of costs (limits, N, G), each as a share of its limit."""
        found: np.ndarray = (costs / self._largest[:, None, None]).sum(axis=0)
        return found

    def _own(self, errors: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Return the errors (N, G) at the places, of errors (N, G, widths)."""
        return np.take_along_axis(errors, places[:, :, None], axis=2)[:, :, 0]

    def _shrunk(self, errors: np.ndarray) -> np.ndarray:
        places = np.tile(self._last, (len(errors), 1))
        active = np.flatnonzero(~self._fits(places))
        while len(active):
            now, own = places[active], errors[active]
            exceeded = ~self._met(now)  # a saving on a limit that is met already counts nothing
            changed = self._costs(now)[:, :, None] - self._alone(now, -1)
            saved = self._relative(changed * exceeded[:, :, None])
            loss = self._own(own, np.maximum(now - 1, 0)) - self._own(own, now)
            rate = np.where(now > 0, loss / np.maximum(saved, 1e-15), np.inf)
            chosen = rate.argmin(axis=1)
            places[active, chosen] -= 1
            over = ~self._fits(places[active])
            active = active[over & (places[active] > 0).any(axis=1)]
        return places

    def _grown(self, places: np.ndarray, errors: np.ndarray) -> np.ndarray:
        """Grow the group that lowers the error most per unit of cost, until none fits."""
        places = places.copy()
        active = np.arange(len(places))
        while len(active):
            now, own = places[active], errors[active]
            grown = self._alone(now, 1)
            added = grown - self._costs(now)[:, :, None]
            gain = self._own(own, now) - self._own(own, np.minimum(now + 1, self._last))
            growable = (now < self._last) & (grown <= self._largest[:, None, None]).all(axis=0)
            rate = np.where(growable, gain / np.maximum(self._relative(added), 1e-15), -np.inf)
            grows = growable.any(axis=1)
            active = active[grows]
            places[active, rate.argmax(axis=1)[grows]] += 1
        return places

    def _settled(self, places: np.ndarray, errors: np.ndarray) -> np.ndarray:
        """Grow and exchange until neither lowers the error."""
        places = self._grown(places, errors)
        active = np.arange(len(places))
        for _ in range(EXCHANGES * len(self._groups)):
            found = [self._exchanged(places[row], errors[row]) for row in active]
            changed = [place for place, better in enumerate(found) if better is not None]
            if not changed:
                break
            active = active[changed]
            better = np.stack([own for own in found if own is not None])
            places[active] = self._grown(better, errors[active])
        return places

    def _exchanged(self, places: np.ndarray, errors: np.ndarray) -> np.ndarray | None:
        """Return a network in which one group is a step wider and another a step narrower.

        Args:
            places: (G,) of one network.
            errors: (G, widths).

        Returns:
            The network of the smallest error among those tried; None if none is better and within the budget.
        """
        larger, smaller = np.minimum(places + 1, self._last), np.maximum(places - 1, 0)
        here = errors[self._groups, places]
        gain = np.where(places < self._last, here - errors[self._groups, larger], -np.inf)
        loss = np.where(places > 0, errors[self._groups, smaller] - here, np.inf)
        net = gain[:, None] - loss[None, :]
        net[self._groups, self._groups] = -np.inf
        up, down = np.nonzero(net > 1e-12 * here.sum())
        if not len(up):
            return None
        # Costs of two changes interact, so this only leaves out pairs that are far off.
        costs_here = self._costs(places[None])
        left = self._largest[:, None] - costs_here
        added = self._alone(places[None], 1)[:, 0] - costs_here
        saved = costs_here - self._alone(places[None], -1)[:, 0]
        near = (added[:, up] - saved[:, down] <= left + 0.1 * added[:, up]).all(axis=0)
        up, down = up[near], down[near]
        for pair in np.argsort(-net[up, down], kind="stable")[:TRIED]:
            tried = places.copy()
            tried[up[pair]], tried[down[pair]] = larger[up[pair]], smaller[down[pair]]
            if self._fits(tried[None])[0]:
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


def totals(cost: Cost, widths: np.ndarray) -> np.ndarray:
    """Return the costs (N,) of N networks of ``widths`` (N, G); a cost may have a method ``many`` for it."""
    own = getattr(cost, "many", None)
    if own is not None:
        found: np.ndarray = own(widths)
        return found
    return np.array([cost(row) for row in widths.tolist()], dtype=np.float64)


def with_one_changed(cost: Cost, widths: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Return the costs (N, G) of N networks when each group alone changes its width.

    Args:
        cost: group widths -> cost; it may have a method of this name and of the other arguments.
        widths: (N, G) channels of every group.
        steps: (N, G) channels that each group gains or loses.
    """
    own = getattr(cost, "with_one_changed", None)
    if own is not None:
        found: np.ndarray = own(widths, steps)
        return found
    return np.array([_each(cost, *rows) for rows in zip(widths.tolist(), steps.tolist(), strict=True)])


def _each(cost: Cost, widths: list[int], steps: list[int]) -> list[float]:
    here = float(cost(widths))
    return [
        float(cost([*widths[:group], widths[group] + step, *widths[group + 1 :]])) if step else here
        for group, step in enumerate(steps)
    ]
