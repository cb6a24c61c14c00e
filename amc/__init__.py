"""The physics of channel pruning: weights, channel groups, widths, cost, accuracy, latency."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from amc.errors import AmcError
from amc.strategy import GroupWidth, Strategy

if TYPE_CHECKING:
    from amc.loading import load_pruned

__all__ = ["AmcError", "GroupWidth", "Strategy", "load_pruned"]


def __getattr__(name: str) -> Any:
    if name == "load_pruned":  # torch is imported only when it is needed
        from amc.loading import load_pruned

        return load_pruned
    raise AttributeError(f"module 'amc' has no attribute {name!r}")
