"""Corrupted images: how much a network still recognises when pictures get worse; see ``strengths.py``."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from amc.errors import SettingError
from amc.scoring.strengths import Strengths, check_corruptions, strengths_for


def corrupted(
    images: Tensor, name: str, mean: Sequence[float], std: Sequence[float], *, seed: int = 0
) -> Tensor:
    """Return normalised images (N, C, H, W) corrupted, and normalised again.

    Args:
        images: float32, normalised by ``mean`` and ``std``.
        name: one of ``strengths.CORRUPTIONS``.
        mean, std: (C,) per channel, on the [0, 1] scale.
        seed: of the noise.

    Raises:
        SettingError: there is no such corruption, or it does not take images of so many channels.
    """
    check_corruptions([name])
    centre, spread = (torch.tensor(values, dtype=torch.float32)[:, None, None] for values in (mean, std))
    pixels = (images * spread + centre).clamp(0, 1)
    worse = _FUNCTIONS[name](pixels, strengths_for(*images.shape[-2:]), seed)
    return (worse.clamp(0, 1) - centre) / spread


def _noise(pixels: Tensor, strengths: Strengths, seed: int) -> Tensor:
    drawn = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(seed))
    return pixels + strengths.noise * drawn


def _blur(pixels: Tensor, strengths: Strengths, seed: int) -> Tensor:
    del seed
    radius = round(4 * strengths.blur)  # the Gaussian's rest is below 1e-4
    radius = min(radius, *(side - 1 for side in pixels.shape[-2:]))  # the border is reflected
    return transforms.gaussian_blur(pixels, [2 * radius + 1] * 2, [strengths.blur] * 2)


def _contrast(pixels: Tensor, strengths: Strengths, seed: int) -> Tensor:
    del seed
    mean = pixels.mean((-2, -1), keepdim=True)
    return (pixels - mean) * strengths.contrast + mean


def _jpeg(pixels: Tensor, strengths: Strengths, seed: int) -> Tensor:
    del seed
    channels = pixels.shape[1]
    if channels not in (1, 3):
        raise SettingError(f"corruption jpeg: images have {channels} channels; expected 1 (grey) or 3 (RGB)")
    whole = (pixels * 255).round().to(torch.uint8)
    return torch.stack([_through_file(each, strengths.jpeg) for each in whole]) / 255


def _through_file(pixels: Tensor, quality: int) -> Tensor:
    """Return one picture (C, H, W), uint8, as it is read from a JPEG file."""
    file = io.BytesIO()
    transforms.to_pil_image(pixels).save(file, "JPEG", quality=quality)
    with Image.open(file) as picture:
        return transforms.pil_to_tensor(picture)


_FUNCTIONS: dict[str, Callable[[Tensor, Strengths, int], Tensor]] = {
    "noise": _noise,
    "blur": _blur,
    "contrast": _contrast,
    "jpeg": _jpeg,
}
"""Name -> function of images (N, C, H, W) on the [0, 1] scale, the strengths and a seed."""
