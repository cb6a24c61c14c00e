"""Bits of the weights in an exported file, as the settings of a quantization store them."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from amc.cost.closed_form import BilinearCost
from amc.cost.size import Stored, size_cost
from amc.errors import SettingError
from amc.graph.groups import Graph
from amc.graph.layers import Layer
from amc.graph.patterns import matches
from amc.quantization.choice import chosen
from amc.quantization.settings import FLOAT_BITS, INTEGER, QuantizeSettings, stored_bits
from amc.quantization.simulation import example_of, program_of
from amc.scoring.run import copied, in_eval


class ExportedSize:
    """The bits of a network's exported weights, at any widths. The network is exported once, at dense widths.

    Args:
        graph: the channel groups of the network.
        model: the network, read for its shapes; it is left as it is.
    """

    def __init__(self, graph: Graph, model: nn.Module) -> None:
        channels, height, width = graph.input_shape
        self._graph, self._model = graph, model
        self._program, _ = program_of(in_eval(copied(model).cpu()), (channels, height, width))

    def as_floats(self, bits: int = 32) -> BilinearCost:
        """Return the cost of a file whose weights are floats of so many bits."""
        return size_cost(self._graph, self._model, self._program, {}, float_bits=bits)

    def stored(self, settings: QuantizeSettings, left_float: Collection[str] = ()) -> BilinearCost:
        """Return the cost of the file that a quantization leads to.

        Args:
            settings: how weights are stored.
            left_float: names of layers that stay float, as a quantization tells them. Without, those that
                ``settings.tolerance`` would leave float count as integers, and random images tell which run.

        Raises:
            SettingError: an excluded layer does not exist.
        """
        if settings.method in FLOAT_BITS:
            return self.as_floats(FLOAT_BITS[settings.method])
        channels, height, width = self._graph.input_shape
        bits_of = chosen(self._program, settings, example_of((channels, height, width))).bits
        scales = 2 if settings.form == "static_int8" else 1
        found = {
            name: Stored(stored_bits(settings, bits), settings.group, scales)
            for name, bits in bits_of.items()
            if name not in left_float
        }
        # a layer of dynamic_int8 without a bias holds zeros, as its operator adds one
        corrected = settings.bias_correction or settings.method == "dynamic_int8"
        return size_cost(self._graph, self._model, self._program, found, corrected=corrected)


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
        named = any(matches(name, pattern) for name in layers)
        # how often those are called is not known
        if not named and not any(matches(name, pattern.split("#")[0]) for name in others):
            known = ", ".join(layers[:3])
            raise SettingError(
                f"quantize.exclude has {pattern!r}, which is no layer; layers are {known}, ..."
            )


def _calls(layer: Layer) -> list[str]:
    """Return the names of a layer's calls, as a quantization has them: ``conv1``, ``conv1#2``."""
    return [layer.name, *(f"{layer.name}#{number}" for number in range(2, layer.calls + 1))]
