"""Batches of images for gradients, and reproducible differentiation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from amc.errors import AmcError, first_line

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
def differentiating(model: nn.Module, order: str) -> Iterator[None]:
    """Compute gradients reproducibly.

    Args:
        order: the channel order that needs them, for the message.

    Raises:
        AmcError: the network cannot be differentiated.
    """
    try:
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            yield
    except RuntimeError as error:
        reason = first_line(error)
        raise AmcError(
            f"{type(model).__name__} cannot be differentiated for order={order}: {reason}"
        ) from error
