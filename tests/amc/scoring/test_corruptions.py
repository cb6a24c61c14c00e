"""Corrupted images: strengths, shapes, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from amc.errors import SettingError
from amc.scoring.corruptions import corrupted
from amc.scoring.strengths import CORRUPTIONS, ON_LARGE, ON_SMALL, check_corruptions, strengths_for

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def photos(size: int = 32, channels: int = 3) -> Tensor:
    """Smooth pictures on the [0, 1] scale: (4, channels, size, size)."""
    drawn = torch.rand(4, channels, 4, 4, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(drawn, size, mode="bilinear").clamp(0.2, 0.8)


def worse(pixels: Tensor, name: str, seed: int = 0) -> Tensor:
    """Corrupt pictures on the [0, 1] scale, through the normalised ones."""
    mean, std = (torch.tensor(values[: pixels.shape[1]])[:, None, None] for values in (MEAN, STD))
    count = pixels.shape[1]
    found = corrupted((pixels - mean) / std, name, MEAN[:count], STD[:count], seed=seed)
    return found * std + mean


def test_statistics_in_double_precision_leave_images_in_single() -> None:
    mean, std = (tuple(np.array(values)) for values in (MEAN, STD))
    assert corrupted(photos(), "contrast", mean, std).dtype == torch.float32


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize(("size", "channels"), [(32, 3), (96, 3), (8, 1)])
def test_images_get_worse_by_a_bounded_amount(name: str, size: int, channels: int) -> None:
    pixels = photos(size, channels)
    found = worse(pixels, name)
    assert found.shape == pixels.shape
    assert -1e-6 <= found.min() <= found.max() <= 1 + 1e-6
    assert 1e-4 < (found - pixels).abs().mean() < 0.3
    assert torch.equal(found, worse(pixels, name))


def test_strengths_are_those_that_are_stated() -> None:
    pixels = torch.full((2, 3, 256, 256), 0.5)
    assert (worse(pixels, "noise") - pixels).std() == pytest.approx(ON_LARGE.noise, rel=0.02)
    assert (worse(pixels[..., :64, :64], "noise") - 0.5).std() == pytest.approx(ON_SMALL.noise, rel=0.02)
    ramp = torch.linspace(0.1, 0.9, 32).expand(1, 3, 32, 32)
    assert worse(ramp, "contrast").std() == pytest.approx(float(ramp.std()) * ON_SMALL.contrast, rel=1e-3)
    point = torch.zeros(1, 1, 33, 33)
    point[..., 16, 16] = 1
    blurred, places = worse(point, "blur")[0, 0], torch.arange(33) - 16.0
    assert blurred.sum() == pytest.approx(1, abs=1e-3)
    assert (blurred.sum(0) * places**2).sum().sqrt() == pytest.approx(ON_SMALL.blur, rel=0.02)
    assert strengths_for(64, 64) is ON_SMALL
    assert strengths_for(65, 32) is ON_LARGE


def test_noise_follows_the_seed() -> None:
    assert not torch.equal(worse(photos(), "noise", seed=0), worse(photos(), "noise", seed=1))


def test_an_unknown_corruption_is_refused() -> None:
    with pytest.raises(
        SettingError, match=r"unknown corruption 'blurr'.*expected of noise, blur.*mean.*blur"
    ):
        check_corruptions(["noise", "blurr"])


def test_jpeg_of_two_channels_is_refused() -> None:
    with pytest.raises(SettingError, match="images have 2 channels; expected 1"):
        worse(photos(channels=2), "jpeg")
