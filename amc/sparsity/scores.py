"""Scores of single weights: the estimated cost of setting each one to zero."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from amc.graph.layers import Layer, trace_layers
from amc.graph.unfolding import layer_input
from amc.importance.gradients import gradient_batches
from amc.importance.sensitivity import SENSITIVITY_BATCHES, call_products, call_sensitivity, channel_axis
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
    (``amc.importance.sensitivity.logit_sensitivity``). This is optimal brain damage (LeCun et al. 1990). A
    weight of several calls, of one layer or of layers that share it, adds the same over all pairs of calls,
    as its gradient is the sum over them before it is squared (``amc.importance.sensitivity.call_products``).
    Transposed convolutions, and layers that are no plain product, do not count among them.

    Args:
        model: the network; it is only read.
        layers: the layers to score, one for each shared weight.
        images: calibration images (N, C, H, W).

    Returns:
        name of a layer -> float64 scores in the shape of its weight.

    Raises:
        AmcError: the network gives NaN or cannot be differentiated.
    """
    model = in_eval(copied(model).float())
    modules = dict(model.named_modules())
    traced, _ = trace_layers(model, images[:1].float())
    holders = {layer.name: _holders(layer, traced, modules) for layer in layers}
    calls = {name: sum(holder.calls for holder in own) for name, own in holders.items()}
    names = {name: tuple(holder.name for holder in own) for name, own in holders.items()}
    sensitivity = call_sensitivity(model, names, calls, images, setting="sparsify.order=curvature")
    powers = _input_products(model, names, calls, images)
    scores = {}
    for layer in layers:
        weight = modules[layer.name].weight.detach().double()
        outputs, inputs = (
            products[layer.name].flatten(0, 1).unflatten(1, (layer.groups, -1))
            for products in (sensitivity, powers)
        )
        factor = torch.einsum("pgo,pgi->goi", outputs, inputs).flatten(0, 1).clamp(min=0)  # not by rounding
        scores[layer.name] = weight.square() * factor.reshape(*factor.shape, *[1] * (weight.ndim - 2))
    return scores


def _holders(layer: Layer, traced: Sequence[Layer], modules: Mapping[str, nn.Module]) -> list[Layer]:
    """Return the layers that have the weight of ``layer`` and compute the same with it, itself among them."""
    weight = modules[layer.name].weight
    return [
        other
        for other in traced
        if modules[other.name].weight is weight
        and (other.kind, other.groups, other.flaw) == (layer.kind, layer.groups, None)
    ]


SCORES: Mapping[str, Scores] = {"magnitude": magnitudes, "curvature": curvatures}
"""Scores by name: they rank the weights of a layer and estimate the cost of losing them."""


@torch.no_grad()
def _input_products(
    model: nn.Module, holders: Mapping[str, Sequence[str]], calls: Mapping[str, int], images: Tensor
) -> dict[str, Tensor]:
    """Return the mean products of what each two calls of a weight read: (calls, calls, in_channels) float64.

    Args:
        model: the network in evaluation mode, float32.
        holders, calls: as for ``amc.importance.sensitivity.call_sensitivity``.
    """
    modules = dict(model.named_modules())
    inputs: dict[str, list[Tensor]] = {name: [] for name in holders}
    sums = {name: torch.zeros(()).double() for name in holders}
    counts = {name: torch.zeros(calls[name]).double() for name in holders}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], dict[str, Tensor]], None]:
        def hook(_module: nn.Module, args: tuple[Tensor, ...], options: dict[str, Tensor]) -> None:
            inputs[name].append(layer_input(args, options).clone())  # later operations may be in place

        return hook

    hooks = [
        modules[layer].register_forward_pre_hook(keep(name), with_kwargs=True)
        for name, own in holders.items()
        for layer in own
    ]
    try:
        for chosen in gradient_batches(len(images))[:SENSITIVITY_BATCHES]:
            model(images[chosen].float())
            for name, own in inputs.items():
                kind = modules[holders[name][0]]
                sums[name] = sums[name] + call_products(kind, own, calls[name])
                for call, each in enumerate(own):  # as in the products, calls of parts of a batch are one
                    positions = each.numel() // each.shape[channel_axis(kind, each)]
                    counts[name][call if len(own) == calls[name] else 0] += positions
                own.clear()
    finally:
        for hook in hooks:
            hook.remove()
    return {name: sums[name] / counts[name].clamp(min=1)[:, None, None] for name in holders}
