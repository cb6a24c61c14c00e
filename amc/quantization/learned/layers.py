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

from amc.quantization.grids import scale_for_bias
from amc.quantization.layers import IntegerLayer, RoundTrip, StandIn, applied
from amc.quantization.operators import HIGH, LOW
from amc.quantization.program import FoldedNorm

_PART = 2**16
"""Values that are computed at once: 256 KiB, some copies of which fit in the second cache of a core."""


def straight_through(values: Tensor, step: Tensor, low: Any, high: Any) -> Tensor:
    """Return ``values`` on the grid of the multiples ``low`` to ``high`` (numbers or tensors) of ``step``."""
    whole = (values / step).clamp(low, high)
    return (whole + (whole.round() - whole).detach()) * step


class _OnGrid(torch.autograd.Function):
    """Compute `straight_through` in parts that the processor's cache holds.

    Operator by operator, the same takes four times as long on a CPU: activations are large, and each operator
    would read and write them in main memory.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, step: Tensor, low: float, high: float) -> Tensor:
        """Return ``values`` on the grid."""
        ctx.save_for_backward(values, step)
        ctx.ends = (low, high)
        moved = torch.empty_like(values)
        for part, to in zip(*_in_parts(values, moved), strict=True):
            torch.div(part, step, out=to).clamp_(low, high).round_().mul_(step)
        return moved

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Return the gradients of the values and of the step."""
        (above,) = gradients
        values, step = ctx.saved_tensors
        below, of_step = torch.empty_like(values), torch.zeros_like(step)
        for part, gradient, to in zip(*_in_parts(values, above, below), strict=True):
            whole = part / step
            cut = whole.clamp(*ctx.ends)
            rounded = cut.round()
            inside = cut.eq_(whole)  # in floats: mixed with booleans, products take twice as long
            torch.mul(gradient, inside, out=to)
            of_step += rounded.sub_(whole.mul_(inside)).mul_(gradient).sum()
        return below, of_step, None, None


def _in_parts(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Return each of the tensors, of one shape, in parts along its first dimension."""
    first = tensors[0]
    whole = not first.is_cpu or first.ndim == 0
    size = max(1, _PART * len(first) // max(1, first.numel()))
    return [(each,) if whole else each.split(size) for each in tensors]


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
        zero = int(grid.zero_point)
        self.ends = (float(LOW - zero), float(HIGH - zero))

    @property
    def scale(self) -> Tensor:
        """The step, () float32, positive."""
        return _positive(self.step)

    def forward(self, values: Tensor) -> Tensor:
        """Return ``values``, of any shape, each moved to the nearest point of the grid."""
        step = _eased(self.scale, math.prod(values.shape[1:]) * HIGH)
        moved: Tensor = _OnGrid.apply(values, step, *self.ends)
        return moved


class LearnedLayer(StandIn):
    """A convolution or linear layer with learned weights, bias and a learned step for each channel.

    Args:
        layer: the rounded layer, without blocks; its values are where the training starts.
        bits: of its weights; 1 leaves their signs alone.
        norm: the batch norm that was folded into it. It is taken out again, as training without it is
            unstable; `folded` gives it to the scales of the channels.
    """

    def __init__(self, layer: IntegerLayer, bits: int, norm: FoldedNorm | None = None) -> None:
        super().__init__()
        self.bits = bits
        self.inputs: nn.Module | None = None  # for networks that do not put inputs on grids themselves
        self.full = nn.Parameter(_tensor(layer.weight))
        self.step = nn.Parameter(_tensor(layer.scale))
        self.norm: _Norm | None = None
        self.bias: nn.Parameter | None = None
        if (bias := layer.bias) is not None and norm is not None:
            self.norm = _Norm(norm, bias)
        elif bias is not None:
            self.bias = nn.Parameter(_tensor(bias))
        self.layer = layer.layer

    @property
    def scale(self) -> Tensor:
        """The steps (channels,), positive."""
        return _positive(self.step)

    @property
    def weight(self) -> Tensor:
        """The rounded float32 weights, which a forward pass may read directly."""
        largest = 2 ** (self.bits - 1) - 1
        step = _eased(self.scale, self.full[0].numel() * max(largest, 1))
        wide = self._wide(step)
        if self.bits == 1:
            return signs_through(self.full, wide)
        return straight_through(self.full, wide, -largest, largest)

    @torch.no_grad()
    def folded(self, step: float | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the layer with its batch norm folded: integers (int8), scales and bias (channels,).

        Args:
            step: scale of the activation that it reads, for integers of the bias; None if it is on no grid.
        """
        factor = torch.ones_like(self.step)
        bias = None if self.bias is None else self.bias.detach().clone()
        if self.norm is not None:
            factor, bias = self.norm.factor_and_offset()
        scale = _positive(self.scale * factor)
        if step is not None and bias is not None:
            scale = scale_for_bias(scale, bias, step)
        weights = self.full * self._wide(factor)
        if self.bits == 1:
            return _signs(weights).to(torch.int8), scale, bias
        largest = 2 ** (self.bits - 1) - 1
        return (weights / self._wide(scale)).round().clamp(-largest, largest).to(torch.int8), scale, bias

    def forward(self, input: Tensor) -> Tensor:
        """Return the layer's output for ``input``, as the layer calls it."""
        values = input if self.inputs is None else self.inputs(input)
        found = applied(self.layer, values, self.weight, self.bias)
        return found if self.norm is None else self.norm(found)

    def _wide(self, channels: Tensor) -> Tensor:
        """Return (channels,) in a shape that fits the weights."""
        return channels.reshape(-1, *[1] * (self.full.ndim - 1))


class _Norm(nn.modules.batchnorm._BatchNorm):
    """A batch norm that was folded, taken out again; in eval mode it adds the folded bias and no more.

    Args:
        folded: the norm.
        bias: (channels,), of the layer that it was folded into.
    """

    def __init__(self, folded: FoldedNorm, bias: Tensor) -> None:
        super().__init__(len(bias))
        assert self.running_mean is not None
        assert self.running_var is not None
        with torch.no_grad():
            self.weight.copy_((folded.gain.square() + self.eps).sqrt())
            self.bias.copy_(folded.offset)
            self.running_mean.copy_(folded.offset - bias)
            self.running_var.copy_(folded.gain.square())

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept the outputs of convolutions and of linear layers."""

    def factor_and_offset(self) -> tuple[Tensor, Tensor]:
        """Return what it multiplies with and adds in eval mode, both (channels,)."""
        assert self.running_mean is not None
        assert self.running_var is not None
        factor = self.weight * torch.rsqrt(self.running_var + self.eps)
        return factor, self.bias - self.running_mean * factor


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
