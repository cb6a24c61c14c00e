"""Refitted weights by layer and kept channels, so that a candidate looks them up."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from amc.refit.nested import Refit


class RefitCache:
    """Refits by (layer, kept columns), so that a candidate looks weights up; least recently used go first.

    Args:
        solve: ``(layer, kept input channels, ascending) -> Refit``.
        limit_bytes: bound on the memory held.
    """

    def __init__(self, solve: Callable[[str, Tensor], Refit], limit_bytes: int) -> None:
        self._solve = solve
        self._limit = limit_bytes
        self._entries: dict[tuple[str, bytes], Refit] = {}
        self._bytes = 0

    def __call__(self, layer: str, channels: Tensor) -> Refit:
        """Return the refit of ``layer`` when only ``channels`` of its input are kept."""
        key = (layer, channels.numpy().tobytes())
        found = self._entries.pop(key, None)
        if found is None:
            found = self._solve(layer, channels)
            self._bytes += found.nbytes
        self._entries[key] = found
        while self._bytes > self._limit and len(self._entries) > 1:
            oldest = next(iter(self._entries))
            self._bytes -= self._entries.pop(oldest).nbytes
        return found
