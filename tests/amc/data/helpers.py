"""What tests of several data sets share."""

import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from amc import data
from amc.errors import AmcError


def rows(images):
    """The set of images, as bytes: to see whether two splits share one."""
    return {image.numpy().tobytes() for image in images}


def assert_error(message, function, *args, **kwargs):
    with pytest.raises(AmcError, match=message) as caught:
        function(*args, **kwargs)
    assert "\n" not in str(caught.value)


def first_batches(made, epoch, seed, count=2):
    return [(images, labels) for images, labels in islice(made.train_batches(epoch, seed), count)]


def same(left, right):
    return all(torch.equal(a, b) for x, y in zip(left, right, strict=True) for a, b in zip(x, y, strict=True))


def folders(root, **options):
    return data.imagefolder(
        root=root,
        **{"batch_size": 4, "image_size": 12, "resize": 16, "search_val": 6, "calibration": 6} | options,
    )


def save_classes(root, make, names=("left", "right"), count=6):
    """Save the pictures ``make(name)`` in the training folder of each class."""
    for name in names:
        (root / "train" / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            make(name).save(root / "train" / name / f"{index}.png")
    return root


def plain_folders(root, **options):
    """The folders of ``root``, images in [0, 1]; the test images are copies of those of training."""
    whole = Path(root).expanduser()
    if not (whole / "val").exists():
        shutil.copytree(whole / "train", whole / "val")
    sizes = {"search_val": 4, "calibration": 4, "batch_size": 4, "image_size": 16}
    return data.imagefolder(root=root, **{**sizes, "mean": [0] * 3, "std": [1] * 3} | options)


def half_white(_name):
    """A grey picture of 64 x 64 pixels: a black and a white half, in a frame of 16 grey pixels."""
    pixels = np.full((64, 64), 128, np.uint8)
    pixels[16:48, 16:32], pixels[16:48, 32:48] = 0, 255
    return Image.fromarray(pixels)
