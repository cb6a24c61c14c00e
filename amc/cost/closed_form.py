"""Closed-form cost of a network at any widths: multiply-adds and parameters.

Counting convention: MACs are the multiply-adds of convolution and linear layers for one image, without biases
and normalisation. Multiply-adds outside of these layers, of attention or an LSTM, are a constant that no
width changes (``amc.cost.constant``). AMC, fvcore and most of the pruning literature call this number
"FLOPs".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
from torch import Tensor, nn

from amc.graph.groups import Graph, Slot
from amc.graph.layers import Layer


@dataclass(frozen=True)
class BilinearCost:
    """``constant + sum_l scale_l * in_l * out_l`` where both channel counts are linear in the widths.

    Attributes:
        scale: (L,) multiply-adds (or parameters, or bits) per pair of input and output channel.
        in_fixed, out_fixed: (L,) channels that no group owns.
        in_per_width, out_per_width: (L, G) channels per kept channel of each group.
        constant: the part that does not depend on the widths.
    """

    scale: np.ndarray
    in_fixed: np.ndarray
    in_per_width: np.ndarray
    out_fixed: np.ndarray
    out_per_width: np.ndarray
    constant: int = 0

    def __call__(self, widths: Sequence[int]) -> int:
        """Return the exact cost at ``widths``, the kept channels of every group in forward order."""
        kept = np.asarray(widths, dtype=np.int64)
        inputs = self.in_fixed + self.in_per_width @ kept
        outputs = self.out_fixed + self.out_per_width @ kept
        return self.constant + int((self.scale * inputs * outputs).sum())

    def many(self, widths: np.ndarray) -> np.ndarray:
        """Return the costs (N,) of N networks of ``widths`` (N, G), exact below 2^53."""
        kept = np.asarray(widths, dtype=np.float64)
        in_per, out_per, *_ = self._products
        inputs, outputs = self.in_fixed + kept @ in_per.T, self.out_fixed + kept @ out_per.T
        found: np.ndarray = self.constant + (inputs * outputs) @ self.scale.astype(np.float64)
        return found

    def with_one_changed(self, widths: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """Return the costs when each group alone gains or loses channels.

        Args:
            widths: (N, G) kept channels of every group, of N networks.
            steps: (N, G) channels that each group gains (or loses, if negative).

        Returns:
            (N, G) costs, exact below 2^53.
        """
        kept, moved = np.asarray(widths, dtype=np.float64), np.asarray(steps, dtype=np.float64)
        in_per, out_per, scaled_in, scaled_out, own = self._products
        inputs, outputs = self.in_fixed + kept @ in_per.T, self.out_fixed + kept @ out_per.T
        changes = moved * (outputs @ scaled_in + inputs @ scaled_out) + moved * moved * own
        found: np.ndarray = self.many(widths)[:, None] + changes
        return found

    @cached_property
    def _products(self) -> tuple[np.ndarray, ...]:
        in_per, out_per = self.in_per_width.astype(np.float64), self.out_per_width.astype(np.float64)
        scale = self.scale.astype(np.float64)[:, None]
        return in_per, out_per, scale * in_per, scale * out_per, (scale * in_per * out_per).sum(axis=0)


def macs_cost(graph: Graph) -> BilinearCost:
    """Return the multiply-adds per image as a function of the widths (AMC section 3.1: "FLOPs")."""
    rows = []
    for layer in graph.layers:
        taps, inputs = filter_size(layer)
        rows.append((layer.name, layer.positions * taps, inputs, layer.out_channels))
    return bilinear(graph, rows, constant=graph.other_macs)


def params_cost(graph: Graph, model: nn.Module) -> BilinearCost:
    """Return the number of parameters as a function of the widths, with biases and norm layers."""
    rows: list[tuple[str, int, int, int]] = []
    counted = 0
    for layer in graph.layers:
        taps, inputs = filter_size(layer)
        rows.append((layer.name, taps, inputs, layer.out_channels))
        counted += taps * inputs * layer.out_channels
        if layer.bias:
            rows.append((f"{layer.name}:out", 1, 1, layer.out_channels))
            counted += layer.out_channels
    for place, vector in vectors(graph, model):
        rows.append((f"{place}:out", 1, 1, vector.numel()))
        counted += vector.numel()
    total = sum(p.numel() for p in model.parameters())
    return bilinear(graph, rows, constant=total - counted)


def vectors(graph: Graph, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield place and tensor of the parameters of one number a channel outside of layers."""
    layers = {layer.name for layer in graph.layers}
    slots = {slot.place: slot for group in graph.groups for slot in group.slots}
    modules = dict(model.named_modules())
    for place in sorted(slots.keys() - layers):
        for vector in _own_parameters(modules[slots[place].module], slots[place]):
            yield place, vector


def _own_parameters(module: nn.Module, slot: Slot) -> list[Tensor]:
    """Return the parameters of one number a channel that a slot stands for."""
    if slot.tensor is None:
        return [p for p in module.parameters(recurse=False) if p.ndim == 1 and len(p) > 1]
    bare = module._parameters.get(slot.tensor)
    return [] if bare is None else [bare]


def filter_size(layer: Layer) -> tuple[int, int]:
    """Return the weights of one filter as a fixed factor and a number of input channels that can be cut."""
    if layer.groups == 1:
        return prod(layer.kernel_size), layer.in_channels
    return prod(layer.kernel_size) * (layer.in_channels // layer.groups), 1


@dataclass(frozen=True)
class LayerWidths:
    """Input and output channels of every layer, linear in the widths of the groups.

    Attributes:
        fixed: (2, L) input and output channels that no group owns.
        per_width: (2, L, G) channels per kept channel of each group.
    """

    fixed: np.ndarray
    per_width: np.ndarray

    def __call__(self, widths: Sequence[int]) -> np.ndarray:
        """Return the input and output channels of every layer at ``widths``: (2, L) int64."""
        return self.fixed + self.per_width @ np.asarray(widths, dtype=np.int64)


def layer_widths(graph: Graph) -> LayerWidths:
    """Return the channels of every layer as a function of the group widths."""
    rows = [(layer.name, 1, layer.in_channels, layer.out_channels) for layer in graph.layers]
    found = bilinear(graph, rows)
    follows = np.array([layer.depthwise for layer in graph.layers])  # one axis, listed as the output
    in_fixed = np.where(follows, found.out_fixed, found.in_fixed)
    in_per_width = np.where(follows[:, None], found.out_per_width, found.in_per_width)
    return LayerWidths(np.stack([in_fixed, found.out_fixed]), np.stack([in_per_width, found.out_per_width]))


def bilinear(graph: Graph, rows: Iterable[tuple[str, int, int, int]], constant: int = 0) -> BilinearCost:
    """Build the cost as a sum over rows.

    Args:
        rows: L times (module, scale, dense inputs, dense outputs). With ``:out`` after the name of the module
            only its output channels depend on the widths.
    """
    per_width: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for index, group in enumerate(graph.groups):
        for slot in group.slots:
            per_width.setdefault((slot.place, slot.axis), []).append((index, len(slot.positions[0])))
    listed = list(rows)
    shape = (len(listed), len(graph.groups))
    in_per, out_per = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    in_fixed = np.array([inputs for _, _, inputs, _ in listed], dtype=np.int64)
    out_fixed = np.array([outputs for _, _, _, outputs in listed], dtype=np.int64)
    for row, (name, _, _, _) in enumerate(listed):
        module, only_out = name.removesuffix(":out"), name.endswith(":out")
        for fixed, per, axis in ((in_fixed, in_per, "in"), (out_fixed, out_per, "out")):
            if axis == "in" and only_out:
                continue
            for index, count in per_width.get((module, axis), []):
                per[row, index] = count
                fixed[row] -= count * graph.groups[index].width
    scale = np.array([s for _, s, _, _ in listed], dtype=np.int64)
    return BilinearCost(scale, in_fixed, in_per, out_fixed, out_per, constant)
