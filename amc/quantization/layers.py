"""Modules of a quantized network: layers with integer weights, and activations on a grid of integers.

They compute on integers, and round as the kernels of runtimes do, bit for bit. Float32 sums would differ in
their last digits, and a rounding that falls the other way grows from layer to layer. Exporters see the float
operators between grids instead, which runtimes fuse into those kernels.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amc.quantization.operators import HIGH, dequantize, dynamic_conv2d, dynamic_linear, round_trip
from amc.scoring.run import copied

Quantizable = nn.Conv2d | nn.Linear
"""Layers whose weights are quantized."""
TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
"""Methods without integers."""
_EXACT = 2**24
"""Float32 holds all integers up to this."""


class RoundTrip(nn.Module):
    """Puts an activation on its grid.

    Args:
        scale: a float32 number.
        zero_point: 0 to 255.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, scale: float, zero_point: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32))
        self.register_buffer("zero_point", torch.tensor(zero_point, dtype=torch.uint8))

    def forward(self, values: Tensor) -> Tensor:
        """Return ``values``, of any shape, each moved to the nearest point of the grid."""
        moved: Tensor = round_trip(values, self.scale, self.zero_point)
        return moved


class StandIn(nn.Module):
    """A module in the place of a layer; it has the attributes of the layer, which a forward pass may read.

    Attributes:
        layer: the layer without its tensors. It is set last, as it would hide that a name is free.
    """

    layer: Quantizable

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the layer (``in_features``), if this module has none of that name."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "layer" or name.startswith("__"):  # protocols such as copying are not the layer's
                raise
            return getattr(super().__getattr__("layer"), name)


class IntegerLayer(StandIn):
    """A convolution or linear layer whose weights are integers; a bias may be, too.

    Args:
        layer: the float layer, for all but its weights.
        integers: (channels, ...) int8, or (channels, inputs) with blocks.
        scale: (channels,), or (channels, blocks).
        bias: (channels,) float32, or int32 in steps of scale times ``step``; None if there is none.
        block: inputs that share a scale; 0 for one scale a channel.
        step: scale of the activation that it reads; None if that is on no grid.
        out: scale of the grid that its output, or the clip that alone reads it, is on; None if it is on none.
        inputs: what puts the input on its grid, if the network around it does not.
    """

    step: Tensor | None
    out: Tensor | None
    offset: Tensor | None
    offset_scale: Tensor | None
    integers: Tensor
    scale: Tensor

    def __init__(
        self,
        layer: Quantizable,
        integers: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        *,
        block: int = 0,
        step: float | None = None,
        out: float | None = None,
        inputs: RoundTrip | None = None,
    ) -> None:
        super().__init__()
        self.shape = tuple(layer.weight.shape)
        self.block = block
        self.inputs = inputs
        for name, tensor in (("integers", integers), ("scale", scale), ("offset", bias)):
            self.register_buffer(name, tensor)
        self.register_buffer("offset_scale", None if bias is None or step is None else scale * step)
        for name, number in (("step", step), ("out", out)):
            self.register_buffer(name, None if number is None else torch.tensor(number, dtype=torch.float32))
        self._largest = _largest(integers, bias)
        self.layer = without_tensors(layer)

    @property
    def weight(self) -> Tensor:
        """The float32 weights, which a forward pass may read directly."""
        found: Tensor = dequantize(self.integers, self.scale, self.block, self.shape)
        return found

    @property
    def bias(self) -> Tensor | None:
        """The float32 bias (channels,), or None."""
        if self.offset is None or self.offset_scale is None:
            return self.offset
        found: Tensor = dequantize(self.offset, self.offset_scale, 0, self.offset.shape)
        return found

    def forward(self, input: Tensor) -> Tensor:
        """Return the layer's output; it is rounded to its grid, but not cut off at the ends.

        Args:
            input: of the shapes and under the name that the layer takes.
        """
        values = input if self.inputs is None else self.inputs(input)
        if self.step is None or torch.compiler.is_exporting():
            return applied(self.layer, values, self.weight, self.bias)
        sums, steps = self.products(values), self.scale * self.step
        if self.offset is not None:
            kind = _exact(sum(self._largest))
            sums = sums.to(kind) + self.wide(self.offset.to(kind))
        if self.out is None:
            return sums.float() * self.wide(steps)
        return (sums.float() * self.wide(steps / self.out)).round_().mul_(self.out)

    def products(self, values: Tensor) -> Tensor:
        """Return the sums of products of integers, without the bias, exactly.

        Args:
            values: the input, on the grid with scale ``step``.
        """
        assert self.step is not None
        kind = _exact(self._largest[0])
        whole = (values / self.step).round_().to(kind)
        # An implementation that computes with fractions (Winograd) is off by less than a half.
        return applied(self.layer, whole, self.integers.to(kind), None).round_()

    def wide(self, channels: Tensor) -> Tensor:
        """Return (channels,) in a shape that fits the output."""
        return channels if isinstance(self.layer, nn.Linear) else channels[:, None, None]


class IntegerSum(nn.Module):
    """The sum of two activations on grids, which is on a grid, too.

    Args:
        left, right: grids of the addends.
        out: grid of the sum.
    """

    scales: Tensor
    zeros: Tensor

    def __init__(self, left: RoundTrip, right: RoundTrip, out: RoundTrip) -> None:
        super().__init__()
        grids = (left, right, out)
        self.register_buffer("scales", torch.stack([each.scale for each in grids]))
        self.register_buffer("zeros", torch.stack([each.zero_point for each in grids]).float())

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the sum; it is rounded to its grid, but not cut off at the ends."""
        if torch.compiler.is_exporting():
            return left + right
        scale, zero = self.scales[-1], self.zeros[-1]
        ratios = self.scales[:-1] / scale
        # As in onnxruntime's kernel: here the left product is not rounded, and the right one is added first.
        # Another order rounds one sum in some 100,000 differently.
        sums = zero - _fused(self.zeros[0], ratios[0], ratios[1] * self.zeros[1])
        for index, values in ((1, right), (0, left)):
            whole = (values / self.scales[index]).round_() + self.zeros[index]
            sums = _fused(whole, ratios[index], sums)
        return sums.round_().sub_(zero).mul_(scale)


class DynamicLayer(StandIn):
    """A layer with integer weights that measures the range of its input in every call.

    Args:
        layer: the float layer, for all but its weights.
        integers: int8, of the shape of its weights.
        scale, bias: (channels,) float32.
    """

    def __init__(self, layer: Quantizable, integers: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("integers", integers)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", torch.zeros_like(scale) if bias is None else bias)
        self.layer = without_tensors(layer)

    @property
    def weight(self) -> Tensor:
        """The float32 weights, which a forward pass may read directly."""
        found: Tensor = dequantize(self.integers, self.scale, 0, self.integers.shape)
        return found

    def forward(self, input: Tensor) -> Tensor:
        """Return the layer's output for ``input``, as the layer calls it; it depends on the whole batch."""
        layer, own = self.layer, (self.integers, self.scale, self.bias)
        found: Tensor
        if isinstance(layer, nn.Linear):
            found = dynamic_linear(input, *own)
        else:
            assert isinstance(layer, nn.Conv2d)
            found = dynamic_conv2d(input, *own, layer.stride, _pixels(layer), layer.dilation, layer.groups)
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
        self.model = copied(model).to(self.dtype)

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


def _fused(values: Tensor, factor: Tensor, offset: Tensor) -> Tensor:
    """Return values times a factor plus an offset with one rounding to float32, as processors have it."""
    return (values.double() * factor.double() + offset.double()).float()


def has_plain_padding(layer: nn.Module) -> bool:
    """Return whether a layer pads with zeros, as much on both sides of an axis; linear layers do."""
    return isinstance(layer, nn.Linear) or (
        isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros" and not pads_unevenly(layer)
    )


def pads_unevenly(layer: nn.Module) -> bool:
    """Return whether a convolution adds more zeros at the end of an axis: "same", and an even kernel."""
    if not isinstance(layer, nn.Conv2d) or layer.padding_mode != "zeros":
        return False
    left, right, top, bottom = layer._reversed_padding_repeated_twice
    return left != right or top != bottom


def _largest(integers: Tensor, bias: Tensor | None) -> tuple[float, float]:
    """Return the size of the largest sum over the inputs of a channel, and that of the largest bias."""
    sums = integers.flatten(1).abs().sum(1, dtype=torch.int64)
    return float(sums.max()) * HIGH, 0.0 if bias is None else float(bias.double().abs().max())


def _exact(largest: float) -> torch.dtype:
    """Return the float type that holds all integers up to ``largest``."""
    return torch.float32 if largest <= _EXACT else torch.float64


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
    if isinstance(layer.padding, str):
        left, _, top, _ = layer._reversed_padding_repeated_twice  # as many at the ends: has_plain_padding
        return top, left
    return layer.padding[0], layer.padding[-1]
