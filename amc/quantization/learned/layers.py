"""Layers and activations that are rounded as in a runtime, and let gradients through.

The gradient of rounding is taken as 1 within the grid and 0 beyond its ends (straight through). Step sizes
are learned with the gradient that follows from it, divided by the square root of the number of values and of
the largest integer (LSQ, Esser et al. 2020).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from amc.quantization.layers import IntegerLayer, RoundTrip, applied
from amc.quantization.operators import HIGH, LOW


def straight_through(values: Tensor, step: Tensor, low: Any, high: Any) -> Tensor:
    """Return ``values`` on the grid of the multiples ``low`` to ``high`` (numbers or tensors) of ``step``."""
    whole = (values / step).clamp(low, high)
    return (whole + (whole.round() - whole).detach()) * step


def signs_through(values: Tensor, step: Tensor) -> Tensor:
    """Return ``step`` with the signs of ``values``, whose gradient passes as it is; that of 0 is positive."""
    return step * _signs(values) + (values - values.detach())


class LearnedGrid(nn.Module):
    """An activation's grid with a learned step; its zero point stays.

    Args:
        grid: the calibrated grid.
    """

    def __init__(self, grid: RoundTrip) -> None:
        super().__init__()
        self.step = nn.Parameter(_tensor(grid.scale))
        self.register_buffer("zero_point", _tensor(grid.zero_point).to(self.step.dtype))

    @property
    def scale(self) -> Tensor:
        """The step, () float32, positive."""
        return _positive(self.step)

    def forward(self, values: Tensor) -> Tensor:
        """Return ``values``, of any shape, each moved to the nearest point of the grid."""
        zero = self.zero_point
        assert isinstance(zero, Tensor)
        step = _eased(self.scale, math.prod(values.shape[1:]) * HIGH)
        return straight_through(values, step, LOW - zero, HIGH - zero)


class LearnedLayer(nn.Module):
    """A convolution or linear layer with learned weights, bias and a learned step for each channel.

    Args:
        layer: the rounded layer, without blocks; its values are where the training starts.
        bits: of its weights; 1 leaves their signs alone.
    """

    def __init__(self, layer: IntegerLayer, bits: int) -> None:
        super().__init__()
        self.layer, self.bits = layer.layer, bits
        self.inputs: nn.Module | None = None  # for networks that do not put inputs on grids themselves
        self.full = nn.Parameter(_tensor(layer.weight))
        self.step = nn.Parameter(_tensor(layer.scale))
        bias = layer.bias
        self.bias = None if bias is None else nn.Parameter(_tensor(bias))

    @property
    def scale(self) -> Tensor:
        """The steps (channels,), positive."""
        return _positive(self.step)

    @property
    def weight(self) -> Tensor:
        """The rounded float32 weights, which a forward pass may read directly."""
        largest = 2 ** (self.bits - 1) - 1
        step = _eased(self.scale, self.full[0].numel() * max(largest, 1))
        wide = step.reshape(-1, *[1] * (self.full.ndim - 1))
        if self.bits == 1:
            return signs_through(self.full, wide)
        return straight_through(self.full, wide, -largest, largest)

    @torch.no_grad()
    def integers(self, scale: Tensor) -> Tensor:
        """Return the weights as int8 multiples of ``scale`` (channels,)."""
        if self.bits == 1:
            return _signs(self.full).to(torch.int8)
        largest = 2 ** (self.bits - 1) - 1
        wide = scale.reshape(-1, *[1] * (self.full.ndim - 1))
        return (self.full / wide).round().clamp(-largest, largest).to(torch.int8)

    def forward(self, values: Tensor) -> Tensor:
        """Return the layer's output."""
        if self.inputs is not None:
            values = self.inputs(values)
        return applied(self.layer, values, self.weight, self.bias)


def _signs(values: Tensor) -> Tensor:
    return torch.where(values < 0, -1.0, 1.0)


def _positive(step: Tensor) -> Tensor:
    return step.abs().clamp(min=torch.finfo(step.dtype).tiny)


def _eased(step: Tensor, count: int) -> Tensor:
    """Return a step of the same value, whose gradient is divided by the square root of ``count``."""
    fixed = step.detach()
    return fixed + (step - fixed) * count**-0.5


def _tensor(found: object) -> Tensor:
    assert isinstance(found, Tensor)
    return found.detach().clone(memory_format=torch.contiguous_format)  # also out of inference mode
