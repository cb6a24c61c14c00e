"""Rounding of weights: to the nearest integer, or so that later inputs make up for earlier errors.

With the second moments ``H`` of a layer's inputs, the squared error of its outputs is ``e H e^T`` for an
error ``e`` of its weights. Inputs are rounded in order; the error of each is made up for, as well as can be,
by the inputs that are not yet rounded (optimal brain quantization; GPTQ, Frantar et al. 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from amc.graph.unfolding import layer_input, layer_patches, sample_positions
from amc.quantization.choice import BATCH
from amc.quantization.grids import WeightGrid
from amc.quantization.layers import Quantizable
from amc.refit.moments import collect_moments
from amc.scoring.run import evaluating

LARGEST = 6000
"""Inputs of a layer whose second moments still fit into memory: 300 MB."""
_DAMPING = 0.01
_POSITIONS = 16
_BLOCK = 64
"""Inputs whose corrections are applied to the rest at once."""


@dataclass(frozen=True)
class Inputs:
    """Moments of the inputs of each group of a layer.

    Attributes:
        gram: (groups, D, D) float64; D = inputs / groups * kh * kw. None of a layer with over ``LARGEST``.
        mean: (groups, D) float64.
    """

    gram: Tensor | None
    mean: Tensor


def input_moments(model: nn.Module, paths: Sequence[str], images: Tensor) -> dict[str, Inputs]:
    """Collect the moments of layers on images (N, C, H, W); of layers with too many inputs the mean alone."""
    layers = {path: model.get_submodule(path) for path in paths}
    whole = [path for path, layer in layers.items() if _groups(layer) == 1 and _columns(layer) <= LARGEST]
    found = {}
    collected = collect_moments(model, whole, images, positions_per_image=_POSITIONS, batch_size=BATCH)
    for path, moments in collected.items():
        size = len(moments.gram) - 1
        found[path] = Inputs(moments.gram[None, :size, :size], moments.gram[None, :size, size])
    return found | _parted_moments(model, [path for path in paths if path not in found], images)


@torch.inference_mode()
def _parted_moments(model: nn.Module, paths: Sequence[str], images: Tensor) -> dict[str, Inputs]:
    """Collect what fits into memory of layers of which all moments would not.

    These are the moments within each group, and the mean alone of a layer without groups.
    """
    generator = torch.Generator().manual_seed(0)
    grams: dict[str, Tensor] = {}
    means: dict[str, Tensor] = {}
    rows = dict.fromkeys(paths, 0)

    def record(path: str, groups: int) -> Any:
        def hook(layer: nn.Module, args: tuple[Tensor, ...], options: dict[str, Tensor]) -> None:
            inputs = layer_input(args, options)
            if not inputs.numel():  # a forward pass may choose none of the images for a layer
                return
            chosen = sample_positions(layer, inputs, _POSITIONS, generator)
            patches = layer_patches(layer, inputs, chosen)
            own = patches.reshape(len(patches), groups, -1).transpose(0, 1).double()
            mean = own.sum(1)
            means[path] = means[path] + mean if path in means else mean
            rows[path] += len(patches)
            if groups > 1:
                gram = own.transpose(1, 2) @ own
                grams[path] = grams[path] + gram if path in grams else gram

        return hook

    modules = {path: model.get_submodule(path) for path in paths}
    hooks = [
        module.register_forward_pre_hook(record(path, _groups(module)), with_kwargs=True)
        for path, module in modules.items()
    ]
    try:
        with evaluating(model):
            for batch in images.split(BATCH) if paths else ():
                model(batch.clone())
    finally:
        for hook in hooks:
            hook.remove()
    return {
        path: Inputs(grams[path] / rows[path] if path in grams else None, means[path] / rows[path])
        for path in paths
    }


def by_moments(weight: Tensor, grid: WeightGrid, gram: Tensor) -> Tensor:
    """Round a matrix (channels, inputs of a group), one input after the other.

    Args:
        weight: the matrix.
        grid: of its integers.
        gram: second moments of the layer's inputs, as in ``Inputs``.

    Returns:
        (channels, inputs) int8; to the nearest where the inputs are all 0.
    """
    groups, size, _ = gram.shape
    gram = gram.clone()
    level = gram.diagonal(dim1=1, dim2=2).mean(1)
    gram.diagonal(dim1=1, dim2=2).add_(torch.where(level > 0, _DAMPING * level, 1.0)[:, None])
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
    # Row i of this factor is how the inputs after i make up for an error at i.
    factor = torch.linalg.cholesky(inverse, upper=True)
    left = weight.double().reshape(groups, -1, size).clone()
    wide = grid.wide().double().reshape(groups, -1, size)
    integers = torch.zeros_like(left)
    for start in range(0, size, _BLOCK):
        end = min(start + _BLOCK, size)
        errors = torch.zeros_like(left[..., start:end])
        for column in range(start, end):
            scale = wide[..., column]
            rounded = (left[..., column] / scale).round_().clamp_(-grid.largest, grid.largest)
            integers[..., column] = rounded
            error = (left[..., column] - rounded * scale) / factor[:, column, column, None]
            errors[..., column - start] = error
            left[..., column:end] -= error[..., None] * factor[:, None, column, column:end]
        left[..., end:] -= errors @ factor[:, start:end, end:]  # all columns of the block at once
    return integers.reshape(weight.shape).to(torch.int8)


def mean_error(weight: Tensor, rounded: Tensor, inputs: Inputs) -> Tensor:
    """Return what rounding takes from the mean output of each channel, (channels,) float32.

    Args:
        weight, rounded: (channels, inputs of a group).
        inputs: moments of the layer's inputs.
    """
    groups, size = inputs.mean.shape
    error = (weight - rounded).double().reshape(groups, -1, size)
    return (error @ inputs.mean[..., None]).flatten().float()


def _groups(layer: nn.Module) -> int:
    return int(getattr(layer, "groups", 1))


def _columns(layer: nn.Module) -> int:
    assert isinstance(layer, Quantizable)
    return layer.weight[0].numel()
