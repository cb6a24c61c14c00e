"""How much an error in the outputs of a layer changes the logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from amc.errors import AmcError
from amc.importance.gradients import differentiating, gradient_batches, recording
from amc.scoring.flatten import as_matrix
from amc.scoring.run import copied, in_eval

SENSITIVITY_BATCHES = 20
"""Largest number of batches that are averaged; more would take longer than all other preparations."""


def logit_sensitivity(
    model: nn.Module,
    layers: Sequence[str],
    images: Tensor,
    *,
    probes: int = 2,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> dict[str, Tensor]:
    """Measure how much an error in a layer's outputs changes the logits: the diagonal of Gauss-Newton.

    To first order, independent errors of variance v in every position of output channel c change the logits
    by ``v * sensitivity[c]``, as a share of the variance of the logits over the images. The squared
    Jacobian is estimated with random vectors v: ``E_v (d v.logits / d y)^2`` is its sum over the logits.

    Args:
        model: the dense network, which is not changed; its parameters may be frozen.
        layers: names of convolution and linear layers.
        images: calibration images (N, C, H, W), of which at most ``SENSITIVITY_BATCHES`` batches are used.
        probes: random vectors per batch.
        device: where gradients are computed.
        seed: of the random vectors.

    Returns:
        Layer name -> (out_channels,) float64, on the CPU.

    Raises:
        AmcError: the network gives NaN or cannot be differentiated.
    """
    model = in_eval(copied(model).to(device).float()).requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    modules = dict(model.named_modules())
    outputs: dict[str, Tensor] = {}
    sums = {name: torch.zeros(()).double() for name in layers}
    logits = []
    recorded = recording(model, layers, images[:1].to(device), "obs")
    with _recorded(model, layers, outputs):
        for chosen in gradient_batches(len(images))[:SENSITIVITY_BATCHES]:
            batch = images[chosen].to(device).float().requires_grad_()
            with torch.enable_grad(), differentiating(model, "obs"):
                with recorded():
                    result = as_matrix(model(batch.clone()), len(batch))  # it may work in place
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
            raise AmcError(
                f"the gradient of the logits by layer {name!r} is not finite; NaN weights or images?"
            )
    return found


def _squares(module: nn.Module, gradient: Tensor) -> Tensor:
    """Sum the squares of an output's gradient over all axes but the channels: (channels,) float64, CPU."""
    axis = 1 if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) else gradient.ndim - 1
    others = [dim for dim in range(gradient.ndim) if dim != axis]
    return gradient.double().square().sum(others).cpu()


@contextmanager
def _recorded(model: nn.Module, layers: Sequence[str], outputs: dict[str, Tensor]) -> Iterator[None]:
    """Record the outputs of layers; the network goes on with copies, as later operations may be in place."""

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
