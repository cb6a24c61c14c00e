"""Modules of a quantized network: layers with integer weights, and activations on a grid of integers."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amc.quantization.operators import dequantize, dynamic_conv2d, dynamic_linear, round_trip

Quantizable = nn.Conv2d | nn.Linear
"""Layers whose weights are quantized."""
TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
"""Methods without integers."""


class RoundTrip(nn.Module):
    """Puts an activation on its grid.

    Args:
        scale: a float32 number.
        zero_point: 0 to 255.
    """

    def __init__(self, scale: float, zero_point: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32))
        self.register_buffer("zero_point", torch.tensor(zero_point, dtype=torch.uint8))

    def forward(self, values: Tensor) -> Tensor:
        """Return ``values``, of any shape, each moved to the nearest point of the grid."""
        moved: Tensor = round_trip(values, self.scale, self.zero_point)
        return moved


class IntegerLayer(nn.Module):
    """A convolution or linear layer whose weights are integers; a bias may be, too.

    Args:
        layer: the float layer, for all but its weights.
        integers: (channels, ...) int8, or (channels, inputs) with blocks.
        scale: (channels,), or (channels, blocks).
        bias: (channels,) float32, or int32 in steps of ``bias_scale``; None if there is none.
        bias_scale: (channels,).
        block: inputs that share a scale; 0 for one scale a channel.
        inputs: what puts the input on its grid, if the network around it does not.
    """

    def __init__(
        self,
        layer: Quantizable,
        integers: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        *,
        bias_scale: Tensor | None = None,
        block: int = 0,
        inputs: RoundTrip | None = None,
    ) -> None:
        super().__init__()
        self.shape = tuple(layer.weight.shape)
        self.block = block
        self.inputs = inputs
        self.layer = without_tensors(layer)
        for name, tensor in (("integers", integers), ("scale", scale), ("offset", bias)):
            self.register_buffer(name, tensor)
        self.register_buffer("offset_scale", bias_scale)

    @property
    def weight(self) -> Tensor:
        """The float32 weights, which a forward pass may read directly."""
        found: Tensor = dequantize(self.integers, self.scale, self.block, self.shape)
        return found

    @property
    def bias(self) -> Tensor | None:
        """The float32 bias (channels,), or None."""
        if self.offset_scale is None:
            return self.offset
        found: Tensor = dequantize(self.offset, self.offset_scale, 0, self.offset.shape)
        return found

    def forward(self, values: Tensor) -> Tensor:
        """Return the layer's output."""
        if self.inputs is not None:
            values = self.inputs(values)
        return applied(self.layer, values, self.weight, self.bias)


class DynamicLayer(nn.Module):
    """A layer with integer weights that measures the range of its input in every call.

    Args:
        layer: the float layer, for all but its weights.
        integers: int8, of the shape of its weights.
        scale, bias: (channels,) float32.
    """

    def __init__(self, layer: Quantizable, integers: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.layer = without_tensors(layer)
        self.register_buffer("integers", integers)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", torch.zeros_like(scale) if bias is None else bias)

    @property
    def weight(self) -> Tensor:
        """The float32 weights, which a forward pass may read directly."""
        found: Tensor = dequantize(self.integers, self.scale, 0, self.integers.shape)
        return found

    def forward(self, values: Tensor) -> Tensor:
        """Return the layer's output; it depends on all images of the batch."""
        layer, own = self.layer, (self.integers, self.scale, self.bias)
        found: Tensor
        if isinstance(layer, nn.Linear):
            found = dynamic_linear(values, *own)
        else:
            assert isinstance(layer, nn.Conv2d)
            found = dynamic_conv2d(values, *own, layer.stride, _pixels(layer), layer.dilation, layer.groups)
        return found


class HalfPrecision(nn.Module):
    """A network that computes in 16-bit floats; its input and output are float32.

    Args:
        model: a network that maps one tensor to one tensor; it is copied.
        method: ``fp16`` or ``bf16``.
    """

    def __init__(self, model: nn.Module, method: str) -> None:
        super().__init__()
        self.dtype = TYPES[method]
        self.model = copy.deepcopy(model).to(self.dtype)

    def forward(self, images: Tensor) -> Any:
        """Return the output for images (N, C, H, W)."""
        found = self.model(images.to(self.dtype))
        return found.float() if isinstance(found, Tensor) else found


def is_quantized(model: nn.Module) -> bool:
    """Return whether a network computes as a quantized one does."""
    kinds = IntegerLayer | DynamicLayer | RoundTrip | HalfPrecision
    return any(isinstance(each, kinds) for each in model.modules())


def applied(layer: nn.Module, values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return what a layer computes with other weights."""
    if isinstance(layer, nn.Linear):
        return F.linear(values, weight, bias)
    assert isinstance(layer, nn.Conv2d)
    return layer._conv_forward(values, weight, bias)


def has_plain_padding(layer: nn.Module) -> bool:
    """Return whether a layer pads with zeros, as much on both sides of an axis; linear layers do."""
    return isinstance(layer, nn.Linear) or (
        isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    )


def without_tensors(layer: Quantizable) -> Quantizable:
    """Return a copy of a layer, with all but its weight and bias."""
    left_out: dict[int, Any] = {id(each): None for each in layer._parameters.values()}
    return copy.deepcopy(layer, left_out)


def conv(weight: Tensor, bias: Tensor | None, geometry: Sequence[object]) -> nn.Conv2d:
    """Return a convolution with these tensors.

    Args:
        weight: (channels, inputs / groups, kh, kw).
        bias: (channels,) or None.
        geometry: stride, padding, dilation and groups, as the operator takes them.
    """
    stride, padding, dilation, groups = geometry
    made = nn.Conv2d(
        weight.shape[1] * int(groups),  # type: ignore[call-overload]
        len(weight),
        tuple(weight.shape[2:]),  # type: ignore[arg-type]
        _tuple(stride),
        padding if isinstance(padding, str) else _tuple(padding),
        _tuple(dilation),
        int(groups),  # type: ignore[call-overload]
        bias is not None,
        device="meta",
    )
    _give(made, weight, bias)
    return made


def linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return a linear layer with these tensors: (outputs, inputs), and (outputs,) or None."""
    made = nn.Linear(weight.shape[1], len(weight), bias is not None, device="meta")
    _give(made, weight, bias)
    return made


def _give(layer: Quantizable, weight: Tensor, bias: Tensor | None) -> None:
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)


def _tuple(values: object) -> tuple[int, int]:
    found = [int(each) for each in values]  # type: ignore[attr-defined]
    return found[0], found[-1]


def _pixels(layer: nn.Conv2d) -> tuple[int, int]:
    assert not isinstance(layer.padding, str)
    return layer.padding[0], layer.padding[-1]
