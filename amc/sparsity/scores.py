"""Scores of single weights: the estimated cost of setting each one to zero."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

import torch
from torch import Tensor, nn

from amc.graph.layers import Layer
from amc.graph.unfolding import layer_input
from amc.importance.gradients import gradient_batches
from amc.importance.sensitivity import SENSITIVITY_BATCHES, logit_sensitivity
from amc.scoring.run import copied, in_eval

Scores = Callable[[nn.Module, Sequence[Layer], Tensor], Mapping[str, Tensor]]
"""Network, layers, calibration images (N, C, H, W) -> name of a layer -> scores shaped like its weight."""


def magnitudes(model: nn.Module, layers: Sequence[Layer], images: Tensor) -> dict[str, Tensor]:
    """Score a weight by its square relative to the layer's mean square (Han et al. 2015 rank by magnitude).

    Args:
        model: the network; it is only read.
        layers: the layers to score.
        images: not used.

    Returns:
        name of a layer -> float64 scores in the shape of its weight.
    """
    modules = dict(model.named_modules())
    squares = {layer.name: modules[layer.name].weight.detach().double().square() for layer in layers}
    return {name: square / square.mean().clamp(min=1e-30) for name, square in squares.items()}


def curvatures(model: nn.Module, layers: Sequence[Layer], images: Tensor) -> dict[str, Tensor]:
    """Score a weight by the second-order change of the logits when it becomes zero (Gauss-Newton diagonal).

    The score is ``w^2 E[x^2] s``: x is the input of the weight, s the sensitivity of the logits to its output
    (``amc.importance.sensitivity.logit_sensitivity``). This is optimal brain damage (LeCun et al. 1990).

    Args:
        model: the network; it is only read.
        layers: the layers to score.
        images: calibration images (N, C, H, W).

    Returns:
        name of a layer -> float64 scores in the shape of its weight.
    """
    names = [layer.name for layer in layers]
    sensitivity = logit_sensitivity(model, names, images)
    powers = _input_powers(model, names, images)
    modules = dict(model.named_modules())
    scores = {}
    for layer in layers:
        weight = modules[layer.name].weight.detach().double()
        inputs = powers[layer.name].reshape(layer.groups, -1)
        inputs = inputs.repeat_interleave(layer.out_channels // layer.groups, dim=0)
        factor = sensitivity[layer.name][:, None] * inputs
        scores[layer.name] = weight.square() * factor.reshape(*factor.shape, *[1] * (weight.ndim - 2))
    return scores


SCORES: Mapping[str, Scores] = {"magnitude": magnitudes, "curvature": curvatures}
"""Scores by name: they rank the weights of a layer and estimate the cost of losing them."""


@torch.no_grad()
def _input_powers(model: nn.Module, names: Sequence[str], images: Tensor) -> dict[str, Tensor]:
    """Return the mean square of every input channel or feature of each layer: (in_channels,) float64."""
    model = in_eval(copied(model).float())
    modules = dict(model.named_modules())
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def add(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], dict[str, Tensor]], None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], options: dict[str, Tensor]) -> None:
            inputs = layer_input(args, options)
            axis = 1 if isinstance(module, nn.Conv2d) else inputs.ndim - 1
            others = [dim for dim in range(inputs.ndim) if dim != axis]
            sums[name] = sums.get(name, torch.zeros(())) + inputs.double().square().sum(others)
            counts[name] = counts.get(name, 0) + prod(inputs.shape[dim] for dim in others)

        return hook

    for name in names:
        modules[name].register_forward_pre_hook(add(name), with_kwargs=True)
    for chosen in gradient_batches(len(images))[:SENSITIVITY_BATCHES]:
        model(images[chosen].float())
    return {name: sums[name] / counts[name] for name in names}
