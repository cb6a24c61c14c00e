"""Whether the allowed widths leave a search room: groups at their smallest width could give more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from amc.budget.widths import WidthSpace


def room_left(space: WidthSpace, widths: Sequence[int]) -> dict[str, Any]:
    """Return how many of the ``groups`` sit at their smallest allowed width, and how many are whole.

    Args:
        space: the allowed widths.
        widths: of the network that was chosen.

    Returns:
        ``groups``, ``groups_on_floor``, ``groups_whole``, and ``advice`` if more than a third are on the
        floor.
    """
    groups, floor = len(space.names), space.on_floor(widths)
    facts: dict[str, Any] = {
        "groups": groups,
        "groups_on_floor": floor,
        "groups_whole": space.whole(widths),
    }
    if 3 * floor > groups:
        facts["advice"] = (
            f"{floor} of {groups} groups sit at their smallest allowed width: lower "
            "budget.min_preserve_ratio or budget.round_to"
        )
    return facts
