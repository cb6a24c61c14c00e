"""How much an error in the outputs of a layer changes the logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from amc.errors import AmcError
from amc.graph.layers import unused_layers
from amc.importance.gradients import differentiating, gradient_batches, recording, with_gradient
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
    Where a layer runs several times, the errors of its calls are independent, too, and add up.

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
    found = call_sensitivity(
        model,
        {name: (name,) for name in layers},
        dict.fromkeys(layers, 1),
        images,
        setting="order=obs",
        probes=probes,
        device=device,
        seed=seed,
    )
    return {name: own[0, 0] for name, own in found.items()}


def call_sensitivity(
    model: nn.Module,
    holders: Mapping[str, Sequence[str]],
    calls: Mapping[str, int],
    images: Tensor,
    *,
    setting: str,
    probes: int = 2,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> dict[str, Tensor]:
    """Measure how much errors in the outputs of each two calls of a weight change the logits together.

    Args:
        model, images, probes, device, seed: as for ``logit_sensitivity``.
        holders: name of a weight -> the layers that have it, of one kind.
        calls: name of a weight -> calls of its layers for one image.
        setting: what needs them, for messages.

    Returns:
        Name of a weight -> (calls, calls, out_channels) float64, on the CPU; see ``call_products``.

    Raises:
        AmcError: the network gives NaN or cannot be differentiated.
    """
    model = in_eval(copied(model).to(device).float()).requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    modules = dict(model.named_modules())
    outputs: dict[str, list[Tensor]] = {name: [] for name in holders}
    sums = {name: torch.zeros(()).double() for name in holders}
    reached: set[str] = set()
    logits = []
    layers = [layer for own in holders.values() for layer in own]
    recorded = recording(model, layers, images[:1].to(device), setting)
    with _recorded(modules, holders, outputs):
        for chosen in gradient_batches(len(images))[:SENSITIVITY_BATCHES]:
            batch = images[chosen].to(device).float().requires_grad_()
            with torch.enable_grad(), differentiating(model, setting):
                with recorded():
                    result = as_matrix(model(batch.clone()), len(batch))  # it may work in place
                logits.append(result.detach().double().cpu())
                for probe in range(probes):
                    vector = torch.randn(result.shape, generator=generator).to(device)
                    total = (result * vector).sum()
                    gradients = _gradients(total, outputs, reached, keep=probe + 1 < probes)
                    for name, parts in gradients.items():
                        kind = modules[holders[name][0]]
                        sums[name] = sums[name] + call_products(kind, parts, calls[name])
            for kept in outputs.values():
                kept.clear()
    unreached = [layer for name, own in holders.items() if name not in reached for layer in own]
    _refuse_hidden(model, unreached, images[:1].to(device).float(), setting)
    everything = torch.cat(logits)
    variance = float(everything.var(dim=0, correction=0).sum().clamp(min=1e-30))
    found = {name: own / (len(everything) * probes * variance) for name, own in sums.items()}
    for name, own in found.items():
        if not own.isfinite().all():
            raise AmcError(
                f"the gradient of the logits by layer {name!r} is not finite; NaN weights or images?"
            )
    return found


def call_products(kind: nn.Module, tensors: Sequence[Tensor], calls: int) -> Tensor:
    """Multiply what each two calls of a weight read, or the gradients of what they give.

    A weight's gradient is the sum over its calls, so that its square has products of different calls: they
    count where two calls have one shape, position by position. Calls of different shapes are independent, as
    positions are. So are all calls of a network that calls its layers for parts of a batch, one by one, which
    the number of calls tells: they are of different images, and are one call here.

    Args:
        kind: a layer with the weight; it tells the axis of the channels.
        tensors: one for each call, (N, channels, H, W) for a convolution, (..., channels) for a linear layer;
            at least one.
        calls: number of calls for one image.

    Returns:
        (calls, calls, channels) float64, on the CPU: products, summed over all axes but the channels.
    """
    axis = channel_axis(kind, tensors[0])
    found = torch.zeros(calls, calls, tensors[0].shape[axis], dtype=torch.float64)
    for own, one in enumerate(tensors):
        if len(tensors) != calls:
            found[0, 0] += _over_channels(one, one, axis)
            continue
        for before, other in enumerate(tensors[: own + 1]):
            if one.shape == other.shape:
                found[own, before] = found[before, own] = _over_channels(one, other, axis)
    return found


def channel_axis(kind: nn.Module, tensor: Tensor) -> int:
    """Return the axis of the channels in an input or output of a layer."""
    return 1 if isinstance(kind, nn.Conv2d | nn.ConvTranspose2d) else tensor.ndim - 1


def _over_channels(one: Tensor, other: Tensor, axis: int) -> Tensor:
    """Sum a product over all axes but the channels: (channels,) float64, on the CPU."""
    others = [dim for dim in range(one.ndim) if dim != axis]
    return (one.double() * other.double()).sum(others).cpu()


def _gradients(
    total: Tensor, outputs: Mapping[str, Sequence[Tensor]], reached: set[str], *, keep: bool
) -> dict[str, list[Tensor]]:
    """Return the gradients by all outputs, and zeros where there is none.

    Args:
        reached: gets the names of the weights of which some output has a gradient.
        keep: whether the graph is needed again.
    """
    held = [output for own in outputs.values() for output in own]
    every = iter(torch.autograd.grad(total, held, retain_graph=keep, allow_unused=True))
    found: dict[str, list[Tensor]] = {}
    for name, own in outputs.items():
        gradients = [next(every) for _ in own]
        if any(gradient is not None for gradient in gradients):
            reached.add(name)
        found[name] = [
            torch.zeros_like(output) if gradient is None else gradient
            for output, gradient in zip(own, gradients, strict=True)
        ]
    return found


def _refuse_hidden(model: nn.Module, layers: Sequence[str], image: Tensor, setting: str) -> None:
    """Refuse layers without a gradient of which the logits make use all the same.

    Args:
        image: (1, C, H, W), on the device of the network.

    Raises:
        AmcError: the logits change with the outputs of one.
    """
    unused = unused_layers(model, image, layers)
    if hidden := [name for name in layers if name not in unused]:
        raise AmcError(
            f"{type(model).__name__} cannot be differentiated for {setting}: its outputs depend on layer "
            f"{hidden[0]!r} without a gradient; likely cause: .data, or NumPy, in a forward method"
        )


@contextmanager
def _recorded(
    modules: Mapping[str, nn.Module],
    holders: Mapping[str, Sequence[str]],
    outputs: Mapping[str, list[Tensor]],
) -> Iterator[None]:
    """Record the outputs of all calls; the network goes on with copies, as later operations may be in place.

    Args:
        holders: name of a weight -> the layers that have it.
        outputs: name of a weight -> gets the outputs, in the order of the calls.
    """

    def keep(name: str) -> Callable[..., Tensor]:
        def hook(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            outputs[name].append(with_gradient(output))
            return output.clone()

        return hook

    hooks = [
        modules[layer].register_forward_hook(keep(name)) for name, own in holders.items() for layer in own
    ]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()
