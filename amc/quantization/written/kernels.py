"""Quantized networks with the roundings of runtimes whose kernels do not round as the simulation does.

The simulation rounds as onnxruntime does. In deep networks, one integer that differs changes all that follow,
so only a network with the same roundings tells whether a file holds the right numbers.
"""

from __future__ import annotations

import math

from torch import Tensor, fx, nn

from amc.quantization.layers import IntegerSum
from amc.scoring.run import copied

_DIGITS = 20
"""Binary digits of XNNPACK's multipliers."""


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
        for values, scale, multiplier in zip(
            (left, right), self.of.scales[:-1], self.multipliers, strict=True
        ):
            total = total + (values / scale).round().long() * multiplier
        assert isinstance(total, Tensor)
        return (total >> self.shift).float() * self.of.scales[-1]


def xnnpack(model: nn.Module) -> nn.Module:
    """Return a copy of a quantized network that adds as XNNPACK does."""
    if not isinstance(model, fx.GraphModule):
        return model
    made = copied(model)
    for name, module in list(made.named_children()):
        if isinstance(module, IntegerSum):
            made.set_submodule(name, _FixedPointSum(module))
    return made.eval()
