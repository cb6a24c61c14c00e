"""The widths that channel groups may take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from amc.errors import SettingError


@dataclass(frozen=True)
class WidthSpace:
    """The widths that each channel group may take, in numbers of channels.

    Attributes:
        names: group names in forward order.
        dense: dense width of every group.
        choices: allowed widths of every group, ascending; the last is the dense width.
    """

    names: tuple[str, ...]
    dense: tuple[int, ...]
    choices: tuple[tuple[int, ...], ...]

    @property
    def minimum(self) -> tuple[int, ...]:
        """Smallest allowed width of every group."""
        return tuple(choice[0] for choice in self.choices)

    def on_floor(self, widths: Sequence[int]) -> int:
        """Return how many groups that could be wider sit at their smallest allowed width."""
        pairs = zip(widths, self.choices, strict=True)
        return sum(len(choice) > 1 and width == choice[0] for width, choice in pairs)

    def whole(self, widths: Sequence[int]) -> int:
        """Return how many groups keep all channels."""
        return sum(width == dense for width, dense in zip(widths, self.dense, strict=True))

    def nearest(self, group: int, preserve_ratio: float) -> int:
        """Return the allowed width nearest to ``preserve_ratio`` x the dense width of group number ``group``.

        The smaller width wins a tie.
        """
        wanted = preserve_ratio * self.dense[group]
        return min(self.choices[group], key=lambda width: (abs(width - wanted), width))


def width_space(
    names: Sequence[str],
    dense: Sequence[int],
    *,
    round_to: int = 8,
    min_preserve_ratio: float = 0.2,
    whole: Sequence[int] | None = None,
) -> WidthSpace:
    """Return the multiples of ``round_to`` that keep at least ``min_preserve_ratio``, and the dense width.

    A group that is no wider than ``round_to`` has one choice, its dense width: it stays whole.

    Args:
        names: group names in forward order.
        dense: dense width of every group.
        round_to: channel multiple.
        min_preserve_ratio: smallest share of a group that may be kept, in (0, 1].
        whole: width of every group of which the share is taken, if the network was cut before; by default
            ``dense``.

    Raises:
        SettingError: ``round_to`` is below 1 or larger than every group, or the ratio is outside (0, 1].
    """
    if round_to < 1:
        raise SettingError(f"budget.round_to is {round_to}; expected a channel multiple of at least 1")
    if not 0 < min_preserve_ratio <= 1:
        raise SettingError(f"budget.min_preserve_ratio is {min_preserve_ratio}; expected a share in (0, 1]")
    if round_to > max(dense, default=round_to):
        raise SettingError(
            f"budget.round_to is {round_to}, larger than every channel group; "
            f"expected at most {max(dense)} for this network"
        )
    choices = tuple(
        _choices(width, round_to, min_preserve_ratio * full)
        for width, full in zip(dense, whole or dense, strict=True)
    )
    return WidthSpace(tuple(names), tuple(dense), choices)


def _choices(dense: int, round_to: int, least: float) -> tuple[int, ...]:
    # Without the slack, 0.3 * 10 = 3.0000000000000004 would require a fourth channel.
    low = max(1, ceil(least / round_to - 1e-9)) * round_to
    return (*range(low, dense, round_to), dense)
