"""A budget of one or more limits, and two ways to make requested widths fit it.

No cost falls when a width grows, so a network within the budget stays within it when a group shrinks. This is
all that the searches for the largest fitting widths rely on, however many limits there are.

``Budget.cut`` is AMC's way. Requests come one group at a time, and each is lowered until the network would
meet the budget with all later groups at their smallest width. The last groups therefore pay for large
requests of the first ones, and a budget that is not used up is lost.

``Budget.scale`` waits until all requests are known and multiplies them by one factor. The cut is kept for
comparison.

Both choose among allowed widths only, so that no later rounding can exceed the budget.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Literal, TypeVar, get_args

from amc.budget.widths import WidthSpace
from amc.errors import SettingError

Cost = Callable[[Sequence[int]], float]
"""Group widths -> cost of the network; must not fall when a width grows."""

Fit = Literal["scale", "cut"]
"""How requests are made to fit: scaled by one factor at the end, or cut one by one (AMC)."""

FITS: tuple[Fit, ...] = get_args(Fit)

KINDS = ("macs", "params", "size", "latency")
"""The costs that a budget may limit."""

T = TypeVar("T")


@dataclass(frozen=True)
class Limit:
    """An upper limit on one cost.

    Attributes:
        kind: the name of the cost, such as ``macs`` or ``params``.
        cost: group widths -> cost, in the unit of ``kind``.
        ratio: allowed share of the dense cost, in (0, 1].
        dense_cost: cost of the dense network, in the unit of ``kind``.
    """

    kind: str
    cost: Cost
    ratio: float
    dense_cost: float

    @property
    def largest(self) -> float:
        """Largest allowed cost, in the unit of ``kind``: its share of the dense cost is at most ``ratio``.

        The product of both is rounded, so that a network could exceed its own share by the last bit.
        """
        product = self.ratio * self.dense_cost
        near = (math.nextafter(product, math.inf), product)
        fitting = (cost for cost in near if cost / self.dense_cost <= self.ratio)
        return next(fitting, math.nextafter(product, 0.0))

    def met(self, widths: Sequence[int]) -> bool:
        """Whether the network of these widths costs no more than the limit."""
        return self.cost(widths) <= self.largest

    def share(self, widths: Sequence[int]) -> float:
        """Return the share of the dense cost that the network of these widths keeps."""
        return self.cost(widths) / self.dense_cost

    def left_of(self, start: Sequence[int]) -> float:
        """Return the share of the cost at the widths ``start`` that is allowed, in (0, 1]."""
        return min(1.0, self.ratio / self.share(start))

    def eased(self, progress: float, start: Sequence[int]) -> Limit:
        """Return the limit on the way to this one; see ``Budget.eased``."""
        first = max(self.share(start), self.ratio)
        # exactly the ratio at progress 1, and its power where the start has the whole cost
        return replace(self, ratio=max(self.ratio, self.ratio**progress * first ** (1.0 - progress)))


@dataclass(frozen=True)
class Budget:
    """Limits that all hold at once.

    Attributes:
        limits: at least one; the first is the leading one, which names the budget.
        enforced: whether requests are made to fit. AMC's accuracy-guaranteed mode needs no limit.
        fit: how requests are made to fit.
    """

    limits: tuple[Limit, ...]
    enforced: bool = True
    fit: Fit = "scale"

    @property
    def leading(self) -> Limit:
        """The limit that names the budget."""
        return self.limits[0]

    def of(self, kind: str) -> Limit:
        """Return the limit of one kind.

        Raises:
            SettingError: there is none.
        """
        for limit in self.limits:
            if limit.kind == kind:
                return limit
        kinds = ", ".join(limit.kind for limit in self.limits)
        raise SettingError(f"the budget limits {kinds}; expected a limit of the {kind}, budget.{kind}_ratio")

    def fits(self, widths: Sequence[int]) -> bool:
        """Whether the network of these widths meets every limit, enforced or not."""
        return all(limit.met(widths) for limit in self.limits)

    def allows(self, widths: Sequence[int]) -> bool:
        """Whether the network of these widths may be the result: it meets what is enforced."""
        return not self.enforced or self.fits(widths)

    def eased(self, progress: float, start: Sequence[int]) -> Budget:
        """Return the budget on the way to this one, on which limits fall by factors.

        Args:
            progress: from 0, where the network that the way starts from fits, to 1, this very budget.
            start: its widths. Dense ones may keep less than all: as bytes of int8 a quarter of float32.
        """
        return replace(self, limits=tuple(limit.eased(progress, start) for limit in self.limits))

    def shares(self, widths: Sequence[int]) -> dict[str, float]:
        """Return the kept share of each limited cost, by kind, for the network of these widths."""
        return {limit.kind: limit.share(widths) for limit in self.limits}

    def described(self) -> dict[str, Any]:
        """Return ``kind`` and ``ratio`` of the leading limit, and the ratios of any others as ``further``."""
        further = {limit.kind: limit.ratio for limit in self.limits[1:]}
        own: dict[str, Any] = {"kind": self.leading.kind, "ratio": self.leading.ratio}
        return {**own, "further": further} if further else own

    def shortfall(self, widths: Sequence[int]) -> str:
        """Return what the network of these widths keeps of each cost whose limit it exceeds, as text."""
        return " and ".join(
            f"{limit.share(widths):.4f} of the dense {limit.kind}, over {limit.kind}_ratio={limit.ratio:g}"
            for limit in self.limits
            if not limit.met(widths)
        )

    def check_feasible(self, space: WidthSpace) -> None:
        """Check that the smallest network is within the budget; it is the smallest in every cost.

        Raises:
            SettingError: it is not; the message names the limits that cannot be met, and gives the smallest
                feasible ratio of each limit.
        """
        if self.allows(space.minimum):
            return
        missed = [limit for limit in self.limits if not limit.met(space.minimum)]
        asked = " and ".join(f"budget.{limit.kind}_ratio is {limit.ratio:g}" for limit in missed)
        reachable = " and ".join(
            f"{rounded_up(limit.share(space.minimum))} of the {limit.kind}" for limit in self.limits
        )
        raise SettingError(
            f"{asked}, but the smallest allowed network keeps {reachable}; raise the budget, or lower "
            "budget.min_preserve_ratio or budget.round_to"
        )

    def cut(self, space: WidthSpace, decided: Sequence[int], requested: int) -> int:
        """Return the largest allowed width <= ``requested`` with which the budget can be met (AMC, alg. 1).

        Args:
            space: allowed widths.
            decided: widths of the groups before this one, as earlier calls returned them.
            requested: an allowed width of group ``len(decided)``.

        Before and after the call, ``decided + minimum of the rest`` fits. Feasibility gives it for the first
        group, so the final network is within the budget for every sequence of requests.
        """
        group = len(decided)
        rest = space.minimum[group + 1 :]
        choices = space.choices[group]
        allowed = choices[: bisect_right(choices, requested)]
        fitting = count_fitting(allowed, lambda width: self.fits((*decided, width, *rest)))
        return allowed[max(fitting, 1) - 1]

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

        fitting = count_fitting(range(len(growth) + 1), lambda steps: self.fits(after(steps)))
        reached = max(fitting, 1) - 1  # even the smallest network may exceed a limit
        widths = after(reached)
        full: set[int] = set()
        for _, group, width in growth[reached:]:
            if group in full:
                continue
            grown = [*widths[:group], width, *widths[group + 1 :]]
            if self.fits(grown):
                widths = grown
            else:
                full.add(group)
        return tuple(widths)


def rounded_up(share: float) -> str:
    """Return a share with four decimals, not below it: a budget of what is shown can be met."""
    nearest = f"{share:.4f}"
    return nearest if float(nearest) >= share else str(Decimal(nearest) + Decimal("0.0001"))


def count_fitting(candidates: Sequence[T], fits: Callable[[T], bool]) -> int:
    """Return how many candidates fit, where all that fit come before those that do not."""
    return bisect_left(candidates, True, key=lambda candidate: not fits(candidate))


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


def make_limit(
    kind: str, ratio: float | None, cost: Cost, dense: Sequence[int], *, dense_cost: float | None = None
) -> Limit:
    """Build a limit.

    Args:
        kind, ratio, cost: as in ``Limit``.
        dense: dense width of every group.
        dense_cost: cost of the dense network, where it is not that of its widths: bits as float32.

    Raises:
        SettingError: ``ratio`` is None or outside (0, 1].
    """
    check_ratio(kind, ratio)
    assert ratio is not None
    whole = cost(dense) if dense_cost is None else dense_cost
    return Limit(kind=kind, cost=cost, ratio=float(ratio), dense_cost=float(whole))


def make_budget(
    kind: str,
    ratio: float | None,
    cost: Cost,
    dense: Sequence[int],
    *,
    enforced: bool = True,
    fit: Fit = "scale",
) -> Budget:
    """Build a budget of one limit.

    Args:
        kind, ratio, cost, dense: as in ``make_limit``.
        enforced, fit: as in ``Budget``.

    Raises:
        SettingError: ``ratio`` is None or outside (0, 1].
    """
    return Budget((make_limit(kind, ratio, cost, dense),), enforced=enforced, fit=fit)
