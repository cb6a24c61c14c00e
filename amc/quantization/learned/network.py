"""From a quantized network to one that trains, and back to the same kind of description.

Weights, biases, step sizes and the batch norms of quantized layers are trained. The norms use the statistics
of each batch, as in any training, and are folded into the scales of channels in the end. All else stays as it
is: layers that stay float, and norms that cannot be folded. So what is trained is what the runtime computes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from amc.quantization.calibration import Quantized, stored
from amc.quantization.layers import IntegerLayer
from amc.quantization.learned.layers import LearnedGrid, LearnedLayer
from amc.quantization.simulation import assemble, parts_of


def trained(made: Quantized, fit: Callable[[nn.Module], Any]) -> Quantized:
    """Train a quantized network.

    Args:
        made: the quantized network to start from, with one scale a channel.
        fit: trains a network in place; it maps images to what ``made.model`` returns, and starts with the
            same outputs.

    Returns:
        The network after the training, with its description and tensors.
    """
    program, description = made.program, made.description
    assert program is not None
    layers, grids = parts_of(program, description, made.tensors)
    bits = {each.name: each.bits for each in description.layers}
    learned: dict[str, LearnedLayer] = {}
    for name, layer in layers.items():
        assert isinstance(layer, IntegerLayer)
        learned[name] = LearnedLayer(layer, bits[name], program.norms.get(name))
    first = program.shared(set(layers)) if grids else {}
    own = {name: LearnedGrid(grids[name]) for name in dict.fromkeys(first.values())}
    steps = {name: own[leader] for name, leader in first.items()}
    network = _Trainable(program.assembled(learned, steps, set(learned)), [*learned.values(), *own.values()])
    fit(network)
    network.cpu().eval()
    return _written(made, learned, steps)


def _written(
    made: Quantized, learned: Mapping[str, LearnedLayer], steps: Mapping[str, LearnedGrid]
) -> Quantized:
    """Return the quantized network of trained parts."""
    assert made.program is not None
    scales = {name: float(grid.scale.detach()) for name, grid in steps.items()}
    tensors: dict[str, Tensor] = {}
    for each in made.description.layers:
        layer = learned[each.name]
        step = None if each.input is None else scales[each.input]
        own = stored(*layer.folded(step), step)
        tensors |= {f"{each.name}.{key}": tensor for key, tensor in own.items()}
    description = replace(
        made.description,
        layers=tuple(replace(each, rounding="learned") for each in made.description.layers),
        activations=tuple(replace(each, scale=scales[each.name]) for each in made.description.activations),
    )
    model = assemble(made.program, description, tensors)
    return replace(made, description=description, tensors=tensors, model=model)


class _Trainable(nn.Module):
    """A network of which some parts are trained; the rest is always in eval mode.

    Args:
        network: the network.
        parts: the modules in it that are trained.
    """

    def __init__(self, network: nn.Module, parts: list[LearnedLayer | LearnedGrid]) -> None:
        super().__init__()
        self._parts = parts
        self.network = _differentiable(network).requires_grad_(False)
        for part in parts:
            part.requires_grad_(True)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of this module and of the parts that are trained."""
        super().train(mode)
        self.network.eval()
        for part in self._parts:
            part.train(mode)
        return self

    def forward(self, images: Tensor) -> Any:
        """Return the network's output for images (N, C, H, W)."""
        return self.network(images)


def _differentiable(network: nn.Module) -> nn.Module:
    """Put an operator with a gradient in place of batch norms that are not folded, in place."""
    if isinstance(network, fx.GraphModule):
        for node in network.graph.nodes:
            if node.target is torch.ops.aten._native_batch_norm_legit_no_training.default:
                node.target = _batch_norm
        network.recompile()
    return network


def _batch_norm(
    values: Tensor,
    gain: Tensor | None,
    offset: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    momentum: float,
    eps: float,
) -> tuple[Tensor]:
    return (F.batch_norm(values, mean, variance, gain, offset, False, momentum, eps),)
