"""Names and strengths of the corruptions of images; nothing here imports torch, which takes a second.

They are four of Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", ICLR 2019, at the middle one of their five severities: that of CIFAR-10-C where images are
small, that of ImageNet-C elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

from amc.errors import SettingError, did_you_mean

SMALL = 64
"""Pixels of the longer side up to which images are small."""


@dataclass(frozen=True, slots=True)
class Strengths:
    """The strength of each corruption.

    Attributes:
        noise: standard deviation of normal noise, on the [0, 1] scale.
        blur: standard deviation of the Gaussian, in pixels.
        contrast: share of the contrast that is left.
        jpeg: quality of the JPEG file, 1 to 100.
    """

    noise: float
    blur: float
    contrast: float
    jpeg: int


ON_SMALL = Strengths(noise=0.08, blur=0.7, contrast=0.4, jpeg=58)
ON_LARGE = Strengths(noise=0.18, blur=3.0, contrast=0.2, jpeg=15)
CORRUPTIONS = tuple(each.name for each in fields(Strengths))


def strengths_for(height: int, width: int) -> Strengths:
    """Return the strengths for images of a size in pixels."""
    return ON_SMALL if max(height, width) <= SMALL else ON_LARGE


def check_corruptions(names: Iterable[str]) -> None:
    """Refuse a name that is no corruption.

    Raises:
        SettingError: lists the names and suggests the nearest.
    """
    for name in names:
        if name not in CORRUPTIONS:
            raise SettingError(
                f"unknown corruption {name!r}; expected of {', '.join(CORRUPTIONS)}"
                f"{did_you_mean(name, CORRUPTIONS)}"
            )
