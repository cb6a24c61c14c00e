"""Bits that the weights of a network take in a file, at any widths."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from math import prod

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from amc.cost.closed_form import BilinearCost, bilinear, filter_size, vectors
from amc.graph.groups import Graph
from amc.graph.layers import Layer
from amc.quantization.program import Site
from amc.quantization.simulation import Program

_SCALE_BITS = 32


@dataclass(frozen=True)
class Stored:
    """How a file holds the weights of a layer as integers, with float32 scales for each channel.

    Attributes:
        bits: of a weight.
        block: weights of a channel that share a further scale; 0 for none.
        scales: of a channel; integer biases have scales of their own.
    """

    bits: int
    block: int = 0
    scales: int = 1


def size_cost(
    graph: Graph,
    model: nn.Module,
    program: Program,
    stored: Mapping[str, Stored],
    *,
    float_bits: int = 32,
    corrected: bool = False,
) -> BilinearCost:
    """Return the bits that the weights take in a file, as a function of the widths.

    A batch norm that the program folds leaves one bias a channel. Others keep their statistics, and hold ones
    and zeros for a gain and an offset that they lack. Biases and scales of integer layers have 32 bits.
    Blocks of weights count as if they divided every layer: the file is never larger. A weight that several
    layers or calls use is float once, but integers are rounded for each, and stored so often.

    Args:
        graph: the channel groups of the network.
        model: the network, read for its shapes.
        program: the same network as the file has it.
        stored: integer layers of the program by name; the others are float.
        float_bits: of a float weight.
        corrected: whether every integer layer has a bias, as one that had none gets it from a correction.
    """
    folds = _folds(graph, model, program, stored)
    count = _Count(graph, model, float_bits)
    copies: set[tuple[str, str | None]] = set()
    counted: set[str | None] = set()
    for site in program.sites:
        own, copy = stored.get(site.name), (site.weight, folds.get(site.name))
        if own is None and copy in copies:
            continue  # a bias of its own is left, and counted with all that is
        if own is None:
            copies.add(copy)
        module = program.model.get_submodule(site.path)
        assert isinstance(module, nn.Conv2d | nn.Linear)
        has_bias = module.bias is not None or site.name in folds or (corrected and own is not None)
        count.add(site, module.weight, own, has_bias=has_bias)
        counted |= {site.weight, site.bias}
    gone = {norm for norm in folds.values() if f"{norm}.running_mean" not in program.kept}
    count.forget(counted - program.kept)
    count.add_floats({site.name.split("#")[0] for site in program.sites}, gone)
    return count.total()


def _folds(graph: Graph, model: nn.Module, program: Program, stored: Mapping[str, Stored]) -> dict[str, str]:
    """Return layer -> name of the batch norm that is folded into it.

    Where the program is no graph, exporters still fold norms into layers that stay float.
    """
    if program.placement == "graph":
        return {name: norm.name for name, norm in program.norms.items()}
    floats = {site.name for site in program.sites} - stored.keys()
    return {
        layer: norm
        for layer, norm in graph.norm_after.items()
        if layer in floats and model.get_submodule(norm).running_mean is not None
    }


class _Count:
    """The bits of a network, of which each number is counted once; see ``size_cost``."""

    def __init__(self, graph: Graph, model: nn.Module, float_bits: int) -> None:
        self._graph, self._model, self._float_bits = graph, model, float_bits
        self._modules = dict(model.named_modules())
        self._tensors = dict(model.named_parameters(remove_duplicate=False))
        self._left = {id(p): p.numel() for p in model.parameters()}
        self._rows: list[tuple[str, int, int, int]] = []
        self._fixed = 0

    def add(self, site: Site, weight: Tensor, own: Stored | None, *, has_bias: bool) -> None:
        """Count the weight, the scales and the bias of a layer of the program.

        Args:
            site: the layer.
            weight: (channels, inputs of a group, ...).
            own: how its integers are stored; None for floats.
            has_bias: whether there is a bias.
        """
        name = site.name.split("#")[0]
        layer = next((each for each in self._graph.layers if each.name == name), None)
        if layer is None:
            taps, inputs, outputs = weight[0, 0].numel(), weight.shape[1], len(weight)
        else:
            (taps, inputs), outputs = filter_size(layer), layer.out_channels
        bits = (self._float_bits if own is None else own.bits) * taps
        if own is not None and own.block:
            bits += -(-_SCALE_BITS * taps // own.block)
        vector = (0 if own is None else _SCALE_BITS * own.scales) + (self._float_bits if has_bias else 0)
        if layer is None:  # no module that ran holds the weight, so no width changes it
            self._fixed += (bits * inputs + vector) * outputs
        else:
            self._rows += [(name, bits, inputs, outputs), (f"{name}:out", vector, 1, outputs)]

    def forget(self, names: Iterable[str | None]) -> None:
        """Leave out parameters that are counted, or that the file does not hold."""
        for name in names:
            self._left.pop(id(self._tensors.get(str(name))), None)

    def add_floats(self, known: Set[str], folded: Set[str]) -> None:
        """Count all other numbers whose count follows from the widths.

        Args:
            known: layers that are counted.
            folded: names of batch norms that the file does not hold.
        """
        for layer in self._graph.layers:
            if layer.name not in known:
                self._add_layer(layer)
        self.forget(f"{name}.{own}" for name in folded for own in self._modules[name]._parameters)
        for place, vector in vectors(self._graph, self._model):
            if self._left.pop(id(vector), 0):
                self._rows.append((f"{place}:out", self._float_bits, 1, vector.numel()))
        self._add_statistics(folded)

    def _add_layer(self, layer: Layer) -> None:
        """Count a layer that is none of the program: a transposed one, or one whose weight is computed."""
        own, (taps, inputs) = self._modules[layer.name]._parameters, filter_size(layer)
        rows = [("weight", (layer.name, self._float_bits * taps, inputs, layer.out_channels))]
        if layer.bias:
            rows.append(("bias", (f"{layer.name}:out", self._float_bits, 1, layer.out_channels)))
        for key, row in rows:
            if (tensor := own.get(key)) is None:  # what it is computed from is left, and has as many numbers
                self._fixed -= prod(row[1:])
            elif self._left.pop(id(tensor), None) is None:
                continue  # another layer holds it, too
            self._rows.append(row)

    def _add_statistics(self, folded: Set[str]) -> None:
        """Count means and variances of batch norms, and the ones and zeros of those that have no gain."""
        numbers = {
            name: (2 if each.affine else 4, each.num_features)
            for name, each in self._modules.items()
            if isinstance(each, _BatchNorm) and each.running_mean is not None and name not in folded
        }
        for slot in {slot.place: slot for group in self._graph.groups for slot in group.slots}.values():
            if slot.tensor is None and (found := numbers.pop(slot.module, None)) is not None:
                self._rows.append((f"{slot.place}:out", found[0] * self._float_bits, 1, found[1]))
        self._fixed += self._float_bits * sum(each * channels for each, channels in numbers.values())

    def total(self) -> BilinearCost:
        """Return the bits of all that is counted, and of the parameters that are left."""
        return bilinear(self._graph, self._rows, self._fixed + self._float_bits * sum(self._left.values()))
