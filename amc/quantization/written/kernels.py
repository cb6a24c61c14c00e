"""Quantized networks with the roundings of runtimes whose kernels do not round as the simulation does.

The simulation rounds as onnxruntime does. In deep networks, one integer that differs changes all that follow,
so only a network with the same roundings tells whether a file holds the right numbers.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

from torch import Tensor, fx, nn

from amc.quantization.layers import IntegerLayer, IntegerSum, RoundTrip, fused
from amc.quantization.operators import HIGH, LOW
from amc.quantization.program import CLIPS

_DIGITS = 20
"""Binary digits of XNNPACK's multipliers."""


class _FloatBias(nn.Module):
    """A layer that adds its bias in float, and leaves the rounding to the grid after it."""

    def __init__(self, layer: IntegerLayer) -> None:
        super().__init__()
        self.of = layer

    def forward(self, values: Tensor) -> Tensor:
        layer = self.of
        assert layer.step is not None
        found = layer.products(values).float() * layer.wide(layer.scale * layer.step)
        return found if layer.bias is None else found + layer.wide(layer.bias)


class _FusedGrid(nn.Module):
    """A grid that multiplies by the inverse of its scale and adds the zero point, in one operation."""

    def __init__(self, grid: RoundTrip) -> None:
        super().__init__()
        self.of = grid

    def forward(self, values: Tensor) -> Tensor:
        scale, zero = self.of.scale, self.of.zero_point.float()
        return fused(values, 1 / scale, zero).round_().clamp_(LOW, HIGH).sub_(zero).mul_(scale)


class _Ends(nn.Module):
    """The ends of a grid, without its steps."""

    def __init__(self, grid: RoundTrip) -> None:
        super().__init__()
        scale, zero = float(grid.scale), int(grid.zero_point)
        self.limits = ((LOW - zero) * scale, (HIGH - zero) * scale)

    def forward(self, values: Tensor) -> Tensor:
        return values.clamp(*self.limits)


class _FloatSum(nn.Module):
    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left + right


class _FixedPointSum(nn.Module):
    """A sum with multipliers of ``_DIGITS`` digits; halves are rounded up."""

    def __init__(self, of: IntegerSum) -> None:
        super().__init__()
        self.of = of
        ratios = [float(each) for each in of.scales[:-1] / of.scales[-1]]
        self.shift = _DIGITS + 1 - math.frexp(max(ratios))[1]
        self.multipliers = [round(each * 2**self.shift) for each in ratios]

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        total: Tensor | int = 2 ** (self.shift - 1)
        for values, scale, multiplier in zip((left, right), self.of.scales, self.multipliers, strict=False):
            total = total + (values / scale).round().long() * multiplier
        assert isinstance(total, Tensor)
        return (total >> self.shift).float() * self.of.scales[-1]


def openvino(model: nn.Module) -> nn.Module:
    """Return a copy of a quantized network that rounds as OpenVINO does.

    Layers add their biases in float. An addend that a convolution computes for a sum alone is cut off at the
    ends of its grid, but not rounded. In sums a few integers in 100,000 still differ from OpenVINO's.
    """
    if not isinstance(model, fx.GraphModule):
        return model
    made: dict[str, nn.Module] = {}
    for name, module in model.named_children():
        if isinstance(module, IntegerLayer) and module.step is not None:
            made[name] = _FloatBias(module)
        elif isinstance(module, RoundTrip):
            made[name] = _FusedGrid(module)
        elif isinstance(module, IntegerSum):
            made[name] = _FloatSum()
    for name in _unrounded(model):
        grid = model.get_submodule(name)
        assert isinstance(grid, RoundTrip)
        made[name] = _Ends(grid)
    return _with(model, made)


def xnnpack(model: nn.Module) -> nn.Module:
    """Return a copy of a quantized network that adds as XNNPACK does."""
    if not isinstance(model, fx.GraphModule):
        return model
    sums = {name: each for name, each in model.named_children() if isinstance(each, IntegerSum)}
    return _with(model, {name: _FixedPointSum(each) for name, each in sums.items()})


def _unrounded(model: fx.GraphModule) -> set[str]:
    """Return the grids of addends that convolutions compute and only a sum reads, one for each sum."""
    found = set()
    for node in model.graph.nodes:
        if node.op != "call_module" or not isinstance(model.get_submodule(str(node.target)), IntegerSum):
            continue
        for addend in node.all_input_nodes:
            source = addend.all_input_nodes[0] if addend.op == "call_module" else addend
            source = source.all_input_nodes[0] if source.target in CLIPS else source
            layer = model.get_submodule(str(source.target)) if source.op == "call_module" else None
            if len(addend.users) == 1 and isinstance(layer, IntegerLayer):
                found.add(str(addend.target))
                break
    return found


def _with(model: fx.GraphModule, modules: Mapping[str, nn.Module]) -> nn.Module:
    made = copy.deepcopy(model)
    for name, module in modules.items():
        made.set_submodule(name, copy.deepcopy(module))
    return made.eval()
