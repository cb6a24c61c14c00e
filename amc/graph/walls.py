"""Walls: operations through which channels cannot be followed, with reasons."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

_WALLS = {
    "pixelshuffle": "pixel shuffle moves channels into space",
    "pixelunshuffle": "pixel unshuffle moves space into channels",
    "bmm": "a matrix product mixes the channels",
    "scaleddotproduct": "attention mixes the channels",
    "stack": "a stack puts the channels on a new axis",
    "repeat": "the channels are repeated",
    "im2col": "an unfold moves space into channels",
    "cumsum": "a cumulative sum mixes positions",
}
"""Start of the name of a backward function -> why channels cannot be followed through it."""


def judge(node: Any) -> tuple[bool, str | None]:
    """Judge an operation by its backward function.

    Args:
        node: torch-pruning's node of a module or operation.

    Returns:
        Whether the operation leaves every channel at its index, and why channels end there (None if they do
        not). (False, None) leaves the operation to torch-pruning.
    """
    kind = node.grad_fn.name().lower() if hasattr(node.grad_fn, "name") else ""
    if type(node.module).__module__ != "torch_pruning.ops":
        return False, None  # a module of the network, for which torch-pruning has a pruner
    if (reason := getattr(node.grad_fn, "wall", None)) is not None:
        return False, str(reason)  # a recurrent layer
    for part, reason in _WALLS.items():
        if kind.startswith(part):
            return False, reason
    if kind.startswith("cat"):
        return False, _judge_concat(node)
    if not hasattr(node.grad_fn, "_saved_self_sym_sizes"):
        return False, None
    before = tuple(node.grad_fn._saved_self_sym_sizes)
    if kind.startswith(("view", "reshape", "unsafeview", "expand")):
        return _judge_reshape(before, tuple(node.grad_fn._input_metadata[0].shape))
    if kind.startswith(("split", "slice", "unbind")):
        dim = _dim(node.grad_fn._saved_dim, len(before))
        if dim not in _channel_dims(before) or _whole(node.grad_fn, before[dim]):
            return True, None
        return False, "the forward pass splits the channels at places that are written in its code"
    return False, None


def _judge_concat(node: Any) -> str | None:
    """Return why channels end at a concatenation, or None; set the sizes of its parts on the node."""
    shape = tuple(node.grad_fn._input_metadata[0].shape)
    dim = _dim(node.grad_fn._saved_dim, len(shape))
    if len(shape) == 4 and dim == 3:
        return "maps are concatenated along their last axis"
    if dim == 1:
        parts = node.grad_fn.next_functions
        if any(function is None for function, _ in parts) or len(parts) != len(node.inputs):
            return "a constant is concatenated to the channels"
        node.module.concat_sizes = [function._input_metadata[index].shape[1] for function, index in parts]
    return None


def _judge_reshape(before: Sequence[int], after: Sequence[int]) -> tuple[bool, str | None]:
    """Judge a reshape: it keeps the channels, flattens those of a map, or is a wall."""
    if len(before) == 4 and tuple(after) == (before[0], prod(before[1:])):
        return before[1] == after[1], None  # flattening, which torch-pruning knows
    shuffled = {len(before), len(after)} == {4, 5} and before[-2:] == after[-2:] and before[1] != after[1]
    kept_first = len(before) in (3, 4) and len(after) > 1 and before[:2] == after[:2]
    kept_last = before[-1:] == after[-1:]
    if not shuffled and (kept_first or kept_last or _only_ones_differ(before, after)):
        return True, None
    return False, f"a reshape from {_text(before)} to {_text(after)} rearranges the channels"


def _only_ones_differ(before: Sequence[int], after: Sequence[int]) -> bool:
    return [n for n in before if n != 1] == [n for n in after if n != 1]


def _text(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _channel_dims(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the axes that may hold channels: the second of maps and vectors, and the last of tokens."""
    return {2: (1,), 3: (1, 2), 4: (1,)}.get(len(shape), tuple(range(1, len(shape))))


def _dim(saved: int, ndim: int) -> int:
    """Return a saved axis; autograd stores negative ones as huge unsigned numbers."""
    return (saved - 2**64 if saved > 2**32 else saved) % ndim


def _whole(grad_fn: Any, size: int) -> bool:
    """Return whether a slice takes the whole axis."""
    if not hasattr(grad_fn, "_saved_step"):
        return False
    return grad_fn._saved_start == 0 and grad_fn._saved_end >= size and grad_fn._saved_step == 1
