"""Candidates as the search runs them: one network object, batch norm folded, tensors exchanged."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from amc.cutting.modules import Keep, set_tensors, sliced_tensors
from amc.graph.groups import Graph
from amc.graph.layers import plain_norm
from amc.models import OptionAShortcut
from amc.models.shortcut import slice_shortcut

Tensors = dict[str, dict[str, Tensor]]
"""Module name -> tensor name -> tensor."""


def sliced_shortcut(module: OptionAShortcut, keep: Keep) -> dict[str, Tensor]:
    """Return the tensors of a parameter-free shortcut cut to its kept channels."""
    twin = copy.deepcopy(module)
    slice_shortcut(twin, keep.inputs, keep.outputs)
    return {"source": twin.source}


class Shell:
    """One network object whose tensors are exchanged for each candidate: no copying, no tracing.

    Plain batch norms that follow a convolution are folded into it (exact in eval mode up to float rounding).

    Args:
        model: the dense network.
        device, dtype: where and in which precision candidates run.
    """

    def __init__(self, model: nn.Module, graph: Graph, device: torch.device, dtype: torch.dtype) -> None:
        self._dense = dict(model.named_modules())
        self._device = device
        self._dtype = dtype
        tracked = {
            conv: norm
            for conv, norm in graph.norm_after.items()
            if getattr(self._dense[norm], "running_mean", None) is not None
        }
        # A norm that does more (an activation, say) stays: folded, it would be lost.
        self._folded = {conv: norm for conv, norm in tracked.items() if plain_norm(self._dense[norm])}
        shell = copy.deepcopy(model).eval()
        self._shell = shell.to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        for norm in self._folded.values():
            self._shell.set_submodule(norm, nn.Identity())
        self._modules = dict(self._shell.named_modules())
        self._whole: Tensors = {
            name: sliced_tensors(self._dense[name], Keep()) for pair in tracked.items() for name in pair
        }
        # Of all others, in place already: what one candidate has changed, the next gets back.
        self._others: Tensors = {
            name: _own_tensors(module) for name, module in self._modules.items() if name not in self._whole
        }

    def load(self, tensors: Tensors) -> nn.Module:
        """Put a candidate's tensors in; the network returned is valid until the next call."""
        current = {**self._whole, **tensors}
        norms = set(self._folded.values())
        for name, own in self._others.items():
            if own and name not in tensors:
                self._set(name, own)
        for name, own in current.items():
            if name in norms:
                continue
            if name in self._folded:
                own = fold(own, current[self._folded[name]], self._dense[self._folded[name]])
            self._set(name, {key: self._place(tensor) for key, tensor in own.items()})
        return self._shell

    def load_network(self, model: nn.Module) -> nn.Module:
        """Put in the tensors of a sliced network, as ``load`` does."""
        own = {name: _own_tensors(module) for name, module in model.named_modules()}
        return self.load({name: tensors for name, tensors in own.items() if tensors})

    def _set(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        module = self._modules[name]
        set_tensors(module, tensors)
        if isinstance(module, OptionAShortcut):
            module.out_channels = len(tensors["source"])

    def _place(self, tensor: Tensor) -> Tensor:
        dtype = self._dtype if tensor.is_floating_point() else None
        if tensor.ndim == 4:
            return tensor.to(self._device, dtype, memory_format=torch.channels_last)
        return tensor.to(self._device, dtype)


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of a module without its children."""
    own = itertools.chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False))
    return {name: tensor.detach() for name, tensor in own}


def fold(conv: Mapping[str, Tensor], norm: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Fold a batch norm in eval mode into the convolution before it: weights and bias of the one layer."""
    scale = torch.rsqrt(norm["running_var"] + float(module.eps))  # type: ignore[arg-type]
    if "weight" in norm:
        scale = scale * norm["weight"]
    bias = conv.get("bias", torch.zeros_like(scale)) - norm["running_mean"]
    return {
        "weight": conv["weight"] * scale[:, None, None, None],
        "bias": bias * scale + norm.get("bias", torch.zeros_like(scale)),
    }
