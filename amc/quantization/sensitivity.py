"""What each layer costs at each number of bits, measured with the other layers float."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from amc.quantization.grids import weight_grid
from amc.quantization.layers import IntegerLayer
from amc.quantization.program import Site
from amc.quantization.settings import QuantizeSettings
from amc.quantization.simulation import Program
from amc.scoring.run import outputs
from amc.scoring.scores import likeness

BITS = (8, 6, 4, 3, 2)
_BATCH = 50


@dataclass(frozen=True)
class Sensitivity:
    """What one layer costs.

    Attributes:
        layer: its name.
        weights: number of its weights.
        errors: bits -> relative squared error of the network's outputs (minus the likeness, 0 is best), with
            the weights of this layer alone rounded to nearest.
    """

    layer: str
    weights: int
    errors: Mapping[int, float]


def sensitivities(
    program: Program, sites: Sequence[Site], images: Tensor, settings: QuantizeSettings
) -> tuple[Sensitivity, ...]:
    """Measure every layer on images (N, C, H, W) at ``BITS`` and at the number of bits that is asked for."""
    network = program.assembled({}, {}, ())
    exact = outputs(network, images, _BATCH)
    found = []
    for site in sites:
        module = network.get_submodule(site.path)
        assert isinstance(module, nn.Conv2d | nn.Linear)
        errors: dict[int, float] = {}
        for bits in sorted({*BITS, settings.weight_bits}, reverse=True):
            network.set_submodule(site.path, _rounded(module, bits, settings))
            errors[bits] = 0.0 - likeness(outputs(network, images, _BATCH), exact)
        network.set_submodule(site.path, module)
        found.append(Sensitivity(site.name, module.weight.numel(), errors))
    return tuple(found)


def _rounded(module: nn.Conv2d | nn.Linear, bits: int, settings: QuantizeSettings) -> IntegerLayer:
    weight = module.weight.detach().flatten(1)
    grid = weight_grid(weight, bits, settings.group, least_error=settings.ranges == "mse")
    integers, bias = grid.nearest(weight), None if module.bias is None else module.bias.detach()
    if grid.block < weight.shape[1]:
        return IntegerLayer(module, integers, grid.scale, bias, block=grid.block)
    return IntegerLayer(module, integers.reshape(module.weight.shape), grid.scale[:, 0], bias)
