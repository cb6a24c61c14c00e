"""Budgets that hold by construction: allowed widths, feasibility, and requests made to fit. Pure numbers.

AMC cuts a request as it comes: a width is lowered until the network would meet the budget with every later
group at its smallest allowed width. So whatever comes last pays for what was asked too much before, and what
was asked too little is lost. Here requests are scaled instead, all by one factor once they are known; the cut
is there for comparison. Widths are multiples of ``round_to`` before either, so that rounding can never carry
the result over the budget.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from amc.budget.widths import WidthSpace
from amc.errors import AmcError

Cost = Callable[[Sequence[int]], float]
"""Cost of a network from its group widths; must not fall when a width grows."""


Fit = Literal["scale", "cut"]
"""How requests are made to fit: scaled by one factor once all are known, or cut each as it comes (AMC)."""


FITS: tuple[Fit, ...] = get_args(Fit)


@dataclass(frozen=True)
class Budget:
    """An upper limit on a cost.

    Attributes:
        kind: what is limited: ``macs`` or ``params`` (any monotone cost fits).
        cost: the cost as a function of the widths, in the unit of ``kind``.
        ratio: allowed share of the dense cost, in (0, 1].
        dense_cost: cost of the dense network.
        enforced: whether requests are made to fit; False where cost is part of the score.
        fit: how; see ``Fit``.
    """

    kind: str
    cost: Cost
    ratio: float
    dense_cost: float
    enforced: bool = True
    fit: Fit = "cut"

    @property
    def limit(self) -> float:
        """Largest allowed cost."""
        return self.ratio * self.dense_cost

    def check_feasible(self, space: WidthSpace) -> None:
        """Fail before any search when even the smallest network is over the budget.

        Raises:
            AmcError: says what the reachable minimum is.
        """
        reachable = self.cost(space.minimum)
        if self.enforced and reachable > self.limit:
            raise AmcError(
                f"budget.{self.kind}_ratio is {self.ratio:g}, but the smallest allowed network keeps "
                f"{reachable / self.dense_cost:.4f} of the {self.kind}; raise the budget, or lower "
                "budget.min_preserve_ratio or budget.round_to"
            )

    def cut(self, space: WidthSpace, decided: Sequence[int], requested: int) -> int:
        """Return the largest allowed width <= ``requested`` with which the budget can be met (AMC, alg. 1).

        Args:
            space: allowed widths.
            decided: executed widths of the groups so far, themselves cut.
            requested: an allowed width of group ``len(decided)``.

        The invariant ``cost(decided + minimum of the rest) <= limit`` holds before (feasibility, or the
        last cut) and after, so the final network is at or under the budget for any request sequence.
        """
        group = len(decided)
        rest = space.minimum[group + 1 :]
        choices = space.choices[group]
        allowed = choices[: bisect_right(choices, requested)]
        index = bisect_right(allowed, self.limit, key=lambda width: self.cost((*decided, width, *rest)))
        return allowed[max(index, 1) - 1]

    def scale(self, space: WidthSpace, ratios: Sequence[float]) -> tuple[int, ...]:
        """Return the widths of ``ratios`` times the largest factor that the budget allows.

        Args:
            space: allowed widths.
            ratios: preserve ratio wanted of every group, in [0, 1]; only what they are to each other counts,
                but that none falls below its group's minimum.

        Every group takes the widest allowed width at or under its share. What rounding leaves of the budget
        goes to the groups that are nearest to their next width, until no group can grow any more; so widths
        that were made in this way, wanted again, are returned as they are.
        """
        smallest = zip(ratios, space.minimum, space.dense, strict=True)
        wanted = [max(ratio, width / dense) * dense for ratio, width, dense in smallest]
        # Group g reaches a width at the factor width / wanted: all growth in the order in which it happens.
        growth = sorted(
            (width / wanted[group], group, width)
            for group, choices in enumerate(space.choices)
            for width in choices[1:]
        )

        def after(steps: int) -> list[int]:
            widths = list(space.minimum)
            for _, group, width in growth[:steps]:
                widths[group] = width
            return widths

        fitting = bisect_right(range(len(growth) + 1), self.limit, key=lambda steps: self.cost(after(steps)))
        reached = max(fitting, 1) - 1  # the smallest network may be over the limit
        widths = after(reached)
        full: set[int] = set()
        for _, group, width in growth[reached:]:
            if group in full:
                continue
            grown = [*widths[:group], width, *widths[group + 1 :]]
            if self.cost(grown) > self.limit:
                full.add(group)
            else:
                widths = grown
        return tuple(widths)


def get_fit(name: str) -> Fit:
    """Return what a configuration names.

    Raises:
        AmcError: there is no such way.
    """
    for fit in FITS:
        if name == fit:
            return fit
    raise AmcError(f"budget.fit is {name!r}; expected one of {', '.join(FITS)}")


def check_ratio(kind: str, ratio: float | None) -> None:
    """Refuse a missing or impossible budget.

    Raises:
        AmcError: no ratio, or one outside (0, 1].
    """
    if ratio is None or not 0 < ratio <= 1:
        raise AmcError(
            f"budget.{kind}_ratio is {ratio}; expected the allowed share of the dense {kind} in (0, 1], "
            "e.g. 0.5 for half"
        )


def make_budget(
    kind: str,
    ratio: float | None,
    cost: Cost,
    dense: Sequence[int],
    *,
    enforced: bool = True,
    fit: Fit = "cut",
) -> Budget:
    """Build a budget after checking its ratio.

    Raises:
        AmcError: no ratio, or one outside (0, 1].
    """
    check_ratio(kind, ratio)
    assert ratio is not None
    return Budget(
        kind=kind,
        cost=cost,
        ratio=float(ratio),
        dense_cost=float(cost(dense)),
        enforced=enforced,
        fit=fit,
    )
