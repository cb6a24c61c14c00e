"""The axis that holds the channels of each tensor of a traced network, from its backward functions.

torch-pruning follows positions without an axis. The axis tells a map of one channel that is broadcast to all
channels from a map that has them, and a parameter a channel from one of pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

_REARRANGING = ("view", "reshape", "unsafeview", "squeeze", "unsqueeze", "alias")
_BROADCASTING = ("mul", "add", "sub", "rsub", "div", "maximum", "minimum", "where", "pow", "lerp", "expand")
_MIXING = ("bmm", "scaleddotproduct", "stack", "index", "gather")
"""Start of the name of a backward function: axes are regrouped, operands broadcast, channels lost."""


class ChannelAxes:
    """The channel axis of the results of backward functions, computed when asked for."""

    def __init__(self) -> None:
        self._known: dict[Any, int | None] = {}

    def of(self, function: Any) -> int | None:
        """Return the channel axis of a function's result, counted from the end (-1 is the last), or None."""
        waiting = [function]
        while waiting:
            current = waiting[-1]
            missing = [f for f, _ in _operands(current) if f not in self._known]
            if current in self._known or not missing:
                waiting.pop()
                if current not in self._known:
                    self._known[current] = self._computed(current)
            else:
                waiting += missing
        return self._known[function]

    def place(self, function: Any) -> int | None:
        """Return the channel axis of what a function of one operand reads, counted from 0, or None."""
        operands = _operands(function)
        if len(operands) != 1:
            return None
        axis = self.of(operands[0][0])
        return None if axis is None else axis + len(shape_of(*operands[0]))

    def _computed(self, function: Any) -> int | None:
        kind, after = kind_of(function), shape_of(function)
        if "convolution" in kind or "batchnorm" in kind or "groupnorm" in kind:
            return 1 - len(after) if len(after) > 1 else None
        if kind.startswith(("addmm", "mm", "linear")):
            return -1
        if kind.startswith(_MIXING):
            return None
        found = {
            moved(function, axis, shape_of(operand, index))
            for operand, index in _operands(function)
            if (axis := self._known[operand]) is not None
        }
        return found.pop() if len(found) == 1 else None

    def broadcast(self, function: Any) -> list[bool]:
        """Return for every operand whether its one channel serves all channels of the result."""
        axis, after = self.of(function), shape_of(function)
        operands = _operands(function)
        if axis is None or not kind_of(function).startswith(_BROADCASTING) or after[axis] == 1:
            return [False] * len(operands)
        return [channels_at(shape_of(*operand), axis) == 1 for operand in operands]


def kind_of(function: Any) -> str:
    """Return the name of a backward function in small letters; '' if it has none."""
    return function.name().lower() if hasattr(function, "name") else ""


def shape_of(function: Any, index: int = 0) -> tuple[int, ...]:
    """Return the shape of a result of a backward function, or of the parameter that it stands for."""
    if hasattr(function, "variable"):
        return tuple(function.variable.shape)
    return tuple(function._input_metadata[index].shape) if hasattr(function, "_input_metadata") else ()


def channels_at(shape: Sequence[int], axis: int) -> int:
    """Return the length of an axis counted from the end; 1 where a shape does not reach that far."""
    return shape[axis] if -axis <= len(shape) else 1


def normal_dim(saved: int, ndim: int) -> int:
    """Return a saved axis counted from 0; autograd stores negative ones as huge unsigned numbers."""
    return (saved - 2**64 if saved > 2**32 else saved) % ndim


def reduced_dims(function: Any, ndim: int) -> set[int]:
    """Return the axes, counted from 0, over which a mean or the like is taken; all if it names none."""
    dims = getattr(function, "_saved_dim", None)
    if dims is None or ndim == 0:
        return set(range(ndim))
    listed = [dims] if isinstance(dims, int) else list(dims)
    return {normal_dim(dim, ndim) for dim in listed} or set(range(ndim))


def moved(function: Any, axis: int, before: Sequence[int]) -> int | None:
    """Return the axis of the result that an operand's axis becomes, both counted from the end, or None."""
    kind, after, ndim = kind_of(function), shape_of(function), len(before)
    place = axis + ndim
    if place < 0:
        return None
    if kind.startswith("permute"):
        return [normal_dim(dim, ndim) for dim in function._saved_dims].index(place) - ndim
    if kind.startswith("transpose"):
        pair = [normal_dim(dim, ndim) for dim in (function._saved_dim0, function._saved_dim1)]
        return (pair[1 - pair.index(place)] if place in pair else place) - ndim
    if kind.startswith("tbackward"):
        return -3 - axis
    if kind.startswith(_REARRANGING):
        return regrouped(place, before, after)
    if len(after) < ndim:
        gone = reduced_dims(function, ndim)
        if place in gone or len(after) != ndim - len(gone):
            return None
        return place - sum(dim < place for dim in gone) - len(after)
    return axis


def regrouped(place: int, before: Sequence[int], after: Sequence[int]) -> int | None:
    """Return the axis, from the end, on which the channels lie first of all after a reshape, or None."""
    if tuple(before) == tuple(after):
        return place - len(before)
    outer, channels = prod(before[:place]), before[place]
    if channels == 1:
        return None
    for to, length in enumerate(after):
        if prod(after[:to]) == outer and length % channels == 0 and length > 1:
            return to - len(after)
    return None


def _operands(function: Any) -> list[tuple[Any, int]]:
    return [(f, index) for f, index in getattr(function, "next_functions", ()) if f is not None]
