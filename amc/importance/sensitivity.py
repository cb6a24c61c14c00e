"""How much an error in the outputs of a layer moves the logits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from amc.errors import AmcError
from amc.importance.gradients import _differentiating, gradient_batches
from amc.scoring.flatten import as_matrix

SENSITIVITY_BATCHES = 20
"""Batches that an expected square is averaged over, at most: more would cost more than all else once."""


def logit_sensitivity(
    model: nn.Module,
    layers: Sequence[str],
    images: Tensor,
    *,
    probes: int = 2,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> dict[str, Tensor]:
    """Measure how much an error in a layer's outputs moves the logits: the diagonal of Gauss-Newton.

    An error of variance v in every position of output channel c, independent of all others, moves the logits
    by ``v * sensitivity[c]``, as a share of the logits' variance over the images, to first order. The squared
    Jacobian is estimated with random vectors: ``E_v (d v.logits / d y)^2`` is its sum over the logits.

    Args:
        model: the dense network; frozen parameters do not matter.
        layers: names of convolution and linear layers.
        images: calibration images (N, C, H, W), of which ``SENSITIVITY_BATCHES`` are looked at; labels are
            not needed.
        probes: random vectors per batch.

    Returns:
        For each layer (out_channels,) float64, on the CPU.

    Raises:
        AmcError: the network gives NaN or cannot be differentiated.
    """
    model = copy.deepcopy(model).to(device).float().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    modules = dict(model.named_modules())
    outputs: dict[str, Tensor] = {}
    sums = {name: torch.zeros(()).double() for name in layers}
    logits = []
    with _recorded(model, layers, outputs):
        for chosen in gradient_batches(len(images))[:SENSITIVITY_BATCHES]:
            batch = images[chosen].to(device).float().requires_grad_()
            with torch.enable_grad(), _differentiating(model, "obs"):
                result = as_matrix(model(batch), len(batch))
                logits.append(result.detach().double().cpu())
                held = [outputs[name] for name in layers]
                for probe in range(probes):
                    vector = torch.randn(result.shape, generator=generator).to(device)
                    total = (result * vector).sum()
                    gradients = torch.autograd.grad(total, held, retain_graph=probe + 1 < probes)
                    for name, gradient in zip(layers, gradients, strict=True):
                        sums[name] = sums[name] + _squares(modules[name], gradient)
            outputs.clear()
    everything = torch.cat(logits)
    variance = float(everything.var(dim=0, correction=0).sum().clamp(min=1e-30))
    found = {name: own / (len(everything) * probes * variance) for name, own in sums.items()}
    for name, own in found.items():
        if not own.isfinite().all():
            raise AmcError(f"the logits' gradient by layer {name!r} is not finite; NaN weights or images?")
    return found


def _squares(module: nn.Module, gradient: Tensor) -> Tensor:
    """Sum the squares of an output's gradient over all but its channels: (channels,) float64, on the CPU."""
    axis = 1 if isinstance(module, nn.Conv2d) else gradient.ndim - 1
    others = [dim for dim in range(gradient.ndim) if dim != axis]
    return gradient.double().square().sum(others).cpu()


@contextmanager
def _recorded(model: nn.Module, layers: Sequence[str], outputs: dict[str, Tensor]) -> Iterator[None]:
    """Keep the outputs of layers; the network goes on with copies, as what follows may work in place."""

    def keep(name: str) -> Callable[..., Tensor]:
        def hook(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            outputs[name] = output
            return output.clone()

        return hook

    modules = dict(model.named_modules())
    hooks = [modules[name].register_forward_hook(keep(name)) for name in layers]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()
