"""What is shared by all uses of gradients: batches of images, and reproducible differentiation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from amc.errors import AmcError, first_line

GRADIENT_BATCH = 50
"""Images whose activations are held for a gradient at once, at most."""


def gradient_batches(count: int) -> tuple[Tensor, ...]:
    """Return which images (indices) make up each batch: at most ``GRADIENT_BATCH``, as equal as can be.

    A short last batch would have a noisier gradient, and its square counts noise as importance. The images
    are shuffled, always in the same way: where they come sorted by class, a batch must not be one class.
    """
    shuffled = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return shuffled.tensor_split(-(-count // GRADIENT_BATCH))


@contextmanager
def _differentiating(model: nn.Module, order: str) -> Iterator[None]:
    """Compute gradients reproducibly; a network that has none is named."""
    try:
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            yield
    except RuntimeError as error:
        reason = first_line(error)
        raise AmcError(
            f"{type(model).__name__} cannot be differentiated for compressor.order={order}: {reason}"
        ) from error
