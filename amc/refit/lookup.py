"""Refitted weights by layer and kept channels, so that a candidate looks them up."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from amc.cutting.modules import Keep, Tensors, axis_length, cut_tensors
from amc.cutting.slicing import Cut
from amc.graph.groups import Graph
from amc.graph.unfolding import weight_matrix, weight_of
from amc.refit.moments import Moments
from amc.refit.nested import NestedRefit, Refit, expand_columns, has_intercept, refit, shrinkage


class RefitCache:
    """Refits by (layer, kept columns); least recently used go first.

    Args:
        solve: ``(layer, kept input channels, ascending) -> Refit``.
        limit_bytes: bound on the memory held.
    """

    def __init__(self, solve: Callable[[str, Tensor], Refit], limit_bytes: int) -> None:
        self._solve = solve
        self._limit = limit_bytes
        self._entries: dict[tuple[str, bytes], Refit] = {}
        self._bytes = 0

    def __call__(self, layer: str, channels: Tensor) -> Refit:
        """Return the refit of ``layer`` when only ``channels`` of its input are kept.

        Args:
            channels: (n,) int64, ascending.
        """
        key = (layer, channels.numpy().tobytes())
        found = self._entries.pop(key, None)
        if found is None:
            found = self._solve(layer, channels)
            self._bytes += found.nbytes
        self._entries[key] = found
        while self._bytes > self._limit and len(self._entries) > 1:
            oldest = next(iter(self._entries))
            self._bytes -= self._entries.pop(oldest).nbytes
        return found


class RefitLookup:
    """Tensors of cut networks, with refitted weights for the layers that lost inputs.

    The refit takes the inputs of the dense network, so it depends on a layer's own kept inputs only and can
    be looked up. One factorisation serves all widths of a layer whose inputs belong to a single group.

    Args:
        model: the dense network on the CPU; it is read and never changed.
        orders: name of a group -> (width,) int64 channels, most important first.
        moments: second moments of the inputs of the layers to refit; none leaves all weights as they are.
        ridge: see ``amc.refit.nested.refit``.
        cache_bytes: bound on the memory for refitted weights.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: Graph,
        orders: Mapping[str, Tensor],
        moments: Mapping[str, Moments],
        *,
        ridge: float,
        cache_bytes: int,
    ) -> None:
        self._modules = dict(model.named_modules())
        self._graph = graph
        self._orders = orders
        self._moments = moments
        self._ridge = ridge
        self._cache_bytes = cache_bytes
        self._nested: dict[str, NestedRefit] = {}
        self._input_slots = _input_slots(graph)
        self._refits = RefitCache(self._solve, cache_bytes)

    def __getstate__(self) -> dict[str, Any]:
        """For another process: factorisations go along, single refits are solved there again."""
        return {name: value for name, value in vars(self).items() if name != "_refits"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start with an empty cache."""
        vars(self).update(state)
        self._refits = RefitCache(self._solve, self._cache_bytes)

    def tensors(self, cut: Cut) -> dict[str, Tensors]:
        """Return the tensors of every module that is cut, and of every norm that takes up a shift."""
        tensors = {name: cut_tensors(self._modules[name], keep) for name, keep in cut.keeps.items()}
        for name in self._moments:
            self._apply(name, cut.keeps[name], tensors)
        return tensors

    def _apply(self, name: str, keep: Keep, tensors: dict[str, Tensors]) -> None:
        """Replace the weights of a layer that lost inputs."""
        if keep.inputs is None or len(keep.inputs) == axis_length(self._modules[name], "in"):
            return
        found = self._refits(name, keep.inputs)
        rows = slice(None) if keep.outputs is None else keep.outputs
        own = tensors[name]
        own["weight"] = weight_of(self._modules[name], found.weight[rows])
        if "bias" in own:
            own["bias"] = own["bias"] + found.shift[rows]
        elif has_intercept(self._graph, self._modules, name):
            norm = self._graph.norm_after[name]
            if norm not in tensors:
                tensors[norm] = cut_tensors(self._modules[norm])
            # The norm subtracts its running mean, so a shift of its input moves that mean the other way.
            tensors[norm]["running_mean"] = tensors[norm]["running_mean"] - found.shift[rows]

    def _solve(self, layer: str, channels: Tensor) -> Refit:
        """Refit a layer on kept input channels."""
        weight = weight_matrix(self._modules[layer])
        taps = weight.shape[1] // axis_length(self._modules[layer], "in")
        options: dict[str, Any] = {
            "intercept": has_intercept(self._graph, self._modules, layer),
            "ridge": shrinkage(self._ridge, weight.shape[1], self._moments[layer].rows),
        }
        slots = self._input_slots[layer]
        if len(slots) > 1:
            return refit(self._moments[layer], weight, expand_columns(channels, taps), **options)
        group, positions = slots[0]
        if layer not in self._nested:
            columns = expand_columns(positions[self._orders[group]], taps)
            self._nested[layer] = NestedRefit(self._moments[layer], weight, columns, **options)
        fixed = weight.shape[1] // taps - positions.numel()
        return self._nested[layer]((len(channels) - fixed) // positions.shape[1])


def _input_slots(graph: Graph) -> dict[str, list[tuple[str, Tensor]]]:
    """For each layer, the groups on its input axis with the positions (channels, m) of their channels."""
    slots: dict[str, list[tuple[str, Tensor]]] = defaultdict(list)
    for group in graph.groups:
        for slot in group.slots:
            if slot.axis == "in":
                slots[slot.module].append((group.name, torch.tensor(slot.positions)))
    return slots
