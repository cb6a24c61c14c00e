"""Image operations on whole batches. The random ones draw from the generator that they are given."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

Augment = Callable[[Tensor, Generator], Tensor]
"""Images (N, C, H, W) uint8 and a generator -> augmented images of the same shape and type."""


def random_shift(images: Tensor, pad: int, generator: Generator) -> Tensor:
    """Pad images (N, C, H, W) with ``pad`` zeros on each side and crop each back at a random position."""
    count, _, height, width = images.shape
    padded = F.pad(images, [pad] * 4).permute(0, 2, 3, 1)
    top, left = torch.randint(0, 2 * pad + 1, (2, count, 1), generator=generator)
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    cropped = padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return cropped.permute(0, 3, 1, 2)


def random_flip(images: Tensor, generator: Generator) -> Tensor:
    """Mirror each image of (N, C, H, W) left to right with probability 1/2."""
    flipped = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(flipped[:, None, None, None], images.flip(-1), images)


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Scale images (N, C, H, W) uint8 to [0, 1] float32, subtract ``mean`` and divide by ``std``.

    Args:
        mean, std: (C,) per channel, on the [0, 1] scale.
    """
    centre, scale = (torch.tensor(list(values), dtype=torch.float32)[:, None, None] for values in (mean, std))
    return images.float().div_(255).sub_(centre).div_(scale)


def resize(images: Tensor, size: int) -> Tensor:
    """Resize images (N, C, H, W) float32 to ``size`` x ``size`` bilinearly, antialiased when shrinking."""
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=True)
