"""Walls: operations through which channels cannot be followed, with reasons."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from amc.graph.axes import ChannelAxes, kind_of, normal_dim, reduced_dims, regrouped, shape_of

_WALLS = {
    "pixelshuffle": "pixel shuffle moves channels into space",
    "pixelunshuffle": "pixel unshuffle moves space into channels",
    "bmm": "a matrix product mixes the channels",
    "scaleddotproduct": "attention mixes the channels",
    "stack": "a stack puts the channels on a new axis",
    "repeat": "the channels are repeated",
    "im2col": "an unfold moves space into channels",
}
"""Start of the name of a backward function -> why channels cannot be followed through it."""


_PRODUCTS = ("mm", "addmm", "convolution")
_MEANS = ("mean", "var", "std")
_REDUCTIONS = {
    "amax": "a maximum", "max": "a maximum", "amin": "a minimum", "min": "a minimum",
    "aminmax": "a minimum and a maximum", "median": "a median", "nanmedian": "a median",
    "mode": "a mode", "kthvalue": "a rank", "sum": "a sum", "nansum": "a sum", "prod": "a product",
    "logsumexp": "a logsumexp", "norm": "a norm", "linalgvectornorm": "a norm",
}  # fmt: skip
"""Name of a backward function -> what it takes of an axis: one value, which is no channel."""
_PRODUCT = "a product outside of the layers mixes the channels"
_DEPTHWISE = "a depthwise convolution outside of the layers has a fixed number of channels"
_SPLIT = "the forward pass splits the channels at places that may be fixed numbers"
_PADDED = (
    "padding adds channels of a constant before them; amc.models.OptionAShortcut does so in a way that can "
    "be pruned"
)
_FLIPPED = "the channels are reversed by a flip"
_ROLLED = "the channels are shifted by a roll"
_SUMMED = "a cumulative sum mixes the channels"
_CHUNK = "chunk splits channels that operations before it have rearranged"


@dataclass(frozen=True)
class Fold:
    """Several positions of an axis become one, or one becomes several: equal chunks, and flattening.

    The longer axis is ``outer`` runs of ``channels`` times ``inner`` positions; the shorter one has the
    channels.
    """

    channels: int
    outer: int = 1
    inner: int = 1

    def short(self, position: int) -> int:
        """Return the channel of a position of the longer axis."""
        return position // self.inner % self.channels

    def long(self, channel: int) -> list[int]:
        """Return the positions of a channel on the longer axis."""
        step = self.channels * self.inner
        starts = range(channel * self.inner, self.outer * step, step)
        return [start + offset for start in starts for offset in range(self.inner)]


@dataclass(frozen=True)
class Front:
    """The channels are the first positions of a longer axis; what padding adds behind them is no channel."""

    channels: int

    def short(self, position: int) -> int | None:
        """Return the channel of a position of the longer axis; None behind the channels."""
        return position if position < self.channels else None

    def long(self, channel: int) -> list[int]:
        """Return the position of a channel on the longer axis."""
        return [channel]


@dataclass(frozen=True)
class Verdict:
    """How channels pass an operation.

    Attributes:
        neutral: every channel keeps its index.
        wall: why channels end there, or None.
        narrowed: the operation shortens the axis, its operand has the longer one.
        widened: the operation lengthens the axis.
        reduced: what the operation makes of all channels, or None; its result has none of them.

    Without any of them the operation is left to torch-pruning.
    """

    neutral: bool = False
    wall: str | None = None
    narrowed: Fold | None = None
    widened: Fold | Front | None = None
    reduced: str | None = None


class Judge:
    """Judges the operations between the layers by their backward functions.

    Args:
        axes: the channel axes of the traced network.
        chunked: the results of ``chunk``, as ``amc.graph.recording.Chunks`` found them: backward functions.
        readings: what each module reads (``amc.graph.recording.Readings``).
    """

    def __init__(
        self,
        axes: ChannelAxes,
        chunked: Container[Any] = (),
        readings: Mapping[Any, Sequence[Any]] | None = None,
    ) -> None:
        self._axes = axes
        self._chunked = chunked
        self._readings = {} if readings is None else readings  # filled later, by the forward pass

    def __call__(self, node: Any) -> Verdict:
        """Judge torch-pruning's node of a module or operation."""
        function = node.grad_fn
        kind = kind_of(function)
        if type(node.module).__module__ != "torch_pruning.ops":
            return Verdict()  # a module of the network, for which torch-pruning has a pruner
        if (reason := getattr(function, "wall", None)) is not None:
            return Verdict(wall=str(reason))  # a recurrent layer
        if not node.inputs and kind.startswith(("repeat", "expand")):
            return Verdict(neutral=True)  # constants, or weights of a layer of its own
        if kind.startswith("repeat") and _same_channels(function):
            return Verdict(neutral=True)
        for part, reason in _WALLS.items():
            if kind.startswith(part):
                return Verdict(wall=reason)
        if kind.startswith("cat"):
            return Verdict(wall=_judge_concat(node))
        if kind.startswith(_PRODUCTS) and not self._within_module(node):
            return Verdict(wall=_DEPTHWISE if _depthwise(function) else _PRODUCT)
        if kind.startswith("glu"):
            return self._halves(function)
        if kind.startswith(_MEANS) or kind.partition("backward")[0] in _REDUCTIONS:
            return self._reduction(function, kind.partition("backward")[0])
        if kind.startswith(("constantpad", "flip", "roll", "cumsum")):
            return self._moving(function, kind)
        if not hasattr(function, "_saved_self_sym_sizes"):
            return Verdict()
        before = tuple(function._saved_self_sym_sizes)
        if kind.startswith("expand") and any(self._axes.broadcast(function)):
            return Verdict(neutral=True)
        if kind.startswith(("view", "reshape", "unsafeview", "expand")):
            return self._reshape(function, before, shape_of(function))
        if kind.startswith(("split", "slice", "unbind")):
            dim = normal_dim(function._saved_dim, len(before))
            if dim == self._axes.place(function) and function in self._chunked:
                return Verdict(narrowed=Fold(shape_of(function)[dim], before[dim] // shape_of(function)[dim]))
            if dim not in _channel_dims(before) or _whole(function, before[dim]):
                return Verdict(neutral=True)
            return Verdict(wall=_CHUNK if function in self._chunked else _SPLIT)
        return Verdict()

    def _within_module(self, node: Any, most: int = 4) -> bool:
        """Return whether an operation is a part of a module, which has its last operation as its own node."""
        for _ in range(most):
            users = {id(user): user for user in node.outputs}
            if len(users) != 1:
                return False
            (user,) = users.values()
            if any(function is node.grad_fn for function in self._readings.get(user.module, ())):
                return False  # the module reads what was computed before
            if type(user.module).__module__ != "torch_pruning.ops":
                return True
            node = user
        return False

    def _halves(self, function: Any) -> Verdict:
        """Judge a gated linear unit, the product of one half with the sigmoid of the other."""
        after = shape_of(function)
        dim = normal_dim(function._saved_dim, len(after))
        place = self._axes.place(function)
        if place is None:
            return Verdict(wall="a gated linear unit splits an axis that cannot be followed")
        return Verdict(narrowed=Fold(after[dim], 2)) if dim == place else Verdict(neutral=True)

    def _reduction(self, function: Any, name: str) -> Verdict:
        """Judge a mean, a sum or the like, which ends the channels if it is taken over them.

        A mean depends on their number. Others may be the same without the silent ones: the proof tells.
        """
        operands = [f for f, _ in function.next_functions if f is not None]
        place = self._axes.place(function)
        if place is None or len(operands) != 1:
            return Verdict()
        before = shape_of(operands[0], function.next_functions[0][1])
        if place not in reduced_dims(function, len(before)) or before[place] == 1:
            return Verdict()
        if name in _REDUCTIONS:
            return Verdict(reduced=_REDUCTIONS[name])
        return Verdict(wall="a mean over the channels: removing some would change it")

    def _moving(self, function: Any, kind: str) -> Verdict:
        """Judge padding, a flip, a roll or a cumulative sum, which are walls over the channel axis.

        Channels with padding behind them alone keep their places.
        """
        place = self._axes.place(function)
        ndim = len(shape_of(function))
        if place is None:
            return Verdict()
        if kind.startswith("constantpad"):
            first = 2 * (ndim - 1 - place)  # pairs (before, after), those of the last axis first
            before, *behind = function._saved_pad[first : first + 2] or (0, 0)
            if before:
                return Verdict(wall=_PADDED)
            width = shape_of(function)[place] - sum(behind)
            return Verdict(widened=Front(width)) if sum(behind) > 0 else Verdict()
        if kind.startswith("cumsum"):
            return Verdict(wall=_SUMMED if normal_dim(function._saved_dim, ndim) == place else None)
        dims = {normal_dim(dim, ndim) for dim in function._saved_dims}
        if place in dims or not dims:  # a roll without an axis is one of all numbers in a row
            return Verdict(wall=_FLIPPED if kind.startswith("flip") else _ROLLED)
        return Verdict()

    def _reshape(self, function: Any, before: Sequence[int], after: Sequence[int]) -> Verdict:
        """Judge a reshape: it keeps the channels, flattens them with others, or is a wall."""
        place = self._axes.place(function)
        if len(after) == 2 and after == (before[0], prod(before[1:])) and len(before) > 2 and place:
            fold = Fold(before[place], prod(before[1:place]), prod(before[place + 1 :]))
            return Verdict(neutral=True) if before[place] == after[1] else Verdict(widened=fold)
        if len(before) == 4 and tuple(after) == (before[0], prod(before[1:])):
            return Verdict(neutral=before[1] == after[1])  # flattening, which torch-pruning knows
        shuffled = {len(before), len(after)} == {4, 5} and before[-2:] == after[-2:] and before[1] != after[1]
        kept_first = len(before) in (3, 4) and len(after) > 1 and before[:2] == after[:2]
        kept_last = before[-1:] == after[-1:]
        if not shuffled and (kept_first or kept_last or _only_ones_differ(before, after)):
            return Verdict(neutral=True)
        if place is not None and before[place] > 1:
            to = regrouped(place, before, after)
            if to is not None and after[to] == before[place]:
                return Verdict(neutral=True)  # it regroups the axes around the channels
        return Verdict(wall=f"a reshape from {_text(before)} to {_text(after)} rearranges the channels")


def _judge_concat(node: Any) -> str | None:
    """Return why channels end at a concatenation, or None; set the sizes of its parts on the node."""
    shape = tuple(node.grad_fn._input_metadata[0].shape)
    dim = normal_dim(node.grad_fn._saved_dim, len(shape))
    if len(shape) == 4 and dim == 3:
        return "maps are concatenated along their last axis"
    if dim == 1:
        parts = node.grad_fn.next_functions
        if any(function is None for function, _ in parts) or len(parts) != len(node.inputs):
            return "the image or a constant is concatenated to the channels"
        node.module.concat_sizes = [function._input_metadata[index].shape[1] for function, index in parts]
    return None


def _depthwise(function: Any) -> bool:
    """Return whether a product is a convolution with a filter for every channel."""
    return 1 < getattr(function, "_saved_groups", 1) == shape_of(function)[1]


def _same_channels(function: Any) -> bool:
    """Return whether a repetition adds nothing to a single image, as that of weights for every image."""
    return _only_ones_differ(tuple(function._saved_self_sym_sizes), shape_of(function))


def _only_ones_differ(before: Sequence[int], after: Sequence[int]) -> bool:
    return [n for n in before if n != 1] == [n for n in after if n != 1]


def _text(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _channel_dims(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the axes that may hold channels: the second of maps and vectors, and the last of tokens."""
    return {2: (1,), 3: (1, 2), 4: (1,)}.get(len(shape), tuple(range(1, len(shape))))


def _whole(grad_fn: Any, size: int) -> bool:
    """Return whether a slice takes the whole axis."""
    if not hasattr(grad_fn, "_saved_step"):
        return False
    return grad_fn._saved_start == 0 and grad_fn._saved_end >= size and grad_fn._saved_step == 1
