"""Vectorised image operations on whole batches; every random one draws from the generator it is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

Augment = Callable[[Tensor, Generator], Tensor]
"""(N,C,H,W) uint8 and a generator to the same shape and dtype."""


def random_shift(images: Tensor, pad: int, generator: Generator) -> Tensor:
    """Zero-pad (N,C,H,W) by `pad` pixels and crop each image back at its own uniformly drawn place."""
    count, _, height, width = images.shape
    padded = F.pad(images, [pad] * 4).permute(0, 2, 3, 1)
    top, left = torch.randint(0, 2 * pad + 1, (2, count, 1), generator=generator)
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    cropped = padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return cropped.permute(0, 3, 1, 2)


def random_flip(images: Tensor, generator: Generator) -> Tensor:
    """Mirror each image of (N,C,H,W) left to right with probability one half."""
    flipped = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(flipped[:, None, None, None], images.flip(-1), images)


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Scale (N,C,H,W) uint8 to [0, 1] float32, take off `mean`, divide by `std` (one value per channel)."""
    centre, scale = (torch.tensor(list(values), dtype=torch.float32)[:, None, None] for values in (mean, std))
    return images.float().div_(255).sub_(centre).div_(scale)


def resize(images: Tensor, size: int) -> Tensor:
    """Bilinear resize of (N,C,H,W) float32 to `size` x `size`, antialiased when shrinking."""
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=True)
