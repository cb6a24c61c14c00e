"""Generated images that a small network can learn: for smoke tests at any size, without files."""

from __future__ import annotations

import torch

from amc.data.augment import random_flip, resize
from amc.data.picking import check_unseen, require_positive
from amc.data.splits import RawImages, Splits, from_memory
from amc.seeds import generator

PATTERN_CELLS = 4
"""Random cells along each side of a pattern, before it is resized."""
NOISE = 0.15
"""Standard deviation of the noise, on the [0, 1] scale."""


def synthetic(
    *,
    num_classes: int = 10,
    image_size: int = 32,
    train: int = 512,
    search_val: int = 128,
    unseen: int = 0,
    calibration: int = 64,
    test: int = 128,
    batch_size: int = 32,
    mirror: bool = True,
    seed: int = 0,
) -> Splits:
    """Build images of one smooth random pattern per class plus noise; ``seed`` determines everything.

    Args:
        train, search_val, unseen, test: numbers of images.
        calibration: number of training images for calibration.
        mirror: mirror half of the training images.

    Raises:
        SettingError: an impossible size or count.
    """
    require_positive(
        num_classes=num_classes, image_size=image_size, train=train, search_val=search_val, test=test
    )
    check_unseen(unseen)
    patterns = _patterns(num_classes, image_size, seed)
    return from_memory(
        "fake",
        num_classes=num_classes,
        train=_noisy(patterns, train, seed, 1),
        search_val=_noisy(patterns, search_val, seed, 2),
        unseen=_noisy(patterns, unseen, seed, 4),
        load_test=lambda: _noisy(patterns, test, seed, 3),
        augment=random_flip if mirror else _as_they_are,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        image_size=image_size,
        batch_size=batch_size,
        calibration=calibration,
        seed=seed,
    )


def _as_they_are(images: torch.Tensor, draws: torch.Generator) -> torch.Tensor:
    return images


def _patterns(num_classes: int, image_size: int, seed: int) -> torch.Tensor:
    """Return symmetric patterns (classes, 3, S, S) float32 in [0, 1]: a mirrored image keeps its class."""
    draws = torch.rand(num_classes, 3, PATTERN_CELLS, PATTERN_CELLS, generator=generator(seed, 0))
    return resize((draws + draws.flip(-1)) / 2, image_size)


def _noisy(patterns: torch.Tensor, count: int, seed: int, split: int) -> RawImages:
    draws = generator(seed, split)
    labels = torch.arange(count)[torch.randperm(count, generator=draws)] % len(patterns)
    images = patterns[labels]
    images = images + NOISE * torch.randn(images.shape, generator=draws)
    return RawImages((images.clamp(0, 1) * 255).round().to(torch.uint8), labels)
