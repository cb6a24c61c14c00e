"""The arithmetic of quantized networks as operators of torch, which exporters translate one by one.

Each computes what the operators of ONNX with the same meaning compute: QuantizeLinear rounds halves to even,
weights are symmetric around 0, activations are unsigned with a zero point.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

LOW, HIGH = 0, 255
"""Least and largest value of an activation: unsigned, as the 8-bit products of x86 want one side."""


@torch.library.custom_op("amc::round_trip", mutates_args=())
def round_trip(values: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Quantize ``values`` to 8 bits and back.

    Args:
        values: float32, of any shape.
        scale: () float32.
        zero_point: () uint8.
    """
    zero = zero_point.to(values.dtype)
    return (values / scale).round_().add_(zero).clamp_(LOW, HIGH).sub_(zero).mul_(scale)


@torch.library.custom_op("amc::dequantize", mutates_args=())
def dequantize(integers: Tensor, scale: Tensor, block: int, shape: Sequence[int]) -> Tensor:
    """Return ``integers`` times their scales.

    Args:
        integers: (channels, ...), or (channels, inputs) with blocks.
        scale: (channels,), or (channels, blocks) float32.
        block: inputs that share a scale; 0 for one scale a channel.
        shape: of the result.
    """
    if not block:
        return integers * scale.reshape(-1, *[1] * (integers.ndim - 1))
    return (integers * scale.repeat_interleave(block, dim=1)).reshape(tuple(shape))


@torch.library.custom_op("amc::dynamic_conv2d", mutates_args=())
def dynamic_conv2d(
    values: Tensor,
    integers: Tensor,
    scale: Tensor,
    bias: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Convolve 8-bit integers; the range of ``values`` (N, C, H, W) is measured over the whole batch."""
    whole, step = _measured_if_any(values)
    sums = F.conv2d(whole, integers.to(values.dtype), None, stride, padding, dilation, groups)
    return sums * (step * scale)[:, None, None] + bias[:, None, None]


@torch.library.custom_op("amc::dynamic_linear", mutates_args=())
def dynamic_linear(values: Tensor, integers: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Multiply 8-bit integers; the range of ``values`` (..., inputs) is measured over the whole batch."""
    whole, step = _measured_if_any(values)
    return F.linear(whole, integers.to(values.dtype)) * (step * scale) + bias


def measured(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return values as integers less their zero point, in float, and the scale: DynamicQuantizeLinear."""
    low, high = values.min().clamp(max=0), values.max().clamp(min=0)
    step = (high - low) / (HIGH - LOW)
    step = torch.where(step > 0, step, torch.ones_like(step))
    zero = (-low / step).round().clamp(LOW, HIGH)
    return (values / step).round_().add_(zero).clamp_(LOW, HIGH).sub_(zero), step


def _measured_if_any(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return what ``measured`` does; values of no image have no range, and any scale will do."""
    return measured(values) if values.numel() else (values, values.new_ones(()))


@round_trip.register_fake
def _(values: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    return torch.empty_like(values)


@dequantize.register_fake
def _(integers: Tensor, scale: Tensor, block: int, shape: Sequence[int]) -> Tensor:
    return scale.new_empty(tuple(shape) if block else integers.shape)


@dynamic_conv2d.register_fake
def _(
    values: Tensor,
    integers: Tensor,
    scale: Tensor,
    bias: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    weight = torch.empty_like(integers, dtype=values.dtype)
    return F.conv2d(values, weight, None, stride, padding, dilation, groups)


@dynamic_linear.register_fake
def _(values: Tensor, integers: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return values.new_empty(*values.shape[:-1], len(integers))
