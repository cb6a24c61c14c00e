"""Fine-grained pruning: single weights become zero, shapes stay (AMC section 4.2, ResNet-50).

Here a "width" is the share of a layer's weights that stays, in whole percent. What a zero saves is up to the
runtime or the file format: MACs and parameters count the weights that are left.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from amc.candidate.memo import Memo
from amc.data import LabelledImages
from amc.digest import digest
from amc.graph.groups import Graph
from amc.graph.layers import Layer
from amc.models.checkpoint import state_digest
from amc.result import Evaluation
from amc.scoring.precision import PRECISIONS
from amc.scoring.run import outputs
from amc.scoring.scores import agreement, cross_entropy, likeness, top1
from amc.sparsity.scores import SCORES, check_order

WHOLE = 100
"""The width of a layer that has all its weights."""


def prunable_layers(graph: Graph, model: nn.Module) -> tuple[Layer, ...]:
    """Return the convolution and linear layers in forward order; of those that share weights, the first."""
    modules, seen, found = dict(model.named_modules()), set(), []
    for layer in graph.layers:
        weight = modules[layer.name].weight
        if layer.flaw is None and id(weight) not in seen:
            seen.add(id(weight))
            found.append(layer)
    return tuple(found)


class WeightPruner:
    """Judges sparse versions of one network, which may be sparse already.

    Args:
        model: the network; it is read and never changed.
        graph: its layers.
        ceiling: widths of the network as it is (percent of each layer): zeros do not come back.
        calibration: training images (N, C, H, W) for the ``curvature`` scores.
        search_val: held-out images and labels that give the accuracy.
        order: one of ``SCORES``.
        batch_size, precision: of evaluations, as for the ``Compressor``.
        memo: where evaluations are remembered; in memory if not given.

    Attributes:
        layers: the layers that are decided, in forward order; ``counts`` are their weights.
        errors: what each layer loses at every width, 0 to 100 percent, comparable between layers.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: Graph,
        ceiling: Sequence[int],
        calibration: Tensor,
        search_val: LabelledImages,
        *,
        order: str = "curvature",
        batch_size: int = 128,
        precision: str = "float32",
        memo: Memo | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        check_order(order)
        self.layers = prunable_layers(graph, model)
        self.ceiling = tuple(ceiling)
        self._other_macs = graph.other_macs
        self._model = copy.deepcopy(model).cpu().eval()
        modules = dict(self._model.named_modules())
        self._weights = {layer.name: modules[layer.name].weight.detach().clone() for layer in self.layers}
        self.counts = tuple(weight.numel() for weight in self._weights.values())
        total = sum(parameter.numel() for parameter in self._model.parameters())
        self._other_params = total - sum(self.counts)
        scores = SCORES[order](self._model, self.layers, calibration)
        # What is zero already goes first, whatever its score.
        scores = {n: s.masked_fill(self._weights[n] == 0, -1.0) for n, s in scores.items()}
        self._ranks = {name: _ranks(score) for name, score in scores.items()}
        self.errors = {name: _errors(score) for name, score in scores.items()}
        dtype = PRECISIONS[precision]
        self._device, self._batch_size = torch.device(device), batch_size
        self._images = search_val.images.to(self._device, dtype, memory_format=torch.channels_last)
        self._labels = search_val.labels.cpu()
        self._shell = copy.deepcopy(self._model).to(self._device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._memo = memo if memo is not None else Memo()

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

    @cached_property
    def dense(self) -> Evaluation:
        """What the network as it is achieves on ``search_val``."""
        return self._judge(self.ceiling, self._dense_outputs, 0.0)

    @cached_property
    def _dense_outputs(self) -> Tensor:
        return self._outputs(self.ceiling)

    def evaluate(self, widths: Sequence[int]) -> Evaluation:
        """Return what these widths achieve on ``search_val``; known ones cost nothing."""
        if (known := self._memo.get(widths)) is not None:
            return known
        _ = self._dense_outputs  # outside of the clock
        start = time.process_time()
        found = self._outputs(widths)
        evaluation = self._judge(widths, found, time.process_time() - start)
        self._memo.put(evaluation)
        return evaluation

    def sparse_model(self, widths: Sequence[int]) -> nn.Module:
        """Return a new network of these widths, on the CPU."""
        model = copy.deepcopy(self._model)
        self._fill(model, widths)
        return model

    def close(self) -> None:
        """Close the file of remembered evaluations."""
        self._memo.close()

    def _outputs(self, widths: Sequence[int]) -> Tensor:
        self._fill(self._shell, widths)
        return outputs(self._shell, self._images, self._batch_size)

    @torch.no_grad()
    def _fill(self, model: nn.Module, widths: Sequence[int]) -> None:
        modules = dict(model.named_modules())
        for name, kept in zip(self.names, self.kept(widths), strict=True):
            modules[name].weight.copy_(self._weights[name] * (self._ranks[name] < kept))

    def _judge(self, widths: Sequence[int], found: Tensor, seconds: float) -> Evaluation:
        whole = (WHOLE,) * len(self.layers)
        macs, params = self.macs(widths), self.params(widths)
        return Evaluation(
            widths=tuple(int(width) for width in widths),
            top1=top1(found, self._labels),
            loss=cross_entropy(found, self._labels),
            agreement=agreement(found, self._dense_outputs),
            likeness=likeness(found, self._dense_outputs),
            macs=macs,
            params=params,
            macs_ratio=macs / self.macs(whole),
            params_ratio=params / self.params(whole),
            seconds=seconds,
        )


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
