"""Targets of a refit that need not be met, as an activation cuts them off.

What a ReLU gets below 0 it passes on as 0, whatever it was. A layer before it is better solved for what the
ReLU passes on than for its own output (Zhang et al., Accelerating Very Deep Convolutional Networks, 2015,
section 3.2). That is no least-squares problem, but can be solved by a few: where the dense network is cut
off, the target is what the present solution delivers, cut off at the same bound. No round makes the error
that counts larger: of what should be cut off the part beyond the bound, of the rest all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from amc.refit.operations import readers


class Bounds(NamedTuple):
    """An activation that passes on what lies between two bounds, and the bound for what lies beyond."""

    low: float
    high: float


RELU, RELU6 = Bounds(0.0, math.inf), Bounds(0.0, 6.0)
_FUNCTIONS = {
    F.relu: RELU, torch.relu: RELU, torch.relu_: RELU, F.relu_: RELU, "relu": RELU, "relu_": RELU,
    F.relu6: RELU6,
}  # fmt: skip


def bounds_after(node: fx.Node, modules: Mapping[str, nn.Module]) -> Bounds | None:
    """Return the bounds of the activation that alone reads an operation, if there is such a one."""
    found = {_bounds(reader, modules) for reader in readers(node)}
    return found.pop() if len(found) == 1 else None


def _bounds(node: fx.Node, modules: Mapping[str, nn.Module]) -> Bounds | None:
    if node.op != "call_module":
        return _FUNCTIONS.get(node.target)
    match modules[str(node.target)]:
        case nn.Hardtanh() as module:  # and ReLU6, which is one
            return Bounds(float(module.min_val), float(module.max_val))
        case nn.ReLU():
            return RELU
        case _:
            return None


def passing(scale: Tensor, offset: Tensor, bounds: Bounds | None) -> Callable[[Tensor], Tensor]:
    """Return what makes of a layer's outputs what the network gets of them; ``revision`` says of what."""

    def passed(outputs: Tensor) -> Tensor:
        got = outputs * scale + offset
        return got if bounds is None else got.clamp(*bounds)

    return passed


def revision(rows: Tensor, scale: Tensor, offset: Tensor, bounds: Bounds) -> Callable[[Tensor], Tensor]:
    """Return what makes new targets of a layer's present outputs; see the module's docstring.

    Args:
        rows: (rows, out_channels) outputs that give what the dense activation got.
        scale, offset: (out_channels,) and (rows, out_channels) or (out_channels,); the activation gets
            ``output * scale + offset``. Channels of scale 0 keep their targets.
    """
    wanted = rows * scale + offset
    below, above = wanted <= bounds.low, wanted >= bounds.high
    free = (below | above) & (scale != 0)
    divisor = torch.where(scale == 0, torch.ones_like(scale), scale)

    def revise(outputs: Tensor) -> Tensor:
        got = outputs * scale + offset
        cut = torch.where(below, got.clamp(max=bounds.low), got.clamp(min=bounds.high))
        return torch.where(free, (cut - offset) / divisor, rows)

    return revise
