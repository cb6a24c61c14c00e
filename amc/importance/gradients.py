"""Batches of images for gradients, and reproducible differentiation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from amc.errors import AmcError, first_line
from amc.graph.recording import gradients_everywhere
from amc.scoring.flatten import as_matrix

GRADIENT_BATCH = 50
"""Largest number of images whose activations are held at once."""


def gradient_batches(count: int) -> tuple[Tensor, ...]:
    """Split ``count`` images into batches of equal size, to within one, and at most ``GRADIENT_BATCH``.

    A short last batch would have a noisier gradient, whose square would count noise as importance. The images
    are shuffled, always in the same way, since a batch of images sorted by class would hold one class only.

    Returns:
        Indices of the images of each batch: (B,) int64.
    """
    shuffled = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return shuffled.tensor_split(-(-count // GRADIENT_BATCH))


@contextmanager
def differentiating(model: nn.Module, setting: str) -> Iterator[None]:
    """Compute gradients reproducibly.

    Args:
        setting: what needs them, for the message, such as "order=obs".

    Raises:
        AmcError: the network cannot be differentiated.
    """
    try:
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            yield
    except RuntimeError as error:
        reason = first_line(error)
        raise AmcError(f"{type(model).__name__} cannot be differentiated for {setting}: {reason}") from error


def with_gradient(output: Tensor) -> Tensor:
    """Return the output of a layer, itself, with a gradient also if no image and no free weight led to it.

    That is so for learned queries, as parameters are frozen. Where gradients are off it stays without one.
    """
    if torch.is_grad_enabled() and output.is_floating_point() and not output.requires_grad:
        output.requires_grad_()
    return output


def gradients_reach(model: nn.Module, layers: Sequence[str], image: Tensor) -> bool:
    """Return whether the outputs of all layers have a gradient: none runs under ``no_grad`` or is detached.

    Args:
        image: (1, C, H, W), on the device of the network.
    """
    held: list[Tensor] = []
    modules = dict(model.named_modules())

    def keep(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        held.append(with_gradient(output))
        return output.clone()  # later operations may be in place

    hooks = [modules[name].register_forward_hook(keep) for name in layers]
    try:
        with torch.enable_grad():
            leaf = image.clone().requires_grad_()
            total = as_matrix(model(leaf.clone()), 1).sum()  # the network may write into its input
        if not total.requires_grad or not all(output.requires_grad for output in held):
            return False
        return None not in torch.autograd.grad(total, held, allow_unused=True)
    finally:
        for hook in hooks:
            hook.remove()


def recording(
    model: nn.Module, layers: Sequence[str], images: Tensor, setting: str
) -> Callable[[], AbstractContextManager[None]]:
    """Return the context for forward passes in which all layers have a gradient.

    Args:
        images: (N, C, H, W), on the device of the network.
        setting: as for ``differentiating``.

    Raises:
        AmcError: the network cannot be differentiated.
    """
    with differentiating(model, setting):
        reached = gradients_reach(model, layers, images[:1].float())
    return nullcontext if reached else gradients_everywhere
