"""Fine-grained pruning: single weights become zero, shapes stay (AMC section 4.2, ResNet-50).

Here a "width" is the share of a layer's weights that stays, in whole percent. What a zero saves is up to the
runtime or the file format: MACs and parameters count the weights that are left.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from amc.digest import digest
from amc.graph.groups import Graph
from amc.graph.layers import Layer
from amc.models.checkpoint import state_digest
from amc.scoring.precision import PRECISIONS
from amc.sparsity.scores import SCORES, check_order

WHOLE = 100
"""The width of a layer that has all its weights."""


def prunable_layers(graph: Graph, model: nn.Module) -> tuple[Layer, ...]:
    """Return the convolution and linear layers in forward order; of those that share weights, the first.

    Transposed convolutions keep all their weights.
    """
    modules, seen, found = dict(model.named_modules()), set(), []
    for layer in graph.layers:
        weight = modules[layer.name].weight
        if layer.flaw is None and layer.kind != "transposed" and id(weight) not in seen:
            seen.add(id(weight))
            found.append(layer)
    return tuple(found)


class SparseBuilder:
    """Builds sparse versions of one network, which may be sparse already.

    A "width" is the share of a layer's weights that stays, in whole percent.

    Args:
        model: the network; it is read and never changed.
        graph: its layers.
        ceiling: widths of the network as it is: weights that are zero stay zero.
        calibration: training images (N, C, H, W) for the ``curvature`` scores.
        order: one of ``SCORES``.
        precision: key of ``PRECISIONS``, of the candidates.
        device: where candidates run.

    Attributes:
        layers: the layers that are decided, in forward order; ``counts`` are their weights.
        errors: name of a layer -> its loss at every width, 0 to 100 percent, comparable between layers.
        dense_widths: ``ceiling``.
        whole_widths: all weights of every layer.
        classifies: True; networks without logits are refused before.
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
        self.whole_widths = (WHOLE,) * len(self.layers)
        self.device = torch.device(device)
        self._other_macs = graph.other_macs
        self._model = copy.deepcopy(model).cpu().eval()
        modules = dict(self._model.named_modules())
        self._weights = {layer.name: modules[layer.name].weight.detach().clone() for layer in self.layers}
        self.counts = tuple(weight.numel() for weight in self._weights.values())
        total = sum(parameter.numel() for parameter in self._model.parameters())
        self._other_params = total - sum(self.counts)
        scores = SCORES[order](self._model, self.layers, calibration)
        # Weights that are zero already go first, whatever their score.
        scores = {n: s.masked_fill(self._weights[n] == 0, -1.0) for n, s in scores.items()}
        self._ranks = {name: _ranks(score) for name, score in scores.items()}
        self.errors = {name: _errors(score) for name, score in scores.items()}
        twin = copy.deepcopy(self._model)
        self._candidate = twin.to(self.device, PRECISIONS[precision], memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def names(self) -> tuple[str, ...]:
        """The layers, in forward order."""
        return tuple(layer.name for layer in self.layers)

    def kept(self, widths: Sequence[int]) -> tuple[int, ...]:
        """Return how many weights each layer keeps: the share, rounded up."""
        return tuple(-(-count * width // WHOLE) for count, width in zip(self.counts, widths, strict=True))

    def weights(self, widths: Sequence[int]) -> int:
        """Return how many weights of all layers are kept."""
        return sum(self.kept(widths))

    def macs(self, widths: Sequence[int]) -> int:
        """Return the multiply-adds with weights that are kept, and those that are constant."""
        kept = self.kept(widths)
        return self._other_macs + sum(
            layer.positions * count for layer, count in zip(self.layers, kept, strict=True)
        )

    def params(self, widths: Sequence[int]) -> int:
        """Return the parameters that are kept, biases and norm layers included."""
        return self._other_params + self.weights(widths)

    def prepare(self) -> None:
        """Do nothing: candidates share no more than is made at construction."""

    @contextmanager
    def network(self, widths: Sequence[int]) -> Iterator[nn.Module]:
        """Lend a candidate; it changes with the next one."""
        self._fill(self._candidate, widths)
        yield self._candidate

    def sparse_model(self, widths: Sequence[int]) -> nn.Module:
        """Return a new network of these widths, on the CPU."""
        model = copy.deepcopy(self._model)
        self._fill(model, widths)
        return model

    @torch.no_grad()
    def _fill(self, model: nn.Module, widths: Sequence[int]) -> None:
        modules = dict(model.named_modules())
        for name, kept in zip(self.names, self.kept(widths), strict=True):
            modules[name].weight.copy_(self._weights[name] * (self._ranks[name] < kept))


def sparsity_fingerprint(model: nn.Module, data_fingerprint: str, *settings: object) -> str:
    """Hash all that determines an evaluation: weights, images and settings."""
    about = (data_fingerprint, state_digest(model.state_dict()), *settings)
    return digest(repr(about))[:16]


def _ranks(scores: Tensor) -> Tensor:
    """Return the place of every weight, the most important first; the same for equal scores every time."""
    order = scores.flatten().argsort(descending=True, stable=True)
    ranks = torch.empty(len(order), dtype=torch.int32)
    ranks[order] = torch.arange(len(order), dtype=torch.int32)
    return ranks.reshape(scores.shape)


def _errors(scores: Tensor) -> tuple[float, ...]:
    """Return what is lost at every width, 0 to ``WHOLE``: the sum of the scores of the weights that go."""
    ascending = scores.flatten().clamp(min=0).sort().values
    lost = torch.cat([torch.zeros(1).double(), ascending.cumsum(0)])
    count = len(ascending)
    return tuple(float(lost[count + (-count * width // WHOLE)]) for width in range(WHOLE + 1))
