"""What gradients tell of layers: first-order Taylor terms of inputs, sensitivity of the logits to outputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amc.data import LabelledImages, check_labels
from amc.errors import AmcError
from amc.scoring.flatten import as_matrix
from amc.scoring.run import as_logits

GRADIENT_BATCH = 50
"""Images whose activations are held for a gradient at once, at most."""

SENSITIVITY_BATCHES = 20
"""Batches that an expected square is averaged over, at most: more would cost more than all else once."""


def gradient_batches(count: int) -> tuple[Tensor, ...]:
    """Return which images (indices) make up each batch: at most ``GRADIENT_BATCH``, as equal as can be.

    A short last batch would have a noisier gradient, and its square counts noise as importance. The images
    are shuffled, always in the same way: where they come sorted by class, a batch must not be one class.
    """
    shuffled = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return shuffled.tensor_split(-(-count // GRADIENT_BATCH))


def taylor_terms(
    model: nn.Module,
    layers: Sequence[str],
    calibration: LabelledImages,
    *,
    device: str | torch.device = "cpu",
) -> dict[str, Tensor]:
    """Sum weight x gradient over all weights that read an input channel, for every batch of images.

    To first order this is what the mean cross-entropy falls by when the layer loses that input. The network
    computes in eval mode and float32; frozen parameters count as any others.

    Args:
        layers: names of convolution (not in groups) and linear layers.

    Returns:
        For each layer (batches, in_channels) float64, on the CPU.

    Raises:
        AmcError: no images, labels without an output of the network, or a network that gives NaN or cannot be
            differentiated.
    """
    if not len(calibration):
        raise AmcError("got no calibration images, expected at least one: compressor.order=taylor needs them")
    model = copy.deepcopy(model).to(device).float().eval().requires_grad_(False)
    modules = dict(model.named_modules())
    weights = [modules[name].weight.requires_grad_() for name in layers]
    rows = []
    for chosen in gradient_batches(len(calibration)):
        batch = LabelledImages(calibration.images[chosen].float(), calibration.labels[chosen]).to(device)
        rows.append(_batch_terms(model, weights, batch))
    terms = {name: torch.stack(own) for name, own in zip(layers, zip(*rows, strict=True), strict=True)}
    for name, own in terms.items():
        if not own.isfinite().all():
            raise AmcError(f"the loss's gradient by layer {name!r} is not finite; NaN weights or images?")
    return terms


@torch.enable_grad()
def _batch_terms(model: nn.Module, weights: Sequence[Tensor], batch: LabelledImages) -> list[Tensor]:
    """Return the terms of every weight (in_channels,) for one batch."""
    with _differentiating(model, "taylor"):
        outputs = as_logits(model(batch.images))
        check_labels(batch.labels, outputs.shape[1])
        # In double precision, so that images which the network is sure of keep a gradient.
        gradients = torch.autograd.grad(F.cross_entropy(outputs.double(), batch.labels), weights)
    products = [w.detach() * g for w, g in zip(weights, gradients, strict=True)]
    return [product.sum((0, *range(2, product.ndim)), dtype=torch.float64).cpu() for product in products]


@contextmanager
def _differentiating(model: nn.Module, order: str) -> Iterator[None]:
    """Compute gradients reproducibly; a network that has none is named."""
    try:
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            yield
    except RuntimeError as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise AmcError(
            f"{type(model).__name__} cannot be differentiated for compressor.order={order}: {reason}"
        ) from error


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
