"""A budget, and two ways to make requested widths fit it.

``Budget.cut`` is AMC's way. Requests come one group at a time, and each is lowered until the network would
meet the budget with all later groups at their smallest width. The last groups therefore pay for large
requests of the first ones, and a budget that is not used up is lost.

``Budget.scale`` waits until all requests are known and multiplies them by one factor. The cut is kept for
comparison.

Both choose among allowed widths only, so that no later rounding can exceed the budget.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from amc.budget.widths import WidthSpace
from amc.errors import SettingError

Cost = Callable[[Sequence[int]], float]
"""Group widths -> cost of the network; must not fall when a width grows."""

Fit = Literal["scale", "cut"]
"""How requests are made to fit: scaled by one factor at the end, or cut one by one (AMC)."""

FITS: tuple[Fit, ...] = get_args(Fit)


@dataclass(frozen=True)
class Budget:
    """An upper limit on a cost.

    Attributes:
        kind: the name of the cost, such as ``macs`` or ``params``.
        cost: group widths -> cost, in the unit of ``kind``.
        ratio: allowed share of the dense cost, in (0, 1].
        dense_cost: cost of the dense network, in the unit of ``kind``.
        enforced: whether requests are made to fit. AMC's accuracy-guaranteed mode needs no limit.
        fit: how requests are made to fit.
    """

    kind: str
    cost: Cost
    ratio: float
    dense_cost: float
    enforced: bool = True
    fit: Fit = "cut"

    @property
    def limit(self) -> float:
        """Largest allowed cost, in the unit of ``kind``."""
        return self.ratio * self.dense_cost

    def check_feasible(self, space: WidthSpace) -> None:
        """Check that the smallest network is within the budget.

        Raises:
            SettingError: it is not; the message gives the smallest feasible ratio.
        """
        reachable = self.cost(space.minimum)
        if self.enforced and reachable > self.limit:
            raise SettingError(
                f"budget.{self.kind}_ratio is {self.ratio:g}, but the smallest allowed network keeps "
                f"{reachable / self.dense_cost:.4f} of the {self.kind}; raise the budget, or lower "
                "budget.min_preserve_ratio or budget.round_to"
            )

    def cut(self, space: WidthSpace, decided: Sequence[int], requested: int) -> int:
        """Return the largest allowed width <= ``requested`` with which the budget can be met (AMC, alg. 1).

        Args:
            space: allowed widths.
            decided: widths of the groups before this one, as earlier calls returned them.
            requested: an allowed width of group ``len(decided)``.

        Before and after the call, ``cost(decided + minimum of the rest) <= limit``. Feasibility gives it for
        the first group, so the final network is within the budget for every sequence of requests.
        """
        group = len(decided)
        rest = space.minimum[group + 1 :]
        choices = space.choices[group]
        allowed = choices[: bisect_right(choices, requested)]
        index = bisect_right(allowed, self.limit, key=lambda width: self.cost((*decided, width, *rest)))
        return allowed[max(index, 1) - 1]

    def scale(self, space: WidthSpace, ratios: Sequence[float]) -> tuple[int, ...]:
        """Return the widths that result from ``ratios`` times the largest factor that the budget allows.

        Args:
            space: allowed widths.
            ratios: requested preserve ratio of every group, in [0, 1]. A ratio below the minimum of its group
                is raised to it; apart from that, only the proportions count.

        Every group takes the largest allowed width at or below its scaled request. The rest of the budget
        goes to the groups that are nearest to their next width, until no group can grow. Widths that this
        method returned are therefore returned unchanged when they are requested again.
        """
        smallest = zip(ratios, space.minimum, space.dense, strict=True)
        wanted = [max(ratio, width / dense) * dense for ratio, width, dense in smallest]
        # A group reaches a width when the factor is width / wanted.
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
        reached = max(fitting, 1) - 1  # even the smallest network may exceed the limit
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
    """Return ``name`` as a ``Fit``.

    Raises:
        SettingError: it is none of ``FITS``.
    """
    for fit in FITS:
        if name == fit:
            return fit
    raise SettingError(f"budget.fit is {name!r}; expected one of {', '.join(FITS)}")


def check_ratio(kind: str, ratio: float | None) -> None:
    """Check the allowed share of the dense ``kind``.

    Raises:
        SettingError: ``ratio`` is None or outside (0, 1].
    """
    if ratio is None or not 0 < ratio <= 1:
        raise SettingError(
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
    """Build a budget.

    Args:
        kind, ratio, cost, enforced, fit: as in ``Budget``.
        dense: dense width of every group.

    Raises:
        SettingError: ``ratio`` is None or outside (0, 1].
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
