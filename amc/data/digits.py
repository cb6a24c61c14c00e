"""scikit-learn's handwritten digits: 1,797 real 8x8 scans, part of the package."""

from __future__ import annotations

import functools

import torch

from amc.data.augment import random_shift, resize
from amc.data.picking import hold_out, hold_out_two, require_positive
from amc.data.splits import RawImages, Splits, from_memory

TEST_IMAGES = 360


def digits(
    *,
    batch_size: int = 64,
    image_size: int = 16,
    search_val: int = 300,
    unseen: int = 0,
    calibration: int = 300,
    seed: int = 0,
) -> Splits:
    """Build the digits, resized to ``image_size`` pixels and repeated to three channels.

    Training images are shifted by up to 1/8 of the size. They are not mirrored, as
    a mirrored digit is not a digit.

    Args:
        search_val, unseen: images held out of the 1,437 training images. They and the 360 test images do not
            depend on ``seed``, so that runs of different seeds are comparable. The mean and the standard
            deviation of all images are those of the images that are left, and so depend on both numbers.
        calibration: number of training images for calibration; ``seed`` chooses them.

    Raises:
        SettingError: an impossible size or count.
    """
    require_positive(image_size=image_size)
    everything = _load(image_size)
    test, rest = hold_out(everything.labels, TEST_IMAGES, name="test", of="digits")
    remaining = everything[rest]
    parts = hold_out_two(remaining.labels, search_val, unseen, of="the digits training set")
    train = remaining[parts.rest]
    pixels = train.images[:, 0].double() / 255
    return from_memory(
        "digits",
        num_classes=10,
        train=train,
        search_val=remaining[parts.search_val],
        unseen=remaining[parts.unseen],
        load_test=lambda: everything[test],
        augment=lambda images, draws: random_shift(images, image_size // 8, draws),
        mean=(pixels.mean().item(),) * 3,
        std=(pixels.std().item(),) * 3,
        image_size=image_size,
        batch_size=batch_size,
        calibration=calibration,
        seed=seed,
        class_names=tuple(map(str, range(10))),
        rows=parts.rest,
        total=len(remaining.labels),
    )


@functools.lru_cache(maxsize=2)
def _load(image_size: int) -> RawImages:
    from sklearn.datasets import load_digits

    scans = load_digits()
    grey = torch.from_numpy(scans.images).float()[:, None] / 16
    images = (resize(grey, image_size) * 255).round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    return RawImages(images, torch.from_numpy(scans.target).long())
