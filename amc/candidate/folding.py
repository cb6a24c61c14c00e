"""The network that the search runs: one object for all candidates, with batch norm folded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from amc.cutting.folding import fold, own_tensors
from amc.cutting.modules import Keep, Tensors, cut_tensors, install
from amc.cutting.trial import difference_of
from amc.errors import out_of_memory
from amc.graph.groups import Graph
from amc.graph.layers import plain_norm
from amc.models.wrappers import replace_module
from amc.scoring.flatten import as_matrix
from amc.scoring.layout import image_like, memory_format_of
from amc.scoring.run import cast, copied, in_eval

FOLDED_TOLERANCE = 1e-3
"""Allowed float32 difference between the judged network (batch norm folded) and the cut one, relative to the
largest output."""


class FoldedNetwork:
    """One network object that gets the tensors of each candidate: no copying, no tracing.

    A plain batch norm that follows a convolution is folded into it, which is exact in eval mode up to float
    rounding. A network that does more with its norms is run as it is: see ``_can_fold``.

    Args:
        model: the dense network.
        graph: its channel groups.
        device, dtype: device and precision of the candidates.

    Attributes:
        memory_format: memory format of the network and of its images.
    """

    def __init__(self, model: nn.Module, graph: Graph, device: torch.device, dtype: torch.dtype) -> None:
        self._dense = dict(model.named_modules())
        self._device = device
        self._lent = False
        self._dtype = dtype
        self.memory_format = memory_format_of(model, image_like(graph.input_shape))
        tracked = {
            conv: norm
            for conv, norm in graph.norm_after.items()
            if getattr(self._dense[norm], "running_mean", None) is not None
        }
        # A subclass of batch norm may do more, such as an activation, which folding would lose.
        plain = {conv: norm for conv, norm in tracked.items() if plain_norm(self._dense[norm])}
        self._folded = plain if _can_fold(model, plain, image_like(graph.input_shape)) else {}
        network = in_eval(copied(model))
        placed = network.to(device, memory_format=self.memory_format)  # type: ignore[call-overload]
        self._network = cast(placed, dtype)
        for norm in self._folded.values():
            replace_module(self._network, self._network.get_submodule(norm), nn.Identity())
        self._modules = dict(self._network.named_modules())
        self._whole: dict[str, Tensors] = {
            name: cut_tensors(self._dense[name]) for pair in tracked.items() for name in pair
        }
        # The dense tensors of all other modules, which the next candidate gets back after a change.
        self._others: dict[str, Tensors] = {
            name: own_tensors(module) for name, module in self._modules.items() if name not in self._whole
        }

    @contextmanager
    def loaded(self, tensors: Mapping[str, Tensors], keeps: Mapping[str, Keep]) -> Iterator[nn.Module]:
        """Lend the network with a candidate's tensors.

        Args:
            tensors: name of a module -> its tensors; all other modules get the dense tensors.
            keeps: name of a module -> how it is cut, for the sizes that modules without tensors declare.

        Raises:
            RuntimeError: another candidate is still lent.
        """
        if self._lent:
            raise RuntimeError("the network is lent to another candidate; use one after the other")
        self._load(tensors, keeps)
        self._lent = True
        try:
            yield self._network
        finally:
            self._lent = False

    def loaded_from(self, model: nn.Module, keeps: Mapping[str, Keep]) -> AbstractContextManager[nn.Module]:
        """Lend the network with the tensors of a sliced network; see ``loaded``."""
        own = {name: own_tensors(module) for name, module in model.named_modules()}
        return self.loaded({name: tensors for name, tensors in own.items() if tensors}, keeps)

    def _load(self, tensors: Mapping[str, Tensors], keeps: Mapping[str, Keep]) -> None:
        current = {**self._whole, **tensors}
        norms = set(self._folded.values())
        for name, own in self._others.items():
            if own and name not in tensors:
                install(self._modules[name], own)
        for name, own in current.items():
            if name in norms:
                continue
            if name in self._folded:
                own = fold(own, current[self._folded[name]], self._dense[self._folded[name]])
            install(self._modules[name], {key: self._place(tensor) for key, tensor in own.items()})
        for name, keep in keeps.items():
            if name not in norms and not current.get(name):
                install(self._modules[name], {}, keep)

    def _place(self, tensor: Tensor) -> Tensor:
        dtype = self._dtype if tensor.is_floating_point() else None
        if tensor.ndim == 4:
            return tensor.to(self._device, dtype, memory_format=self.memory_format)
        return tensor.to(self._device, dtype)


@torch.no_grad()
def _can_fold(model: nn.Module, pairs: Mapping[str, str], images: Tensor) -> bool:
    """Return whether a network computes the same with its batch norms folded.

    It does not if its forward pass reads a norm, or reads what a convolution has computed before the norm.

    Args:
        model: the dense network, in float32 on the CPU.
        pairs: convolution -> the norm behind it.
        images: random images (N, C, H, W).
    """
    twin = in_eval(copied(model))
    try:
        expected = as_matrix(twin(images.clone()), len(images))
    except Exception as error:  # a user's network may raise anything
        if out_of_memory(error):
            raise
        return True  # it fails without folding, too: whoever runs it next says why
    for conv, name in pairs.items():
        norm = twin.get_submodule(name)
        layer = twin.get_submodule(conv)
        install(layer, fold(cut_tensors(layer), cut_tensors(norm), norm))
        replace_module(twin, norm, nn.Identity())
    try:
        found = as_matrix(twin(images.clone()), len(images))
    except Exception as error:
        if out_of_memory(error):
            raise
        return False
    return difference_of(expected, found) <= FOLDED_TOLERANCE
