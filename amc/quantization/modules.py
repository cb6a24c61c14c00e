"""A network that cannot be exported: only the inputs and weights of its layers are quantized, by hooks."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from amc.graph.tied import tied_layers
from amc.graph.unfolding import layer_input, own_forward
from amc.models.wrappers import replace_module
from amc.quantization.description import FloatLayer
from amc.quantization.program import FoldedNorm, Site, Visit
from amc.scoring.run import copied


class ModuleProgram:
    """A network whose forward pass stays as it is.

    Args:
        model: in eval mode, on the CPU; it is left as it is.

    Attributes:
        sites: every layer that a hook can see, also where no images reach it.
    """

    placement = "modules"
    norms: Mapping[str, FoldedNorm] = MappingProxyType({})
    """None: batch norms stay as they are."""
    kept: frozenset[str] = frozenset()
    """None: a tensor that two modules hold stays float."""
    images: str | None = None
    """None: the activations are inputs of layers, and none is known to hold the images."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        tied = tied_layers(model)
        sites, left = [], []
        for name, module in model.named_modules():
            if not isinstance(module, nn.Conv2d | nn.Linear):
                continue
            reason = None
            if name in tied:
                reason = "another module holds its weight, too"
            elif own_forward(module) or set(module._parameters) != {"weight", "bias"}:
                reason = "it has a forward or parameters of its own"
            if reason is None:
                kind = "linear" if isinstance(module, nn.Linear) else "conv"
                bias = None if module.bias is None else f"{name}.bias"
                sites.append(Site(name, name, kind, f"{name}.weight", bias))
            else:
                left.append(FloatLayer(name, reason))
        self.sites, self.left_float = tuple(sites), tuple(left)

    def input_of(self, site: Site) -> str:
        """Return the name of the activation that a layer reads."""
        return f"{site.name}:input"

    def activations(self, quantized: Collection[str]) -> dict[str, list[Any]]:
        """Return the activations that need a grid if the named layers are quantized."""
        return {self.input_of(site): [] for site in self.sites if site.name in quantized}

    def shared(self, quantized: Collection[str]) -> dict[str, str]:
        """Return activation -> itself: none is joined with another on a grid."""
        return {name: name for name in self.activations(quantized)}

    def sums(self, quantized: Collection[str]) -> dict[str, tuple[str, str]]:
        """Return an empty dictionary: what is not an input of a layer is on no grid."""
        return {}

    @torch.inference_mode()
    def see(self, images: Tensor, quantized: Collection[str], visit: Visit) -> None:
        """Run the float network on a batch of images, and show each activation."""

        def record(name: str) -> Any:
            def hook(_: nn.Module, args: tuple[Tensor, ...], options: dict[str, Tensor]) -> None:
                visit(name, layer_input(args, options))

            return hook

        modules = dict(self.model.named_modules())
        hooks = [
            modules[site.path].register_forward_pre_hook(record(self.input_of(site)), with_kwargs=True)
            for site in self.sites
            if site.name in quantized
        ]
        try:
            self.model(images.clone())
        finally:
            for hook in hooks:
                hook.remove()

    def assembled(
        self,
        layers: Mapping[str, nn.Module],
        grids: Mapping[str, nn.Module],
        quantized: Collection[str],
        sums: Mapping[str, nn.Module] | None = None,
    ) -> nn.Module:
        """Return the network with other layers; see ``GraphProgram.assembled``."""
        network = copied(self.model)
        for site in self.sites:
            if (layer := layers.get(site.name)) is None:
                continue
            if (grid := grids.get(self.input_of(site))) is not None:
                layer.inputs = grid
            replace_module(network, network.get_submodule(site.path), layer)
        return network.eval()
