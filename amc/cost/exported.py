"""Bits of the weights in an exported file, as the settings of a quantization store them."""

from __future__ import annotations

from torch import nn

from amc.cost.closed_form import BilinearCost, Stored, size_cost
from amc.graph.groups import Graph
from amc.quantization.settings import FLOAT_BITS, QuantizeSettings, stored_bits


def exported_size(graph: Graph, model: nn.Module, settings: QuantizeSettings) -> BilinearCost:
    """Return the bits of the exported weights at any widths.

    Layers that ``settings.tolerance`` would leave float are not known here, and count as integers.

    Args:
        graph: the channel groups of the network.
        model: the network, read for its shapes.
        settings: how weights are stored.
    """
    if settings.method in FLOAT_BITS:
        return size_cost(graph, model, {}, float_bits=FLOAT_BITS[settings.method])
    names = [
        layer.name
        for layer in graph.layers
        # one whose weight is computed stays float
        if layer.kind != "transposed" and layer.flaw is None and not settings.excluding(layer.name)
    ]
    scales = 2 if settings.form == "static_int8" else 1
    stored = {
        name: Stored(stored_bits(settings, bits), settings.group, scales)
        for name, bits in zip(names, settings.bits_of(len(names)), strict=True)
    }
    # a layer of dynamic_int8 without a bias holds zeros, as its operator adds one
    corrected = settings.bias_correction or settings.method == "dynamic_int8"
    return size_cost(graph, model, stored, corrected=corrected)
