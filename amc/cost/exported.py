"""Bits of the weights in an exported file, as the settings of a quantization store them."""

from __future__ import annotations

from fnmatch import fnmatchcase

from torch import nn

from amc.cost.closed_form import BilinearCost, Stored, size_cost
from amc.errors import SettingError
from amc.graph.groups import Graph
from amc.graph.layers import Layer
from amc.quantization.layers import pads_unevenly
from amc.quantization.settings import FLOAT_BITS, INTEGER, QuantizeSettings, stored_bits


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
    modules = dict(model.named_modules())
    left = {
        layer.name: sum(bool(settings.excluding(call)) for call in _calls(layer)) for layer in graph.layers
    }
    names = [
        layer.name
        for layer in graph.layers
        # one whose weight is computed stays float
        if layer.kind != "transposed" and layer.flaw is None and left[layer.name] < layer.calls
        # and so does one that the kernel of dynamic_int8 cannot pad
        if settings.method != "dynamic_int8" or not pads_unevenly(modules[layer.name])
    ]
    scales = 2 if settings.form == "static_int8" else 1
    stored = {
        name: Stored(stored_bits(settings, bits), settings.group, scales, left[name])
        for name, bits in zip(names, settings.bits_of(len(names)), strict=True)
    }
    # a layer of dynamic_int8 without a bias holds zeros, as its operator adds one
    corrected = settings.bias_correction or settings.method == "dynamic_int8"
    return size_cost(graph, model, stored, corrected=corrected)


def check_excluded(graph: Graph, model: nn.Module, settings: QuantizeSettings) -> None:
    """Refuse a pattern of ``settings.exclude`` that no layer of the network has.

    The quantization itself, which knows the layers that it leaves float, refuses further ones.

    Raises:
        SettingError: there is such a pattern, and the method quantizes.
    """
    if settings.form not in INTEGER:
        return
    layers = [call for layer in graph.layers for call in _calls(layer)]
    # weights of modules that are no layers of the graph, or that a module uses without one
    weights = [name.removesuffix(".weight") for name, own in model.state_dict().items() if own.ndim > 1]
    others = set(weights) - {layer.name for layer in graph.layers}
    for pattern in settings.exclude:
        named = any(fnmatchcase(name, pattern) for name in layers)
        # how often those are called is not known
        if not named and not any(fnmatchcase(name, pattern.split("#")[0]) for name in others):
            known = ", ".join(layers[:3])
            raise SettingError(
                f"quantize.exclude has {pattern!r}, which is no layer; layers are {known}, ..."
            )


def _calls(layer: Layer) -> list[str]:
    """Return the names of a layer's calls, as a quantization has them: ``conv1``, ``conv1#2``."""
    return [layer.name, *(f"{layer.name}#{number}" for number in range(2, layer.calls + 1))]
