"""Fine-grained pruning: single weights become zero, and all shapes stay (AMC section 4.2, ResNet-50).

Here a "width" is the density of a layer: the share of its weights that is kept, in whole percent. MACs and
parameters count the kept weights only; whether a runtime or a file format saves the zeros depends on it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from amc.digest import digest, state_digest, unsaved
from amc.graph.groups import Graph
from amc.graph.layers import Layer
from amc.scoring.layout import memory_format_of
from amc.scoring.precision import dtype_of
from amc.scoring.run import copied, in_eval
from amc.sparsity.names import check_order
from amc.sparsity.scores import SCORES

WHOLE = 100
"""The width of a layer that keeps all its weights."""


def prunable_layers(graph: Graph, model: nn.Module) -> tuple[Layer, ...]:
    """Return the convolution and linear layers in forward order, one for each shared weight.

    Transposed convolutions keep all their weights.
    """
    modules, seen, found = dict(model.named_modules()), set(), []
    for layer in graph.layers:
        weight = modules[layer.name].weight
        if layer.flaw is None and layer.kind != "transposed" and id(weight) not in seen:
            seen.add(id(weight))
            found.append(layer)
    return tuple(found)


def whole_layers(model: nn.Module, layers: Sequence[Layer], named: Collection[str]) -> frozenset[str]:
    """Return the names of prunable layers that keep all weights: the named ones, and those sharing a weight.

    Args:
        layers: the prunable layers, of ``prunable_layers``.
        named: names of layers.
    """
    modules = dict(model.named_modules())
    weights = {id(modules[name].weight) for name in named}
    return frozenset(layer.name for layer in layers if id(modules[layer.name].weight) in weights)


def _by_weight(graph: Graph, model: nn.Module, layers: Sequence[Layer]) -> tuple[list[int], int]:
    """Return the number of output positions of each prunable layer's weight, and all other multiply-adds."""
    modules = dict(model.named_modules())
    place = {id(modules[layer.name].weight): index for index, layer in enumerate(layers)}
    positions, others = [0] * len(layers), graph.other_macs
    for layer in graph.layers:
        index = place.get(id(modules[layer.name].weight))
        if index is None or layer.flaw is not None or layer.kind == "transposed":
            others += layer.macs
        else:
            positions[index] += layer.positions
    return positions, others


def least_width(min_density: float) -> int:
    """Return the smallest width of a layer, in parts of ``WHOLE``, that keeps a least density."""
    return max(math.ceil(min_density * WHOLE - 1e-9), 1)  # 0.07 * 100 is above 7


def kept_weights(count: int, width: int) -> int:
    """Return how many of a layer's ``count`` weights stay at a width."""
    return -(-count * width // WHOLE)


class SparseBuilder:
    """Builds sparse versions of one network, which may be sparse already.

    A "width" is the share of a layer's weights that is kept, in whole percent.

    Args:
        model: the network; it is read and never changed.
        graph: its layers.
        ceiling: widths of ``model`` itself; weights that are zero in it stay zero.
        calibration: training images (N, C, H, W) for the ``curvature`` scores.
        order: one of ``SCORES``.
        precision: number format of the candidates, one of ``amc.scoring.precision.PRECISIONS``.
        device: device that runs the candidates.

    Attributes:
        layers: the prunable layers, in forward order.
        counts: number of weights of each layer.
        errors: name of a layer -> estimated error at every width, 0 to 100 percent, comparable between
            layers.
        dense_widths: ``ceiling``.
        whole_costs: multiply-adds and parameters with all weights.
        device: as given.
        memory_format: memory format of the images that candidates take.
        classifies: True; networks without logits are refused before.

    Raises:
        SettingError: the order is unknown.
    """

    classifies = True

    def __init__(
        self,
        model: nn.Module,
        graph: Graph,
        ceiling: Sequence[int],
        calibration: Tensor,
        *,
        order: str = "curvature",
        precision: str = "float32",
        device: str | torch.device = "cpu",
    ) -> None:
        check_order(order)
        self.layers = prunable_layers(graph, model)
        self.dense_widths = tuple(ceiling)
        self.device = torch.device(device)
        self._positions, self._other_macs = _by_weight(graph, model, self.layers)
        self._model = in_eval(copied(model).cpu())
        modules = dict(self._model.named_modules())
        self._weights = {layer.name: modules[layer.name].weight.detach().clone() for layer in self.layers}
        self.counts = tuple(weight.numel() for weight in self._weights.values())
        total = sum(parameter.numel() for parameter in self._model.parameters())
        self._other_params = total - sum(self.counts)
        whole = (WHOLE,) * len(self.layers)
        self.whole_costs: tuple[float, float] = (self.macs(whole), self.params(whole))
        scores = SCORES[order](self._model, self.layers, calibration)
        # Weights that are zero already come last in the ranking, whatever their score.
        scores = {n: s.masked_fill(self._weights[n] == 0, -1.0) for n, s in scores.items()}
        self._ranks = {name: _ranks(score) for name, score in scores.items()}
        self.errors = {name: _errors(score) for name, score in scores.items()}
        twin = copied(self._model)
        self.memory_format = memory_format_of(twin, calibration[:2])
        self._candidate = twin.to(self.device, dtype_of(precision), memory_format=self.memory_format)  # type: ignore[call-overload]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the layers, in forward order."""
        return tuple(layer.name for layer in self.layers)

    def kept(self, widths: Sequence[int]) -> tuple[int, ...]:
        """Return how many weights each layer keeps: the share, rounded up."""
        return tuple(kept_weights(count, width) for count, width in zip(self.counts, widths, strict=True))

    def weights(self, widths: Sequence[int]) -> int:
        """Return how many weights of all layers are kept."""
        return sum(self.kept(widths))

    def macs(self, widths: Sequence[int]) -> int:
        """Return the multiply-adds of one image: those of the kept weights and the constant ones."""
        kept = self.kept(widths)
        return self._other_macs + sum(
            positions * count for positions, count in zip(self._positions, kept, strict=True)
        )

    def params(self, widths: Sequence[int]) -> int:
        """Return the number of kept parameters, including biases and norm layers."""
        return self._other_params + self.weights(widths)

    def prepare(self) -> None:
        """Do nothing: the constructor has computed all that candidates share."""

    @contextmanager
    def network(self, widths: Sequence[int]) -> Iterator[nn.Module]:
        """Lend a candidate; the next call changes the same network."""
        self._fill(self._candidate, widths)
        yield self._candidate

    def sparse_model(self, widths: Sequence[int]) -> nn.Module:
        """Return a new network of these widths, on the CPU."""
        model = copied(self._model)
        self._fill(model, widths)
        return model

    @torch.no_grad()
    def _fill(self, model: nn.Module, widths: Sequence[int]) -> None:
        modules = dict(model.named_modules())
        for name, kept in zip(self.names, self.kept(widths), strict=True):
            modules[name].weight.copy_(self._weights[name] * (self._ranks[name] < kept))


def sparsity_fingerprint(model: nn.Module, data_fingerprint: str, *settings: object) -> str:
    """Return the hash of everything that determines an evaluation: weights, buffers, images and settings."""
    tensors = [state_digest(each) for each in (model.state_dict(), unsaved(model)) if each]
    about = (data_fingerprint, *tensors, *settings)
    return digest(repr(about))[:16]


def _ranks(scores: Tensor) -> Tensor:
    """Return the rank of every weight, 0 for the highest score; ties are broken by position."""
    order = scores.flatten().argsort(descending=True, stable=True)
    ranks = torch.empty(len(order), dtype=torch.int32)
    ranks[order] = torch.arange(len(order), dtype=torch.int32)
    return ranks.reshape(scores.shape)


def _errors(scores: Tensor) -> tuple[float, ...]:
    """Return the error at every width, 0 to ``WHOLE``: the sum of the scores of the removed weights."""
    ascending = scores.flatten().clamp(min=0).sort().values
    lost = torch.cat([torch.zeros(1).double(), ascending.cumsum(0)])
    count = len(ascending)
    return tuple(float(lost[count + (-count * width // WHOLE)]) for width in range(WHOLE + 1))
